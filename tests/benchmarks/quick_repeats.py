"""How often does the suite ``quick`` give verdicts, and does every agent learn on it each time?

    python tests/benchmarks/quick_repeats.py FOLDER

Runs the suite ten times, each with seeds of its own, below FOLDER, and prints a table: of each
repeat the verdicts between the agents, and how often each pair has one; of each agent and task
the interquartile mean of the returns at the first evaluation, which is of the policy before it has
learned, and at the last one, over the repeats, and in how many it rises. A repeat that is there
already is not run again.
"""

import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from qsm_bench import Results, load_results, run_experiment
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.estimates import interquartile_mean
from qsm_bench.statistics.selection import learning_curves
from qsm_bench.suites import SUITES

REPEATS, FIRST_SEED, APART = 10, 20_000, 100
"""Repeat k has the seeds from FIRST_SEED + APART k on: none was used to choose the suite."""
AGENTS = "qsm,sac,td3"


def main(folder: Annotated[Path, typer.Argument()]) -> None:
    """Run the repeats and print what they show."""
    verdicts: list[str] = []
    learned = []
    for repeat in range(REPEATS):
        results, minutes = run(folder, repeat)
        pairs = Analysis(results).pairs
        told = pairs[pairs["verdict"]]
        named = [f"{row.better} > {row.worse}" for row in told.itertuples()]
        verdicts += named
        learned.append(ends(results).assign(repeat=repeat))
        cost = f", {minutes:.1f} min" if minutes else ""
        print(f"repeat {repeat}: {', '.join(named) or 'no verdict'}{cost}", flush=True)
    print(pd.Series(verdicts, name="repeats").value_counts().to_string())
    every = pd.concat(learned)
    every["rises"] = every["last"] > every["first"]
    cells = every.groupby(["task", "agent"])
    print(cells[["first", "last"]].agg(["min", "mean", "max"]).to_string())
    print(cells["rises"].sum().to_string())


def run(folder: Path, repeat: int) -> tuple[Results, float | None]:
    """Run a repeat, unless it is there; return its results, and its minutes if it was run."""
    name, seeds = f"quick-{repeat}", len(SUITES["quick"].seeds)
    if (folder / name / "experiment.json").exists():
        there = load_results(folder, name)
        if all(cell["status"] == "finished" for cell in there.cells):
            return there, None
    began = time.monotonic()
    first = FIRST_SEED + APART * repeat
    results = run_experiment(
        AGENTS, suite="quick", name=name, seeds=range(first, first + seeds), results=folder
    )
    return results, (time.monotonic() - began) / 60


def ends(results: Results) -> pd.DataFrame:
    """The interquartile mean at the first and at the last evaluation of each cell."""
    rows = []
    for (agent, task), curves in learning_curves(results).items():
        means = interquartile_mean(curves.returns)
        rows.append({"task": task, "agent": agent, "first": means[0], "last": means[-1]})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    typer.run(main)
