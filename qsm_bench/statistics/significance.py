"""Which agent is better: exact tests on pairs of agents, and what they could have seen."""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache, reduce
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.statistics.estimates import bootstrap
from qsm_bench.statistics.selection import Comparison, FloatArray

Couple = tuple[str, str, Sequence[str]]
"""Two agents' labels and the tasks they are compared on."""
FALSE_ALARMS = 0.05
"""The share of experiments on equal agents in which any verdict may name a better one."""


def pairs(comparison: Comparison) -> pd.DataFrame:
    """``judge`` every pair of agents on the tasks that both have runs on."""
    couples = [
        (first, second, comparison.shared_tasks(first, second))
        for first, second in combinations(comparison.agents, 2)
    ]
    return judge(comparison, [couple for couple in couples if couple[2]])


def judge(comparison: Comparison, couples: Sequence[Couple]) -> pd.DataFrame:
    """Couples of agents on some tasks, the one ahead named first.

    Needs no score range: all of it rests on the order of returns within a task. Columns: better,
    worse (the one ahead and the other), tasks, wins, ties (tasks on which the former's mean return
    is higher, or equal), seeds_better, seeds_worse, probability (of improvement; ties count half),
    low, high, p (Holm's over all couples), attainable (False if no outcome of so few runs could
    have led to a verdict on this couple), verdict (True if p is at most ``FALSE_ALARMS``),
    detectable (without a verdict, the smallest probability of improvement, of runs without ties,
    that would have been one, all other couples being as they are; NaN if none).
    """
    rows = [_pair(comparison, *couple) for couple in couples]
    columns = ["better", "worse", "tasks", "wins", "ties", "seeds_better", "seeds_worse"]
    table = pd.DataFrame(rows, columns=[*columns, "probability", "low", "high", "p", "floor"])
    p = table["p"].to_numpy(dtype=np.float64)
    floor = table.pop("floor").to_numpy(dtype=np.float64)
    table["p"] = holm(p)
    # The best outcome is every couple at its floor; ties can take one of unequal seeds below it.
    table["attainable"] = holm(np.minimum(p, floor)) <= FALSE_ALARMS
    table["verdict"] = table["p"] <= FALSE_ALARMS
    # Holm holds a couple without a verdict to the level over the number of such couples.
    level = FALSE_ALARMS / max(1, (~table["verdict"]).sum())
    table["detectable"] = [
        np.nan if verdict else detectable_improvement(n, m, tasks, level)
        for n, m, tasks, verdict in zip(
            *(table[c] for c in ("seeds_better", "seeds_worse", "tasks", "verdict")), strict=True
        )
    ]
    return table


def probability_of_improvement(x: FloatArray, y: FloatArray) -> FloatArray:
    """P(X > Y) + P(X = Y) / 2 averaged over tasks, from returns [seeds, tasks].

    The same number as rliable's function of this name, without a test's p-value a task, which is
    what takes its time.
    """
    above = np.sign(x[:, np.newaxis] - y[np.newaxis, :])
    return np.atleast_1d((1.0 + above.mean()) / 2.0)


def permutation_test(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Exact two-sided test that x and y [seeds, tasks] come from equal agents on every task.

    Under that hypothesis a task's runs may be exchanged between the agents. The statistic is the
    rank sum of x (Wilcoxon's, with mid-ranks for ties) added over tasks, that is, the probability
    of improvement. Returns p and the smallest p that so many runs without ties could have given.
    """
    from scipy.stats import rankdata

    n, m, tasks = len(x), len(y), x.shape[1]
    ranks = np.rint(2 * rankdata(np.concatenate([x, y]), axis=0)).astype(np.int64)
    tails = _tails([_rank_sums(tuple(sorted(column)), n) for column in ranks.T.tolist()], n, m)
    p = float(tails[abs(ranks[:n].sum() - n * (n + m + 1) * tasks)])
    return p, min(1.0, 2 / comb(n + m, n) ** tasks)


@cache
def detectable_improvement(n: int, m: int, tasks: int, level: float) -> float:
    """The smallest probability of improvement whose p is at most ``level``, of runs without ties.

    NaN if so few runs, n against m on each task, have none.
    """
    one_task = _rank_sums(tuple(range(2, 2 * (n + m) + 1, 2)), n)
    tails = _tails([one_task] * tasks, n, m)
    attained = np.diff(tails, append=0.0) < 0
    seen = np.flatnonzero(attained & (tails <= level))
    return 0.5 + float(seen[0]) / (2 * n * m * tasks) if len(seen) else np.nan


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjustment: rejecting at alpha errs anywhere with at most rate alpha."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted


def _pair(comparison: Comparison, first: str, second: str, tasks: Sequence[str]) -> dict[str, Any]:
    x, y = comparison.final_returns(first, tasks), comparison.final_returns(second, tasks)
    if probability_of_improvement(x, y)[0] < 0.5:
        first, second, x, y = second, first, y, x
    value, low, high = bootstrap(probability_of_improvement, x, y)
    margins = [mx - my for mx, my in zip(_exact_means(x), _exact_means(y), strict=True)]
    p, floor = permutation_test(x, y)
    return {
        "better": first,
        "worse": second,
        "tasks": len(tasks),
        "wins": sum(margin > 0 for margin in margins),
        "ties": sum(margin == 0 for margin in margins),
        "seeds_better": len(x),
        "seeds_worse": len(y),
        "probability": value[0],
        "low": low[0],
        "high": high[0],
        "p": p,
        "floor": floor,
    }


def _exact_means(returns: FloatArray) -> list[Fraction]:
    """Each task's mean over seeds, so that equal returns tie in any order and number."""
    return [sum(map(Fraction, column), Fraction()) / len(column) for column in returns.T.tolist()]


@lru_cache
def _rank_sums(doubled_ranks: tuple[int, ...], size: int) -> FloatArray:
    """Probability of every sum of ``size`` of the ranks, all choices being equally likely."""
    total = sum(doubled_ranks)
    ways = np.zeros((size + 1, total + 1))
    ways[0, 0] = 1.0
    for rank in doubled_ranks:
        ways[1:, rank:] += ways[:-1, : total + 1 - rank].copy()
    chosen: FloatArray = ways[size] / comb(len(doubled_ranks), size)
    return chosen


def _tails(rank_sums: Sequence[FloatArray], n: int, m: int) -> FloatArray:
    """Probability that the sum of independent rank sums is at least [distance] off its mean."""
    distribution = reduce(np.convolve, rank_sums)
    distance = np.abs(np.arange(len(distribution)) - n * (n + m + 1) * len(rank_sums))
    tails = np.bincount(distance, distribution)[::-1].cumsum()[::-1]
    ways = comb(n + m, n) ** len(rank_sums)
    if ways < 2**40:
        # p is a ratio of counts: no rounding error may lift it above the level it meets.
        tails = np.rint(tails * ways) / ways
    bounded: FloatArray = np.minimum(1.0, tails)
    return bounded
