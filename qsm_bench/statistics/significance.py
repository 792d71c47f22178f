"""Which agent is better: exact tests on pairs of agents, and the smallest effects they detect."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache, reduce
from itertools import permutations, product
from math import comb, factorial, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.stages import FALSE_ALARMS as FALSE_ALARMS
from qsm_bench.statistics.estimates import bootstrap
from qsm_bench.statistics.selection import Comparison, FloatArray

AgentPair = tuple[str, str, Sequence[str]]
"""The labels of two agents, and the tasks on which they are compared."""

EXACT_RUNS = 100
"""Of each of two agents on a task. With more, the sum of ranks is taken as normal: its exact
distribution would take seconds, and soon all memory."""

DIRECT_PRODUCTS = 4e9
"""Up to about so many products, the distributions of several tasks are added up one by one."""


def compare_all_pairs(comparison: Comparison) -> pd.DataFrame:
    """Apply ``compare_pairs`` to ``Comparison.pairs``, on the tasks on which both have runs.

    Two agents of a record are no pair: whoever adds an agent asks how it compares with them. Its
    pairs are then fewer, so a smaller difference is enough for a verdict.
    """
    return compare_pairs(comparison, with_tasks(comparison, comparison.pairs))


def with_tasks(comparison: Comparison, pairs: Sequence[tuple[str, str]]) -> list[AgentPair]:
    """The pairs that share a task, each with the tasks on which both agents have runs."""
    shared = [(first, second, comparison.shared_tasks(first, second)) for first, second in pairs]
    return [pair for pair in shared if pair[2]]


def compare_pairs(comparison: Comparison, pairs: Sequence[AgentPair]) -> pd.DataFrame:
    """Describe and test each pair of agents on its tasks. Returns a row for each pair.

    Score ranges are not needed: everything depends only on the order of returns within a task.

    The columns are those of ``describe_pairs`` and of ``check_pairs``.
    """
    described, tested = describe_pairs(comparison, pairs), check_pairs(comparison, pairs)
    return pd.concat([described, tested], axis=1)


def describe_pairs(comparison: Comparison, pairs: Sequence[AgentPair]) -> pd.DataFrame:
    """Say of each pair of agents which is ahead on its tasks. Returns a row for each pair.

    Columns:
        better, worse: the agents; "better" has the higher probability of improvement.
        tasks: the number of tasks.
        wins, ties: the number of tasks on which the mean return of "better" is higher, or equal.
        seeds_better, seeds_worse: the number of seeds of each agent on each task.
        probability, low, high: the probability of improvement (ties count half) and its interval.
    """
    columns = ["better", "worse", "tasks", "wins", "ties", "seeds_better", "seeds_worse"]
    rows = [_pair(comparison, *pair) for pair in pairs]
    return pd.DataFrame(rows, columns=[*columns, "probability", "low", "high"])


def check_pairs(
    comparison: Comparison,
    pairs: Sequence[AgentPair],
    *,
    level: float = FALSE_ALARMS,
    tests: int | None = None,
) -> pd.DataFrame:
    """Test each pair of agents on its tasks at ``level``. Returns a row for each pair.

    ``tests`` is the number of tests among which these are, if it is larger: a pair that cannot be
    tested counts as one without a verdict.

    Columns:
        p: the p-value after Holm's adjustment over all tests, times ``FALSE_ALARMS`` / ``level``.
        attainable: False if so few runs could not have led to a verdict, whatever their returns.
        verdict: True if p is at most ``FALSE_ALARMS``.
        detectable: for a pair without a verdict, the smallest probability of improvement that
            would have led to one, with no ties and the other pairs unchanged; NaN if there is none.
    """
    returns = [[comparison.final_returns(agent, pair[2]) for agent in pair[:2]] for pair in pairs]
    untested = max(0, (tests or 0) - len(pairs))
    found = np.array([permutation_test(x, y) for x, y in returns]).reshape(-1, 2)
    p = _adjusted(found[:, 0], untested, level)
    verdict = p <= FALSE_ALARMS
    # Holm's procedure tests a pair without a verdict at the level / the number of such pairs.
    each = level / max(1, untested + (~verdict).sum())
    return pd.DataFrame(
        {
            "p": p,
            # The best outcome has every pair at its smallest p. With unequal numbers of seeds, ties
            # can make p still smaller.
            "attainable": _adjusted(found.min(axis=1), untested, level) <= FALSE_ALARMS,
            "verdict": verdict,
            "detectable": [
                np.nan if known else detectable_improvement(len(x), len(y), x.shape[1], each)
                for (x, y), known in zip(returns, verdict, strict=True)
            ],
        }
    )


def _adjusted(p: FloatArray, untested: int, level: float) -> FloatArray:
    """Holm's adjustment of the p-values [tests], for a comparison with ``FALSE_ALARMS``."""
    adjusted = holm(np.append(p, np.ones(untested)))[: len(p)]
    return np.minimum(1.0, adjusted * (FALSE_ALARMS / level))


def names_better(pairs: pd.DataFrame) -> "pd.Series[bool]":
    """For each row of ``compare_pairs``, whether "better" may be called better than "worse".

    There is a verdict, and the mean return of "better" is higher on a task at least, and on half of
    them; a task with equal means counts half. The two can disagree: one agent may win more runs by
    a little, and the other fewer by a lot.
    """
    half = 2 * pairs["wins"] + pairs["ties"] >= pairs["tasks"]
    return pairs["verdict"].astype(bool) & (pairs["wins"] > 0) & half


def in_order(pairs: pd.DataFrame, agents: Sequence[str]) -> pd.DataFrame:
    """The rows of ``compare_pairs`` so that no agent of an open pair stands out.

    The columns are the same, with "first" and "second" in place of "better" and "worse". Where
    there is no verdict, the two stand in the order of ``agents``, and probability, low, high and
    wins are the first's. The rows are sorted in this order, too.
    """
    table = pairs.rename(columns=lambda c: c.replace("better", "first").replace("worse", "second"))
    rank = {agent: i for i, agent in enumerate(agents)}
    turned = ~table["verdict"].astype(bool) & (table["first"].map(rank) > table["second"].map(rank))
    for one, other in (("first", "second"), ("seeds_first", "seeds_second"), ("low", "high")):
        table.loc[turned, [one, other]] = table.loc[turned, [other, one]].to_numpy()
    table.loc[turned, ["probability", "low", "high"]] = 1 - table[["probability", "low", "high"]]
    table.loc[turned, "wins"] = table["tasks"] - table["wins"] - table["ties"]
    return table.sort_values(
        ["first", "second"], key=lambda names: names.map(rank), kind="stable", ignore_index=True
    )


def probability_of_improvement(x: FloatArray, y: FloatArray) -> FloatArray:
    """P(X > Y) + P(X = Y) / 2, averaged over tasks, as an array [1].

    ``x`` and ``y`` are returns [seeds, tasks]. The value equals that of rliable's function of this
    name, which is slower because it also computes a p-value for each task.
    """
    above = np.sign(x[:, np.newaxis] - y[np.newaxis, :])
    return np.atleast_1d((1.0 + above.mean()) / 2.0)


def permutation_test(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Exact two-sided test of the hypothesis that the agents are equal on every task.

    ``x`` and ``y`` are the agents' returns [seeds, tasks]. Under the hypothesis, the runs of a task
    can be exchanged between the agents. The statistic is the rank sum of ``x`` (Wilcoxon's, with
    mid-ranks for ties) summed over tasks; it is equivalent to the probability of improvement. Of
    more runs than ``is_exact`` allows it is taken as normal. Returns p, and the smallest p that is
    possible with these numbers of runs and no ties.
    """
    from scipy.stats import rankdata

    n, m, tasks = len(x), len(y), x.shape[1]
    ranks = np.rint(2 * rankdata(np.concatenate([x, y]), axis=0)).astype(np.int64)
    distance = abs(int(ranks[:n].sum()) - n * (n + m + 1) * tasks)
    if is_exact(n, m):
        columns = tuple(tuple(sorted(column)) for column in ranks.T.tolist())
        p = float(_tails(columns, *sorted((n, m)))[distance])
    else:
        variance = n * m / (n + m) * float(ranks.var(axis=0, ddof=1).sum())
        p = 2 * NormalDist().cdf(-distance / sqrt(variance)) if variance else 1.0
    return p, smallest_p(n, m, tasks)


def is_exact(n: int, m: int) -> bool:
    """Whether ``n`` and ``m`` runs have no more sums to count than twice ``EXACT_RUNS`` have."""
    return min(n, m) * (n + m) ** 2 <= EXACT_RUNS * (2 * EXACT_RUNS) ** 2


def smallest_p(n: int, m: int, tasks: int) -> float:
    """The smallest p of two agents with ``n`` and ``m`` runs on each task, with no ties."""
    return min(1.0, 2 / _ways(n, m, tasks))


def sign_test(successes: int, trials: int) -> float:
    """Exact two-sided p of the hypothesis that a success and a failure are equally likely.

    It is 1 without a trial.
    """
    farther = max(successes, trials - successes)
    tail = sum(comb(trials, k) for k in range(farther, trials + 1))
    return min(1.0, float(Fraction(2 * tail, 2**trials)))


def trend_test(values: FloatArray) -> tuple[float, float]:
    """Exact two-sided test of the hypothesis that no row of ``values`` [rows, levels] has a trend.

    Under the hypothesis, the values of a row can be exchanged between the levels. The statistic is
    that of Page (1963), with mid-ranks for ties: equivalent to the mean over rows of Spearman's
    rank correlation of value and level. Returns that mean (ties make it smaller), and p.
    """
    from scipy.stats import rankdata

    rows, levels = values.shape
    ranks = np.rint(2 * rankdata(values, axis=1)).astype(np.int64).tolist()
    ways = Counter({0: 1})
    for row in ranks:
        one = Counter(_trend(order) for order in permutations(row))
        both: Counter[int] = Counter()
        for (a, ways_a), (b, ways_b) in product(ways.items(), one.items()):
            both[a + b] += ways_a * ways_b
        ways = both
    total = sum(map(_trend, ranks))
    as_far = sum(count for trend, count in ways.items() if abs(trend) >= abs(total))
    rising = rows * _trend(range(2, 2 * levels + 1, 2))
    return total / rising, as_far / factorial(levels) ** rows


def _trend(doubled_ranks: Sequence[int]) -> int:
    """The covariance of doubled ranks and levels, times their number: 0 if there is no trend."""
    levels = len(doubled_ranks)
    products = (level * rank for level, rank in enumerate(doubled_ranks, start=1))
    return sum(products) - levels * (levels + 1) ** 2 // 2


@cache
def detectable_improvement(n: int, m: int, tasks: int, level: float) -> float:
    """The smallest probability of improvement whose p is at most ``level``, with no ties.

    The agents have ``n`` and ``m`` runs on each task. NaN if no p is so small with so few runs.
    """
    if smallest_p(n, m, tasks) > level:
        return np.nan
    comparisons = n * m * tasks
    if not is_exact(n, m):
        return 0.5 - NormalDist().inv_cdf(level / 2) * sqrt((n + m + 1) / (12 * comparisons))
    tails = _tails((tuple(range(2, 2 * (n + m) + 1, 2)),) * tasks, *sorted((n, m)))
    distances = np.arange(comparisons % 2, comparisons + 1, 2)
    return 0.5 + float(distances[tails[distances] <= level][0]) / (2 * comparisons)


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjustment of the p-values [tests].

    If every hypothesis with an adjusted p of at most alpha is rejected, the probability of any
    false rejection is at most alpha.
    """
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
    }


def _exact_means(returns: FloatArray) -> list[Fraction]:
    """The mean over seeds on each task, as fractions.

    Equal means then compare as equal, in any order and number of seeds.
    """
    return [sum(map(Fraction, column), Fraction()) / len(column) for column in returns.T.tolist()]


@lru_cache
def _rank_sums(doubled_ranks: tuple[int, ...], size: int) -> FloatArray:
    """The probability of each sum of ``size`` ranks, if every choice of ranks is equally likely."""
    total = sum(doubled_ranks)
    ways = np.zeros((size + 1, total + 1))
    ways[0, 0] = 1.0
    for rank in doubled_ranks:
        ways[1:, rank:] += ways[:-1, : total + 1 - rank].copy()
    chosen: FloatArray = ways[size] / comb(len(doubled_ranks), size)
    return chosen


def _ways(n: int, m: int, tasks: int) -> int:
    """In how many ways the runs of each task can be dealt to two agents."""
    ways: int = comb(n + m, n) ** tasks
    return ways


@lru_cache
def _tails(doubled_ranks: tuple[tuple[int, ...], ...], n: int, m: int) -> FloatArray:
    """The probability that the sum of ``n`` ranks of each task differs from its mean by at least d.

    Indexed by d. The other ``m`` differ by as much, so ``n`` may be the smaller number.
    """
    from scipy.signal import fftconvolve

    sums = [_rank_sums(ranks, n) for ranks in doubled_ranks]
    # Fourier transforms round to some 1e-16, and are for what would otherwise take seconds.
    direct = sum(map(len, sums)) ** 2 <= DIRECT_PRODUCTS
    distribution = reduce(np.convolve if direct else fftconvolve, sums)
    distance = np.abs(np.arange(len(distribution)) - n * (n + m + 1) * len(doubled_ranks))
    tails = np.bincount(distance, distribution)[::-1].cumsum()[::-1]
    ways = _ways(n, m, len(doubled_ranks))
    if ways < 2**40:
        # p is a ratio of counts: no rounding error may lift it above the level it meets.
        tails = np.rint(tails * ways) / ways
    bounded: FloatArray = np.clip(tails, 0.0, 1.0)
    return bounded
