"""Write reports/performance.md from the benchmarks' record: the second half of ``make bench``.

python tests/benchmarks/performance.py BENCHMARKS.json reports/performance.md
"""

import json
import sys
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from qsm_bench.provenance import describe_commit, describe_hardware, describe_versions

INTRODUCTION = """\
# Performance

Written by `make bench`; no number is typed by hand.

On {machine}, one thread a process; {versions}; commit {commit}.

A *seed-update* is one update of critic, actor and target of one seed, with 24 observation entries,
6 action entries, batches of 256 and networks of 2 x 256. The *roofline* is the rate at which its
floating-point operations would run if all of them were products of 256 x 256 matrices; such
products are measured between the rounds of the work, in the same process. *Compiled* is what
`--compile on` runs, *eager* what `--compile off` runs.

| work | measured | ratio | | to reach |
|---|---|---|---|---|
"""


def main(benchmarks: Path, page: Path) -> None:
    """Write the page."""
    measured: list[dict[str, Any]] = json.loads(benchmarks.read_text())["benchmarks"]
    hardware = describe_hardware("cpu")
    versions = describe_versions()
    text = INTRODUCTION.format(
        machine="{cpu}, {cores} cores, {memory_gib} GiB".format(**hardware),
        versions=", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "numpy")),
        commit=describe_commit(),
    )
    for benchmark in measured:
        for row in benchmark["extra_info"].get("rows", ()):
            text += (
                f"| {row['work']} | {row['measured']} | {row['ratio']:.2f} | {row['of']} "
                f"| {row['goal']} |\n"
            )
    page.write_text(text, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    typer.run(main)
