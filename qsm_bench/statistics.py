"""What the runs of an experiment say about its agents: scores, intervals, pairwise verdicts.

Point estimates and stratified bootstrap intervals are rliable's (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021). Verdicts rest on an
exact permutation test instead, because bootstrap intervals from a handful of seeds are too narrow
and the test holds its false-alarm rate with any number of seeds.

The score of a run (one seed on one task) is its mean return over the episodes of its last
evaluation, never of its best one. The same data give the same numbers, to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, lru_cache, reduce
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qsm_bench.errors import UserError
from qsm_bench.results import Results

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CellKey = tuple[str, str]
"""An agent's label and a task's name."""
Couple = tuple[str, str, Sequence[str]]
"""Two agents' labels and the tasks they are compared on."""
ScoreRange = tuple[float, float]

REPLICATIONS = 2_000
CONFIDENCE = 0.95
FALSE_ALARMS = 0.05
"""The share of experiments on equal agents in which any verdict may name a better one."""

STATISTICS = ("IQM", "median", "mean", "optimality gap")
AT_END, AREA = "at the end", "area under the curve"


@dataclass(frozen=True)
class Curves:
    """The evaluations of one cell: mean return over an evaluation's episodes."""

    seeds: tuple[int, ...]
    steps: IntArray
    """[steps]"""
    returns: FloatArray
    """[seeds, steps], raw; NaN where a run diverged."""

    def select(self, seeds: Sequence[int], steps: IntArray) -> "Curves":
        """The part with these seeds and steps, all of which must be there."""
        rows = [self.seeds.index(seed) for seed in seeds]
        columns = np.searchsorted(self.steps, steps)
        return Curves(tuple(seeds), steps, self.returns[rows][:, columns])

    def finite_seeds(self) -> tuple[int, ...]:
        """The seeds without a NaN or infinity."""
        rows = zip(self.seeds, self.returns, strict=True)
        return tuple(seed for seed, returns in rows if np.isfinite(returns).all())


@dataclass(frozen=True)
class Comparison:
    """Which runs are compared at which steps, and what had to be left out.

    On each task all agents are compared at the same steps: those at which every cell with runs to
    compare was evaluated. In a finished experiment that is all of them.
    """

    agents: tuple[str, ...]
    """The agents with at least one run to compare, in the order they were asked for."""
    tasks: tuple[str, ...]
    """The tasks with at least one run to compare."""
    runs: Mapping[CellKey, Curves]
    """Finite curves at the common steps of their task."""
    score_ranges: Mapping[str, ScoreRange | None]
    left_out: tuple[str, ...]
    """One sentence for everything that is not in ``runs``, the aggregates or a pair."""

    def shared_tasks(self, *agents: str) -> tuple[str, ...]:
        """The tasks on which all of ``agents`` have runs."""
        return tuple(t for t in self.tasks if all((a, t) in self.runs for a in agents))

    @property
    def aggregate_tasks(self) -> tuple[str, ...]:
        """The tasks that aggregates are over: every agent has runs, and the range is known."""
        return tuple(t for t in self.shared_tasks(*self.agents) if self.score_ranges[t])

    def steps(self, task: str) -> IntArray:
        """The steps at which ``task`` is compared."""
        return next(runs.steps for (_, t), runs in self.runs.items() if t == task)

    def balanced(self, agent: str, tasks: Sequence[str]) -> list[FloatArray]:
        """Raw returns [seeds, steps] on each task, the same number of seeds on each.

        rliable wants as many runs on one task as on another. Runs on different tasks are
        independent, so where one task has fewer, the lowest-numbered seeds of the others serve.
        """
        curves = [self.runs[agent, task].returns for task in tasks]
        count = min(len(c) for c in curves)
        return [c[:count] for c in curves]

    def final_returns(self, agent: str, tasks: Sequence[str]) -> FloatArray:
        """Raw returns of the last evaluation, [seeds, tasks]."""
        return np.stack([c[:, -1] for c in self.balanced(agent, tasks)], axis=1)

    def scores(self, agent: str, when: str = AT_END) -> FloatArray:
        """Normalised scores on the aggregate tasks, [seeds, tasks]."""
        tasks = self.aggregate_tasks
        columns = [
            normalised(c, self.score_ranges[task])
            for c, task in zip(self.balanced(agent, tasks), tasks, strict=True)
        ]
        return np.stack([c[:, -1] if when == AT_END else c.mean(axis=1) for c in columns], axis=1)

    def score_curves(self, agent: str) -> tuple[IntArray, FloatArray]:
        """Steps that all aggregate tasks have, and normalised scores [seeds, tasks, steps]."""
        tasks = self.aggregate_tasks
        steps = _common([self.steps(task) for task in tasks])
        return steps, np.stack(
            [
                normalised(c, self.score_ranges[task])[:, np.searchsorted(self.steps(task), steps)]
                for c, task in zip(self.balanced(agent, tasks), tasks, strict=True)
            ],
            axis=1,
        )


def normalised(returns: FloatArray, score_range: ScoreRange | None) -> FloatArray:
    """Map ``score_range`` to [0, 1] linearly; values outside it stay outside."""
    if score_range is None:
        raise ValueError("a task without a score range has no normalised scores")
    low, high = score_range
    return (returns - low) / (high - low)


def learning_curves(results: Results) -> dict[CellKey, Curves]:
    """The complete evaluations of every cell that has any.

    An evaluation is complete when every seed of the cell that was ever evaluated has all its
    episodes; what a running job is just writing is not, down to a row that breaks off.
    """
    curves = {}
    cells = {(c["agent"], c["task"]): c for c in results.cells}
    whole_rows = results.evaluations.dropna(subset=["length"])
    for key, rows in whole_rows.groupby(["agent", "task"], sort=False):
        agent, task = str(key[0]), str(key[1])
        returns = rows.groupby(["seed", "step"])["return"]
        table = returns.mean().where(returns.count() == returns.size()).unstack("step")
        episodes = cells[agent, task]["eval_episodes"]
        complete = (returns.size().unstack("step") >= episodes).all(axis=0).to_numpy()
        if complete.any():
            curves[agent, task] = Curves(
                tuple(int(seed) for seed in table.index),
                table.columns.to_numpy(dtype=np.int64)[complete],
                table.to_numpy(dtype=np.float64)[:, complete],
            )
    return curves


@dataclass(frozen=True)
class Analysis:
    """All tables of an experiment, each computed once, when it is first wanted."""

    results: Results

    @cached_property
    def comparison(self) -> Comparison:
        """The runs to compare. Raises UserError if there are none."""
        return compare(self.results)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """See ``pairs``."""
        return pairs(self.comparison)

    @cached_property
    def aggregates(self) -> pd.DataFrame:
        """See ``aggregates``."""
        return aggregates(self.comparison)

    @cached_property
    def task_curves(self) -> pd.DataFrame:
        """See ``task_curves``: of every cell, at all its evaluations."""
        return task_curves(learning_curves(self.results))


def compare(results: Results) -> Comparison:
    """Select the runs to compare. Raises UserError if there is no evaluation at all."""
    curves = learning_curves(results)
    if not curves:
        raise UserError(
            f"experiment {results.name!r} has no evaluations yet: there is nothing to report "
            "before the first one"
        )
    runs: dict[CellKey, Curves] = {}
    left_out: list[str] = []
    for task in tasks_of(results):
        task_runs, reasons = _select_runs(task, curves, results)
        runs |= task_runs
        left_out += reasons
    comparison = Comparison(
        agents=tuple(a for a in agents_of(results) if any(a == agent for agent, _ in runs)),
        tasks=tuple(t for t in tasks_of(results) if any(t == task for _, task in runs)),
        runs=runs,
        score_ranges=_score_ranges(results),
        left_out=(),
    )
    left_out += _left_out_of_aggregates(comparison, results)
    left_out += _left_out_of_balance(comparison)
    return replace(comparison, left_out=tuple(left_out))


def agents_of(results: Results) -> list[str]:
    """The agents' labels: as asked for, then any other on disk."""
    return list(
        dict.fromkeys([*results.experiment["agents"], *(c["agent"] for c in results.cells)])
    )


def tasks_of(results: Results) -> list[str]:
    """The tasks' names: as asked for, then any other on disk."""
    return list(dict.fromkeys([*results.experiment["tasks"], *(c["task"] for c in results.cells)]))


def bootstrap(
    statistic: Callable[..., FloatArray], *scores: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A statistic of one or more score arrays with its stratified bootstrap percentile interval.

    scores: [seeds, tasks, ...] each; seeds are resampled within each task. Returns value, low and
    high, each [outputs of statistic]; the bounds are NaN where any array has a single seed, since
    it says nothing about the spread.
    """
    from rliable import library

    value = np.atleast_1d(statistic(*scores))
    if min(len(array) for array in scores) < 2:
        missing = np.full_like(value, np.nan)
        return value, missing, missing
    with _fixed_random_state():
        _, intervals = library.get_interval_estimates(
            {"": scores[0] if len(scores) == 1 else list(scores)},
            statistic,
            reps=REPLICATIONS,
            confidence_interval_size=CONFIDENCE,
        )
    low, high = intervals[""]
    return value, low, high


def aggregates(comparison: Comparison) -> pd.DataFrame:
    """rliable's aggregates of normalised scores.

    Columns: agent, measured (at the end, or area under the curve: the mean over evaluations),
    statistic, value, low, high, seeds, tasks. Empty if no task can be aggregated.
    """
    tables = [
        pd.DataFrame(
            {
                "agent": agent,
                "measured": when,
                "statistic": STATISTICS,
                **_bounds(bootstrap(aggregate, scores := comparison.scores(agent, when))),
                "seeds": scores.shape[0],
                "tasks": scores.shape[1],
            }
        )
        for agent in (comparison.agents if comparison.aggregate_tasks else ())
        for when in (AT_END, AREA)
    ]
    columns = ["agent", "measured", "statistic", "value", "low", "high", "seeds", "tasks"]
    return _stack(tables, columns)


def aggregate(scores: FloatArray) -> FloatArray:
    """rliable's aggregates of scores [seeds, tasks], in the order of ``STATISTICS``."""
    from rliable import metrics

    return np.array(
        [
            interquartile_mean(scores.ravel()),
            metrics.aggregate_median(scores),
            metrics.aggregate_mean(scores),
            metrics.aggregate_optimality_gap(scores),
        ]
    )


def interquartile_mean(runs: FloatArray) -> FloatArray:
    """Mean over the first axis without its lowest and highest quarter, [...].

    The same number as rliable's aggregate of this name, for many columns at once.
    """
    cut = len(runs) // 4
    middle: FloatArray = np.sort(runs, axis=0)[cut : len(runs) - cut].mean(axis=0)
    return middle


def performance_profiles(comparison: Comparison) -> pd.DataFrame:
    """Share of runs with a normalised score above each threshold, at the end of training.

    Columns: agent, score, value, low, high.
    """
    agents = comparison.agents if comparison.aggregate_tasks else ()
    scores = {agent: comparison.scores(agent) for agent in agents}
    ends = [end for runs in scores.values() for end in (runs.min(), runs.max())]
    thresholds = np.linspace(min([0.0, *ends]), max([1.0, *ends]), 101)

    def profile(runs: FloatArray) -> FloatArray:
        share: FloatArray = (runs[..., np.newaxis] > thresholds).mean(axis=(0, 1))
        return share

    tables = [
        pd.DataFrame({"agent": agent, "score": thresholds, **_bounds(bootstrap(profile, runs))})
        for agent, runs in scores.items()
    ]
    return _stack(tables, ["agent", "score", "value", "low", "high"])


def aggregate_curves(comparison: Comparison) -> pd.DataFrame:
    """IQM over tasks and seeds at each step that all aggregate tasks have.

    Columns: agent, step, value, low, high.
    """

    def iqm(scores: FloatArray) -> FloatArray:
        return interquartile_mean(scores.reshape(-1, scores.shape[-1]))

    tables = []
    for agent in comparison.agents if comparison.aggregate_tasks else ():
        steps, scores = comparison.score_curves(agent)
        if len(steps):
            bounds = _bounds(bootstrap(iqm, scores))
            tables.append(pd.DataFrame({"agent": agent, "step": steps, **bounds}))
    return _stack(tables, ["agent", "step", "value", "low", "high"])


def task_curves(curves: Mapping[CellKey, Curves]) -> pd.DataFrame:
    """Mean raw return over the finite seeds of each cell, at all its evaluations.

    Columns: task, agent, step, value, low, high, seeds.
    """

    def mean(returns: FloatArray) -> FloatArray:
        over_seeds: FloatArray = returns.mean(axis=(0, 1))
        return over_seeds

    tables = []
    for (agent, task), curve in curves.items():
        seeds = curve.finite_seeds()
        if seeds:
            returns = curve.select(seeds, curve.steps).returns
            bounds = _bounds(bootstrap(mean, returns[:, np.newaxis]))
            columns = {"task": task, "agent": agent, "step": curve.steps}
            tables.append(pd.DataFrame({**columns, **bounds, "seeds": len(seeds)}))
    return _stack(tables, ["task", "agent", "step", "value", "low", "high", "seeds"])


def final_scores(comparison: Comparison) -> pd.DataFrame:
    """Every run that is compared: task, agent, seed, step, return, area, score.

    area is the mean return over evaluations; score the normalised return, NaN without a range.
    """
    tables = []
    for (agent, task), runs in comparison.runs.items():
        last, score_range = runs.returns[:, -1], comparison.score_ranges[task]
        tables.append(
            pd.DataFrame(
                {
                    "task": task,
                    "agent": agent,
                    "seed": runs.seeds,
                    "step": runs.steps[-1],
                    "return": last,
                    "area": runs.returns.mean(axis=1),
                    "score": normalised(last, score_range) if score_range else np.nan,
                }
            )
        )
    return _stack(tables, ["task", "agent", "seed", "step", "return", "area", "score"])


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


def _select_runs(
    task: str, curves: Mapping[CellKey, Curves], results: Results
) -> tuple[dict[CellKey, Curves], list[str]]:
    """The runs to compare on one task, and a sentence for everything on it that cannot be."""
    cells = {cell["agent"]: cell for cell in results.cells if cell["task"] == task}
    finite: dict[CellKey, Curves] = {}
    reasons = []
    for agent in agents_of(results):
        cell, curve = cells.get(agent), curves.get((agent, task))
        if cell is None:
            reasons.append(f"{agent} on {task}: it was not run.")
        elif cell["status"] == "failed":
            why = f" ({cell['reason']})" if cell["reason"] else ""
            reasons.append(f"{agent} on {task}: it failed{why}.")
        elif curve is None:
            reasons.append(f"{agent} on {task}: no complete evaluation.")
        else:
            seeds = curve.finite_seeds()
            for seed in sorted({*cell["seeds"], *curve.seeds} - {*seeds}):
                why = "a return is not finite" if seed in curve.seeds else "no evaluation"
                reasons.append(f"{agent} on {task}, seed {seed}: {why}.")
            if seeds:
                finite[agent, task] = curve.select(seeds, curve.steps)
    steps = _common([curve.steps for curve in finite.values()])
    if finite and not len(steps):
        return {}, [*reasons, f"{task}: its agents were never evaluated at the same step."]
    if finite:
        due = {step for curve in finite.values() for step in curve.steps.tolist()}
        due |= {step for agent, _ in finite for step in _schedule(cells[agent])}
        reasons += _left_out_steps(task, steps.tolist(), sorted(due))
    return {key: curve.select(curve.seeds, steps) for key, curve in finite.items()}, reasons


def _schedule(cell: Mapping[str, Any]) -> list[int]:
    """The steps at which a cell is evaluated once it has finished."""
    return [*range(cell["eval_every"], cell["steps"], cell["eval_every"]), cell["steps"]]


def _left_out_steps(task: str, steps: Sequence[int], due: Sequence[int]) -> list[str]:
    """Sentences for the steps that evaluations were made at, or should be, and not compared at."""
    why = "not every agent and seed has a complete evaluation there"
    last, end = steps[-1], due[-1]
    gaps = [f"{step:,}" for step in due if step < last and step not in steps]
    reasons = [f"{task}, at step {', '.join(gaps)}: {why}."] if gaps else []
    return [*reasons, f"{task}, after step {last:,} of {end:,}: {why}."] if end > last else reasons


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


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """rliable draws from NumPy's global generator, whatever ``random_state`` it is given."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


def _left_out_of_aggregates(comparison: Comparison, results: Results) -> list[str]:
    reasons = []
    for agent in agents_of(results):
        if agent not in comparison.agents:
            reasons.append(f"{agent}: it has no run to compare.")
    shared = comparison.shared_tasks(*comparison.agents)
    for task in comparison.tasks:
        if task not in shared:
            absent = [a for a in comparison.agents if (a, task) not in comparison.runs]
            reasons.append(f"{task} from the aggregates: no run of {', '.join(absent)}.")
        elif not comparison.score_ranges[task]:
            reasons.append(f"{task} from the aggregates: the range of its scores is not known.")
    common = _common([comparison.steps(task) for task in comparison.aggregate_tasks])
    for task in comparison.aggregate_tasks:
        if count := len(comparison.steps(task)) - len(common):
            reasons.append(
                f"{task} from the aggregate learning curve, {count} evaluations: not every task "
                "has one at the same step."
            )
    return reasons


def _left_out_of_balance(comparison: Comparison) -> list[str]:
    """Sentences for the seeds that ``Comparison.balanced`` cannot use, wherever it is called."""
    uses = [("the aggregates", agent, comparison.aggregate_tasks) for agent in comparison.agents]
    for pair in combinations(comparison.agents, 2):
        for agent, other in (pair, pair[::-1]):
            uses.append((f"the pair with {other}", agent, comparison.shared_tasks(*pair)))
    without: dict[tuple[str, str, int], list[str]] = {}
    for use, agent, tasks in uses:
        counts = {task: len(comparison.runs[agent, task].seeds) for task in tasks}
        for task, count in counts.items():
            if count > (least := min(counts.values())):
                without.setdefault((agent, task, least), []).append(use)
    return [
        f"{agent} on {task}, seed "
        f"{', '.join(map(str, comparison.runs[agent, task].seeds[least:]))} from "
        f"{', '.join(names)}: another task has only {least}, and each must count with as many."
        for (agent, task, least), names in without.items()
    ]


def _score_ranges(results: Results) -> dict[str, ScoreRange | None]:
    ranges: dict[str, ScoreRange | None] = {}
    for cell in results.cells:
        low, high = cell["score_range"] or (0.0, 0.0)
        ranges[cell["task"]] = (low, high) if high > low else None
    return ranges


def _common(steps: Sequence[IntArray]) -> IntArray:
    return reduce(np.intersect1d, steps) if steps else np.array([], dtype=np.int64)


def _bounds(bounds: Sequence[FloatArray]) -> dict[str, FloatArray]:
    return dict(zip(("value", "low", "high"), bounds, strict=True))


def _stack(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
