"""Do the initial weights explain the seeds that learn nothing?

    python tests/benchmarks/initial_weights.py

trains every trainer with uniform and with Xavier initial weights and rewrites the tables of
docs/algorithms.md. If it is interrupted, run it again to resume. These definitions were fixed
before it ran:

- A seed is dead if its return at the end is at most 1.1 times that of the best policy that ignores
  observations: always one bound of the action box, or uniformly random actions.
- A seed has no gradient if its actor's gradient was exactly zero in every update since the last
  row but one of training.csv (1,000 steps, or the last 100 updates of 200).
- A seed is at a bound if all sampled actions at 32 fixed states have all entries at a bound.
- Returns are compared by the exact rank test of ``qsm_bench.statistics``, for each trainer (with
  Holm's adjustment over the trainers) and stratified by trainer. The default of all trainers
  becomes xavier if the stratified test finds it better at 5 %, and no single trainer is worse.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
from scipy.stats import fisher_exact

from agents.common.streams import derive_seed
from agents.protocol import Initialization
from envs import Lockstep
from qsm_bench.results import Results, load_results
from qsm_bench.statistics.estimates import STATISTICS, aggregate, bootstrap
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.significance import holm, permutation_test
from tests.benchmarks.coverage import table

BoolArray = npt.NDArray[np.bool_]

TRAINERS = ("diffusion_ql", "qsm", "diffusion_pg", "sac", "td3")
UNIFORM, XAVIER = get_args(Initialization)
TASK = "cartpole-swingup"
SMALL_TASKS = ("bimodal-bandit", "four-goals", "linear-quadratic")
WARMUP, FIRST_UPDATES = 500, 200
BLIND_MARGIN = 1.1
DOCUMENT = Path("docs/algorithms.md")
BEGIN, END = "<!-- tests/benchmarks/initial_weights.py -->\n", "<!-- end -->\n"


def column(trainer: str, initialization: str) -> str:
    """Return the agent's label."""
    return f"{trainer}[hidden_sizes=[64,64],initialization={initialization}]"


def train(name: str, results: Path, seeds: int, **options: object) -> Results:
    """Run the experiment, or resume it, in a separate process."""
    agents = ",".join(column(t, i) for t in TRAINERS for i in (UNIFORM, XAVIER))
    asked = {"seeds": seeds, "batch-size": 64, "device": "cpu", "workers": 1, **options}
    subprocess.run(
        [
            *(sys.executable, "-m", "qsm_bench", "run", "--agents", agents, "--name", name),
            *("--results", str(results)),
            *(word for key, value in asked.items() for word in (f"--{key}", str(value))),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_results(results, name)


def blind_return(episodes: int = 20) -> float:
    """Return the mean return of the best policy that ignores observations."""
    environments = Lockstep(TASK, episodes)
    rng = np.random.default_rng(0)
    shape = (episodes, environments.action_size)
    draws = (lambda: np.ones(shape), lambda: -np.ones(shape), lambda: rng.uniform(-1, 1, shape))
    means = []
    for draw in draws:
        for row in range(episodes):
            environments.reset(row, derive_seed(row, "blind", bits=31))
        total, over = np.zeros(episodes), np.zeros(episodes, bool)
        while not over.all():
            result = environments.step(draw().astype(np.float32))
            total += np.where(over, 0.0, result.reward)
            over |= result.terminated | result.truncated
        means.append(float(total.mean()))
    environments.close()
    return max(means)


def last_rows(
    rows: pd.DataFrame, trainer: str, initialization: str, task: str = TASK
) -> pd.DataFrame:
    """Return the rows of a cell's last step."""
    mine = rows[(rows["agent"] == column(trainer, initialization)) & (rows["task"] == task)]
    last: pd.DataFrame = mine[mine["step"] == mine["step"].max()]
    return last


def returns(results: Results, trainer: str, initialization: str) -> FloatArray:
    """Return each seed's mean return at the end."""
    cell = last_rows(results.evaluations, trainer, initialization)
    return cell.groupby("seed")["return"].mean().to_numpy(float)


def without_gradient(
    results: Results, trainer: str, initialization: str, task: str = TASK
) -> BoolArray:
    """Tell for each seed whether its actor's gradient was zero at the end."""
    return (
        last_rows(results.training, trainer, initialization, task)["actor_gradient_norm"] == 0
    ).to_numpy()


def interval(scores: FloatArray, statistic: str) -> str:
    """Write a statistic with its 95 % bootstrap interval."""
    at = STATISTICS.index(statistic)
    value, low, high = (x[at] for x in bootstrap(aggregate, scores[:, None]))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def fisher(marked: BoolArray, other: BoolArray) -> str:
    """Return the p-value of Fisher's exact test of two shares."""
    counts = [[int(x.sum()), int((~x).sum())] for x in (marked, other)]
    return f"{fisher_exact(counts)[1]:.2g}"


def final_rows(results: Results) -> Iterator[list[object]]:
    """Yield the rows of the first table."""
    limit = BLIND_MARGIN * blind_return()
    scores = {(t, i): returns(results, t, i) for t in TRAINERS for i in (UNIFORM, XAVIER)}
    p = [
        permutation_test(scores[t, UNIFORM][:, None], scores[t, XAVIER][:, None])[0]
        for t in TRAINERS
    ]
    for trainer, adjusted in zip(TRAINERS, holm(np.array(p)), strict=True):
        for initialization in (UNIFORM, XAVIER):
            mine = scores[trainer, initialization]
            table = last_rows(results.diagnostics, trainer, initialization)
            looks = table.get("clipped_share", pd.Series(dtype=float))
            yield [
                trainer,
                initialization,
                f"{(mine <= limit).sum()} of {len(mine)}",
                without_gradient(results, trainer, initialization).sum(),
                (looks == 1).sum() if len(looks) else "-",
                interval(mine, "mean"),
                interval(mine, "IQM"),
                f"{adjusted:.2g}" if initialization == XAVIER else "",
                fisher(*(scores[trainer, i] <= limit for i in (UNIFORM, XAVIER)))
                if initialization == XAVIER
                else "",
            ]


def over_all(results: Results) -> str:
    """Say the outcome of the test that is stratified by trainer."""
    uniform, xavier = (
        np.stack([returns(results, t, i) for t in TRAINERS], axis=1) for i in (UNIFORM, XAVIER)
    )
    p, _ = permutation_test(xavier, uniform)
    better = (np.sign(xavier[:, None] - uniform[None]).mean() + 1) / 2
    return (
        f"Over all trainers, a run with Xavier weights beats one with uniform weights with "
        f"probability {better:.2f}; exact test stratified by trainer: p = {p:.2g}."
    )


def small_rows(results: Results) -> Iterator[list[object]]:
    """Yield the rows of the second table."""
    for trainer in TRAINERS:
        for task in SMALL_TASKS:
            marked = [without_gradient(results, trainer, i, task) for i in (UNIFORM, XAVIER)]
            shares = [f"{x.sum()} of {len(x)}" for x in marked]
            yield [trainer, task, *shares, fisher(*marked)]


def final_table(results: Results) -> Iterator[str]:
    """Write the table of what the trainers learned."""
    about = results.cells[0]
    yield (
        f"On {TASK} after {about['steps']:,} steps, {about['warmup_steps']:,} of them random, with "
        f"batches of {about['batch_size']} and hidden layers of 64, 64. In brackets 95 % bootstrap "
        "intervals; p of the returns by the exact rank test, Holm-adjusted, and of the dead seeds "
        "by Fisher's exact test:"
    )
    head = ["trainer", "weights", "dead", "no gradient", "at a bound", "mean", "IQM"]
    yield from table([*head, "p (returns)", "p (dead)"], list(final_rows(results)))
    yield over_all(results)
    yield ""


def first_table(results: Results) -> Iterator[str]:
    """Write the table of whether the actors had a gradient in their first updates."""
    yield (
        f"Seeds whose actor had no gradient in updates {FIRST_UPDATES // 2 + 1} to "
        f"{FIRST_UPDATES}, and p by Fisher's exact test:"
    )
    yield from table(["trainer", "task", UNIFORM, XAVIER, "p"], list(small_rows(results)))


def main(
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.")] = 20,
    steps: Annotated[int, typer.Option(help="Steps on cartpole-swingup.")] = 15_000,
    results: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("results"),
    document: Annotated[Path, typer.Option(help="What the tables are written into.")] = DOCUMENT,
) -> None:
    """Train what is missing, and rewrite the tables of docs/algorithms.md."""

    def write(lines: list[str]) -> None:
        before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        text = "\n".join(lines)
        document.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")

    first = train(
        "initial-weights-first-updates",
        results,
        seeds,
        **{
            "tasks": ",".join(SMALL_TASKS),
            "steps": WARMUP + FIRST_UPDATES,
            "warmup-steps": WARMUP,
            "eval-every": FIRST_UPDATES // 2,
            "eval-episodes": 1,
        },
    )
    first_lines = list(first_table(first))
    write(first_lines)  # the rest takes an hour
    final = train(
        "initial-weights",
        results,
        seeds,
        **{
            "tasks": TASK,
            "steps": steps,
            "warmup-steps": 1_000,
            "eval-every": steps,
            "eval-episodes": 5,
            "checkpoint-every": 2_000,
        },
    )
    write([*final_table(final), *first_lines])


if __name__ == "__main__":
    typer.run(main)
