"""What compiling adds to the start of a run, the first time and the second: ``make bench``."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.speed.program_cache import VARIABLE
from tests.benchmarks.workload import note, seconds

UPDATES = 10
"""So few that the run is all start."""


@pytest.mark.parametrize("width", [64, 256])
def test_start(benchmark: Any, tmp_path: Path, width: int) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()

    def run(name: str, compiled: str) -> None:
        command = (
            f"-m qsm_bench run --agents qsm --tasks four-goals --seeds 1 --name {name}"
            f" --warmup-steps 100 --steps {100 + UPDATES} --batch-size {width}"
            f" --set hidden_sizes=[{width},{width}] --compile {compiled}"
        )
        subprocess.run(
            [sys.executable, *command.split(), "--results", tmp_path],
            # torch keeps compiled headers in the temporary directory, whatever is named.
            env=os.environ | {VARIABLE: str(machine / "programs"), "TMPDIR": str(machine)},
            capture_output=True,
            check=True,
        )

    benchmark.pedantic(run, args=("eager", "off"), rounds=1)
    if benchmark.stats is None:
        return
    eager = benchmark.stats.stats.median
    for time in ("first", "second"):
        took = seconds(lambda name=time: run(name, "on"))  # type: ignore[misc]
        work = f"a run of {UPDATES} updates, qsm, 2 x {width}, compiled, the {time} on a machine"
        note(benchmark, work, f"{took:.1f} s", took / eager, f"times eager's {eager:.1f} s")
