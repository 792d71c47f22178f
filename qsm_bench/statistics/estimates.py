"""Point estimates with rliable's stratified bootstrap intervals."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd

from qsm_bench.statistics.selection import (
    AREA_UNDER_CURVE,
    FINAL,
    CellKey,
    Comparison,
    Curves,
    FloatArray,
    normalized,
)

REPLICATIONS = 2_000
CONFIDENCE = 0.95
STATISTICS = ("IQM", "median", "mean", "optimality gap")


def bootstrap(
    statistic: Callable[..., FloatArray], *scores: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A statistic of one or more score arrays with its stratified bootstrap percentile interval.

    Each array in ``scores`` is [seeds, tasks, ...]; seeds are resampled within each task. Returns
    value, low and high, each an array [outputs of statistic]. The bounds are NaN if an array has
    only one seed, which says nothing about the spread.
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


def mean_interval(values: FloatArray) -> tuple[float, float, float]:
    """The mean of values [seeds], and the bounds of its bootstrap interval: see ``bootstrap``."""
    found = bootstrap(lambda x: x.mean(axis=0), values[:, np.newaxis])
    value, low, high = (float(bound[0]) for bound in found)
    return value, low, high


def aggregates(comparison: Comparison) -> pd.DataFrame:
    """rliable's aggregates of normalized scores. The table is empty if no task can be aggregated.

    Columns: agent, measured (``FINAL``, or ``AREA_UNDER_CURVE``: the mean over evaluations),
    statistic (see ``STATISTICS``), value, low, high, seeds, tasks.
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
        for when in (FINAL, AREA_UNDER_CURVE)
    ]
    columns = ["agent", "measured", "statistic", "value", "low", "high", "seeds", "tasks"]
    return _stack(tables, columns)


def aggregate(scores: FloatArray) -> FloatArray:
    """rliable's aggregates of scores [seeds, tasks], an array in the order of ``STATISTICS``."""
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
    """The mean over the first axis without its lowest and highest quarter: [runs, ...] -> [...].

    The values equal those of rliable's aggregate of this name, for many columns at once.
    """
    cut = len(runs) // 4
    middle: FloatArray = np.sort(runs, axis=0)[cut : len(runs) - cut].mean(axis=0)
    return middle


def performance_profiles(comparison: Comparison) -> pd.DataFrame:
    """The share of runs whose normalized score at the end is above each threshold.

    Columns: agent, score (the threshold), value (the share), low, high.
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
    """The IQM over tasks and seeds at each step that all aggregate tasks have.

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
    """The mean return over the finite seeds of each cell, at all its evaluations.

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
    """A row for every run that is compared.

    Columns: task, agent, seed, step, return, area (the mean return over evaluations), score (the
    normalized return; NaN if the task has no score range).
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
                    "score": normalized(last, score_range) if score_range else np.nan,
                }
            )
        )
    return _stack(tables, ["task", "agent", "seed", "step", "return", "area", "score"])


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """Fix the state of NumPy's global generator: rliable uses it and ignores ``random_state``."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(before)


def _bounds(bounds: Sequence[FloatArray]) -> dict[str, FloatArray]:
    return dict(zip(("value", "low", "high"), bounds, strict=True))


def _stack(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
