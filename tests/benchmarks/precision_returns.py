"""What rounding factors to bfloat16 costs in returns.

    python tests/benchmarks/precision_returns.py FOLDER --agents qsm,sac,td3

Prints two tables of Markdown. What is missing of their runs in FOLDER is trained first, which takes
hours; cut off, it goes on from there. The first table has the scores on the regression's small
tasks with rounded factors, 24 seeds, beside those of the baseline, 24 others in float32, with the
exact rank test of each pair of scores and Holm's correction over all of them. The second has the
return on cartpole-swingup after 30,000 steps, 8 seeds each way, with Welch's interval of the
difference.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import typer
from rich.console import Console
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from qsm_bench import regression
from qsm_bench.executors import Local
from qsm_bench.experiment import Experiment
from qsm_bench.protocol import Protocol
from qsm_bench.results import Results
from qsm_bench.run import run_experiment, show_and_run
from qsm_bench.shipped import shipped
from qsm_bench.signals import remember_signals
from qsm_bench.statistics.selection import select_runs
from qsm_bench.statistics.significance import holm, permutation_test
from qsm_bench.store import ExperimentStore

ROUNDED = "matmul_precision=bfloat16"
SMALL_SEEDS = range(2_000, 2_000 + regression.BASELINE_SEEDS)
TASK, SEEDS = "cartpole-swingup", range(8)
PROTOCOL = Protocol(steps=30_000, warmup_steps=2_500)


def main(
    folder: Path, agents: str = "qsm,diffusion_ql,diffusion_pg,sac,td3", workers: int = 1
) -> None:
    """Train what is missing in FOLDER, and print the tables."""
    names = agents.split(",")
    small_tasks(folder, names, workers)
    cartpole(folder, names, workers)


def small_tasks(folder: Path, names: list[str], workers: int) -> None:
    """Print the scores on the small tasks, rounded against the baseline's."""
    console = Console(stderr=True)
    experiments = list(rounded_experiments(names))
    jobs = [
        job
        for experiment in experiments
        for job in ExperimentStore(folder, experiment.name).prepare(experiment, "precision_returns")
    ]
    open_jobs = [job for job in jobs if job.read_manifest().status != "finished"]
    with remember_signals() as received:
        show_and_run(
            Local(workers=workers),
            folder,
            jobs,
            open_jobs,
            console,
            received,
            checkpoint_every=1_000,
            command="precision_returns",
        )
        received.exit_if_any()
    before = regression.read_baseline(shipped("regression"))
    rows = []
    for experiment in experiments:
        scores = regression.scores_of(folder, experiment)
        for agent, now in scores.groupby("agent", sort=False):
            task = experiment.tasks[0]
            old = before[(before["agent"] == agent) & (before["task"] == task)]
            for score in regression.SCORES:
                x, y = (part[score].to_numpy(float) for part in (now, old))
                p, _ = permutation_test(x[:, None], y[:, None])
                rows.append((agent, task, score, y.mean(), x.mean(), p))
    table = pd.DataFrame(rows, columns=["trainer", "task", "score", "float32", "bfloat16", "p"])
    table["p, Holm"] = holm(table["p"].to_numpy(float))
    print_table(table)


def rounded_experiments(names: list[str]) -> Iterator[Experiment]:
    """The regression's experiments with factors rounded, each under a name of its own."""
    rounded = regression.EVERY_AGENT | {"matmul_precision": "bfloat16"}
    with (
        patch.object(regression, "built_in_trainers", lambda: names),
        patch.object(regression, "EVERY_AGENT", rounded),
    ):
        for experiment in regression.experiments(SMALL_SEEDS):
            yield replace(experiment, name=f"rounded-{experiment.name}")


def cartpole(folder: Path, names: list[str], workers: int) -> None:
    """Print the returns on cartpole-swingup, each way."""
    rows = []
    for name in names:
        with redirect_stdout(sys.stderr):  # the progress of the jobs; the tables alone are printed
            results = run_experiment(
                f"{name},{name}[{ROUNDED}]",
                tasks=TASK,
                protocol=PROTOCOL,
                name=f"precision-{name}",
                seeds=SEEDS,
                compiled="on",
                executor=Local(workers=workers),
                results=folder,
            )
        rows.append(row_of_returns(name, results))
    print()
    print_table(pd.DataFrame(rows))


def row_of_returns(name: str, results: Results) -> dict[str, object]:
    """Return a trainer's row: its last returns each way, and what they differ by."""
    runs = select_runs(results).runs.items()
    plain, rounded = (curves.returns[:, -1] for _, curves in sorted(runs, key=lambda r: r[0]))
    low, high = stats.ttest_ind(rounded, plain, equal_var=False).confidence_interval()
    p, _ = permutation_test(rounded[:, None], plain[:, None])
    return {
        "trainer": name,
        "float32": plain.mean(),
        "bfloat16": rounded.mean(),
        "difference (95 %)": f"{rounded.mean() - plain.mean():.0f} ({low:.0f} to {high:.0f})",
        "p": p,
    }


def print_table(table: pd.DataFrame) -> None:
    """Print it as Markdown, numbers with three digits."""
    print(f"| {' | '.join(table.columns)} |\n{'| --- ' * len(table.columns)}|")
    for row in table.itertuples(index=False):
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row)
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
