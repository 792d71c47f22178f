"""What would settle it: the number of seeds at which an open pair of agents would get a verdict."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.results import Results
from qsm_bench.statistics.power import POWER
from qsm_bench.statistics.selection import CellKey, Comparison, FloatArray
from qsm_bench.statistics.significance import FALSE_ALARMS, detectable_improvement, in_order

TRIED_SEEDS = 50
"""No larger number of seeds is tried, but for twice those that an agent has."""
SIMULATIONS = 2_000
StagesToCome = Sequence[tuple[int, float]]
"""Of each stage that has not been tested yet, the number of seeds, and the level of each pair that
is open now."""


def settling(
    comparison: Comparison,
    pairs: pd.DataFrame,
    seconds: Mapping[CellKey, float],
    agents: Sequence[str],
    elsewhere: Collection[str] = (),
    stages: StagesToCome | None = None,
) -> pd.DataFrame:
    """The number of seeds that would give each pair without a verdict one, see ``seeds_needed``.

    In an experiment with stages it is that of one of the ``stages`` to come, at its share of false
    alarms; that an earlier one may do is not counted on. ``pairs`` is the table of
    ``compare_all_pairs``, ``seconds`` has what one more seed of a cell costs, ``agents`` is an
    order of the agents, and those in ``elsewhere`` were measured there, and get no more seeds. The
    rows that need the fewest seeds come first. As in Holm's procedure, an open pair is tested at
    the level / the number of open pairs, as if the others stayed as they are.

    Columns:
        first, second: the agents, in the order of ``agents``.
        probability, low, high: the probability seen that a run of the first beats one of the
            second, and its interval.
        seeds_first, seeds_second: the number of seeds of each agent on each task.
        grows_first, grows_second: False for an agent that was measured elsewhere.
        needed: the number of seeds of each agent that grows; NaN if it is larger than
            ``most_tried``, or no stage to come has enough, or no agent grows, or one of them has
            a single run.
        seconds: what the added seeds cost; NaN if it is not known.
    """
    tested = pairs["p"].notna()
    table = in_order(pairs[tested & ~pairs["verdict"].astype(bool)], agents)

    def needed(x: FloatArray, y: FloatArray, grows: tuple[bool, bool]) -> int | None:
        if stages is None:
            return seeds_needed(x, y, FALSE_ALARMS / len(table), grows, most_tried(pairs))
        return next((n for n, level in stages if is_enough(x, y, n, level, grows)), None)

    rows = [
        _row(comparison, pair["first"], pair["second"], needed, seconds, elsewhere)
        for pair in table.to_dict("records")
    ]
    kept = ["first", "second", "probability", "low", "high", "seeds_first", "seeds_second"]
    columns = ["grows_first", "grows_second", "needed", "seconds"]
    table = table[kept].join(pd.DataFrame(rows, columns=columns, index=table.index))
    return table.sort_values("needed", kind="stable", ignore_index=True)


def _row(
    comparison: Comparison,
    first: str,
    second: str,
    seeds_for: Callable[[FloatArray, FloatArray, tuple[bool, bool]], int | None],
    seconds: Mapping[CellKey, float],
    elsewhere: Collection[str],
) -> tuple[bool, bool, float, float]:
    """Who grows, the number of seeds that they need, and what the added ones cost."""
    tasks = comparison.shared_tasks(first, second)
    x, y = (comparison.final_returns(agent, tasks) for agent in (first, second))
    grows = (first not in elsewhere, second not in elsewhere)
    needed = seeds_for(x, y, grows) if min(len(x), len(y)) > 1 else None
    if needed is None:
        return *grows, np.nan, np.nan
    cost = sum(
        max(0, needed - len(runs)) * seconds.get((agent, task), np.nan)
        for agent, runs, grow in zip((first, second), (x, y), grows, strict=True)
        if grow
        for task in tasks
    )
    return *grows, needed, cost


def no_estimate(need: "Mapping[Any, Any] | pd.Series[Any]") -> str | None:
    """Why the runs tell nothing of the seeds that a row of ``settling`` needs; None if they do."""
    if min(need["seeds_first"], need["seeds_second"]) == 1:
        return "one seed shows no spread, so how many would do is not known"
    if need["probability"] == 0.5:
        return "their runs show no difference"
    return None


def most_tried(pairs: pd.DataFrame) -> int:
    """The largest number of seeds that is tried for a pair of ``compare_all_pairs``."""
    now = [*pairs["seeds_better"], *pairs["seeds_worse"]]
    return max(TRIED_SEEDS, 2 * int(max(now, default=0)))


def seeds_needed(
    x: FloatArray,
    y: FloatArray,
    level: float,
    grows: tuple[bool, bool] = (True, True),
    most: int = TRIED_SEEDS,
) -> int | None:
    """The number of seeds with which a difference like the one seen gets a verdict.

    ``x`` and ``y`` are the agents' returns [seeds, tasks]. Their distribution on each task is taken
    for the true one: an experiment with more seeds is simulated by drawing runs of it. The result
    is a number with which at least ``POWER`` of the simulated experiments have p of at most
    ``level`` for the agent that is ahead in probability, while with one seed less they do not. It
    is found by bisection; the share need not rise with every seed, so a smaller number may do, too.

    Only the agents for which ``grows`` is True get more seeds; one that has more than the result
    keeps them. None if ``most`` are not enough, or no agent grows.
    """
    if not any(grows):
        return None
    fewest = min(len(runs) for runs, grow in zip((x, y), grows, strict=True) if grow)
    candidates = range(fewest + 1, most + 1)
    found = bisect_left(candidates, True, key=lambda n: is_enough(x, y, n, level, grows))
    return candidates[found] if found < len(candidates) else None


def is_enough(
    x: FloatArray, y: FloatArray, seeds: int, level: float, grows: tuple[bool, bool]
) -> bool:
    """Whether a difference like the one seen gets a verdict with so many seeds, 4 times in 5.

    Tasks on which all runs are equal do not count, as they do not in the test. See ``seeds_needed``
    for the rest.
    """
    above = np.sign(x[:, np.newaxis] - y[np.newaxis, :])
    above = above[:, :, above.any(axis=(0, 1))]
    if not above.size:
        return False
    if above.mean() < 0:
        above = -above
    n, m = (max(len(r), seeds) if g else len(r) for r, g in zip((x, y), grows, strict=True))
    return _power(above, n, m, level) >= POWER


def seconds_per_seed(results: Results) -> dict[CellKey, float]:
    """What one seed of each finished cell took: training and evaluation, in seconds.

    Seeds that were trained together have equal shares of the time of their job.
    """
    return {
        (cell["agent"], cell["task"]): (cell["train_seconds"] + cell["evaluation_seconds"])
        / len(cell["seeds"])
        for cell in results.cells
        if cell["status"] == "finished"
    }


def _power(above: FloatArray, n: int, m: int, level: float) -> float:
    """The share of simulated experiments with ``n`` and ``m`` seeds that have a verdict.

    ``above`` is 1, 0 or -1 for each run of one agent against each of the other's, and each task,
    [seeds, other's seeds, tasks]. A simulated experiment is a number of times that each run was
    drawn.
    """
    runs, others, tasks = above.shape
    x, y = _draws(n, runs, tasks, first=True), _draws(m, others, tasks, first=False)
    total = ((x @ above.transpose(2, 0, 1)) * y).sum(axis=(0, 2))
    shown = 0.5 + total / (2 * n * m * tasks)
    # Never so with NaN, where no outcome gives a verdict.
    return float((shown >= detectable_improvement(n, m, tasks, level) - 1e-12).mean())


@lru_cache(maxsize=16)
def _draws(drawn: int, runs: int, tasks: int, *, first: bool) -> FloatArray:
    """How often each run is drawn in each simulated experiment, [tasks, simulations, runs]."""
    rng = np.random.default_rng(int(first))
    shares = np.full(runs, 1 / runs)
    return rng.multinomial(drawn, shares, size=(tasks, SIMULATIONS)).astype(np.float64)
