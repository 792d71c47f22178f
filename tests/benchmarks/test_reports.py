"""How long the report and the command line's start take: ``make bench``."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qsm_bench.report import write_report
from qsm_bench.statistics import estimates
from tests.benchmarks.workload import note, seconds
from tests.qsm_bench.synthetic import make_results

AGENTS = ("qsm", "diffusion_ql", "diffusion_pg", "sac", "td3")


def cpu_seconds(seeds: int, folder: Path) -> float:
    """Return the CPU seconds of a report on 5 agents x 6 tasks x 100 evaluations."""
    results = make_results(AGENTS, tuple("abcdef"), seeds=seeds, evaluations=100, episodes=1)
    began = time.process_time()
    write_report(results, folder)
    return time.process_time() - began


def test_report(benchmark: Any, tmp_path: Path) -> None:
    if benchmark.disabled:
        pytest.skip("tests/qsm_bench/test_report.py writes one of this size")
    cpu_seconds(2, tmp_path / "warm")
    taken: list[float] = []
    benchmark.pedantic(
        lambda: taken.append(cpu_seconds(10, tmp_path / "ten")), rounds=3, iterations=1
    )
    half = min(cpu_seconds(5, tmp_path / "five") for _ in range(2))
    note(
        benchmark,
        f"report of 5 agents x 6 tasks x 10 seeds x 100 evaluations, {estimates.REPLICATIONS:,} "
        "bootstrap replications",
        f"{min(taken):.1f} s of one core",
        min(taken) / half,
        "times 5 seeds",
        "60 s, and at most 2",
    )


def test_help(benchmark: Any) -> None:
    command = [sys.executable, "-m", "qsm_bench", "--help"]

    def show_help() -> None:
        subprocess.run(command, check=True, capture_output=True)

    benchmark.pedantic(show_help, rounds=1 if benchmark.disabled else 10)
    if benchmark.stats is None:
        return
    bare = min(
        seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(5)
    )
    taken = benchmark.stats.stats.median
    note(
        benchmark,
        "python -m qsm_bench --help",
        f"{taken:.2f} s",
        taken / bare,
        "times an empty Python",
        "under 0.5 s",
    )
