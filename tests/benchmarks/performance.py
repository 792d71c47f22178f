"""Write reports/performance.md from the benchmarks' record: the second half of ``make bench``.

python tests/benchmarks/performance.py BENCHMARKS.json reports/performance.md
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[2]))

from qsm_bench.provenance import describe_commit, describe_hardware, describe_versions
from tests.benchmarks.core import describe_core

INTRODUCTION = """\
# Performance

Written by `make bench`; no number is typed by hand but those of the last table.

On a machine of {cores} cores and {memory_gib} GiB, one thread a process; {versions};
commit {commit}.

A *seed-update* is one update of critic, actor and target of one seed, with 24 observation entries,
6 action entries, batches of 256 and networks of 2 x 256. The *roofline* is the rate at which its
floating-point operations would run if all of them were products of 256 x 256 matrices; such
products are measured between the rounds of the work, in the same process. *Compiled* is what
`--compile on` runs, *eager* what `--compile off` runs. *bfloat16* is `--matmul-precision bfloat16`:
see [docs/precision.md](../docs/precision.md).

One core: {core}

"""

HEADER = "| work | measured | ratio | | to reach |\n|---|---|---|---|---|\n"

PUBLISHED = """
## What others have published

The code of the authors of Q-score matching has no license, so this project never runs or copies it.
These are published figures of it: one run on one core with JAX 0.10.2. Neither the processor nor
the sizes came with them, so they are no ratios to the rows above.

One core: not stated

| work | T = 5 | T = 20 |
|---|---|---|
| the authors' QSM | 62.8 updates/s | 28.6 updates/s |
| the authors' backpropagation through the sampler | 35.2 updates/s | 6.3 updates/s |
"""
"""Given as they are, and the only numbers of the page that are not measured when it is written."""


def versions_in_words(names: Iterable[str] = ("python", "torch", "numpy")) -> str:
    """Return the versions that a page's times depend on, such as "python 3.11.7, ..."."""
    versions = describe_versions()
    return ", ".join(f"{name} {versions[name]}" for name in names)


def page(measured: list[dict[str, Any]]) -> str:
    """Return the page's Markdown from what pytest-benchmark has written down."""
    rows = [row for benchmark in measured for row in benchmark["extra_info"].get("rows", ())]
    introduction = INTRODUCTION.format(
        **describe_hardware("cpu"),
        core=describe_core(),
        versions=versions_in_words(),
        commit=describe_commit(),
    )
    return introduction + HEADER + "".join(map(table_row, rows)) + PUBLISHED


def table_row(row: dict[str, Any]) -> str:
    """Return one row of ``HEADER``'s table, from what ``workload.note`` has noted."""
    ratio = f"{row['ratio']:.2f}"
    return f"| {row['work']} | {row['measured']} | {ratio} | {row['of']} | {row['goal']} |\n"


def main(benchmarks: Path, page_file: Path) -> None:
    """Write the page."""
    measured: list[dict[str, Any]] = json.loads(benchmarks.read_text())["benchmarks"]
    page_file.write_text(page(measured), encoding="utf-8")
    print(page_file)


if __name__ == "__main__":
    typer.run(main)
