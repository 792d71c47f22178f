"""The report's statistics: closed forms, invariances, and nothing left out in silence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pandas.testing import assert_frame_equal
from rliable import metrics

from qsm_bench.errors import UserError
from qsm_bench.results import Results
from qsm_bench.statistics import estimates, significance
from qsm_bench.statistics.estimates import (
    STATISTICS,
    aggregate_curves,
    aggregates,
    bootstrap,
    final_scores,
    interquartile_mean,
    performance_profiles,
    task_curves,
)
from qsm_bench.statistics.selection import (
    AREA_UNDER_CURVE,
    FINAL,
    Comparison,
    Curves,
    FloatArray,
    learning_curves,
    select_runs,
)
from qsm_bench.statistics.significance import (
    compare_all_pairs,
    compare_pairs,
    detectable_improvement,
    holm,
    permutation_test,
    probability_of_improvement,
    sign_test,
    trend_test,
)
from tests.qsm_bench.synthetic import make_results

TABLES = (aggregates, performance_profiles, aggregate_curves, final_scores, compare_all_pairs)


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


def comparison_of(
    returns: Mapping[str, Sequence[Any] | NDArray[Any]],
    score_range: tuple[float, float] | None = (0.0, 1.0),
) -> Comparison:
    """Compare agents by returns [tasks][seeds] or [tasks][seeds, steps]; None for no runs."""
    runs = {}
    for agent, tasks in returns.items():
        for index, values in enumerate(tasks):
            if values is not None:
                array = np.array(values, dtype=np.float64)
                array = array.reshape(len(array), -1)
                steps = np.arange(1, array.shape[1] + 1)
                runs[agent, f"task-{index}"] = Curves(tuple(range(len(array))), steps, array)
    tasks = tuple(f"task-{i}" for i in range(max(map(len, returns.values()))))
    return Comparison(tuple(returns), tasks, runs, dict.fromkeys(tasks, score_range), ())


def change(results: Results, agent: str, task: str, **changes: Any) -> Results:
    """Return the same results with another manifest of one cell."""
    cells = [
        cell | changes if (cell["agent"], cell["task"]) == (agent, task) else cell
        for cell in results.cells
    ]
    return replace(results, cells=cells)


def drop(results: Results, **where: Any) -> Results:
    """Return the same results without the evaluations whose columns have these values."""
    return replace(results, evaluations=results.evaluations[~_rows(results, **where)])


def diverge(results: Results, value: float = np.nan, **where: Any) -> Results:
    """Return the same results with ``value`` as the returns whose columns have these values."""
    evaluations = results.evaluations.copy()
    evaluations.loc[_rows(results, **where), "return"] = value
    return replace(results, evaluations=evaluations)


def _rows(results: Results, **where: Any) -> "pd.Series[bool]":
    table = results.evaluations
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        chosen &= table[column].isin(value if isinstance(value, list) else [value])
    return chosen


small = st.integers(0, 4).map(float)
returns_of = st.floats(-1e3, 1e3, allow_subnormal=False)


@st.composite
def two_agents(
    draw: st.DrawFn, values: st.SearchStrategy[float] = small, seeds: int = 3, tasks: int = 2
) -> tuple[FloatArray, FloatArray]:
    """Draw returns [seeds, tasks] of two agents, each with some number of seeds."""
    n, m, t = draw(st.integers(1, seeds)), draw(st.integers(1, seeds)), draw(st.integers(1, tasks))
    x = draw(arrays(np.float64, (n, t), elements=values))
    return x, draw(arrays(np.float64, (m, t), elements=values))


# Aggregates, curves and profiles


@settings(max_examples=10)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.floats(-1, 2))
    )
)
def test_aggregates_are_their_formulas(scores: FloatArray) -> None:
    table = aggregates(comparison_of({"a": list(scores.T)}))
    values = table[table["measured"] == FINAL].set_index("statistic")["value"]
    ordered = np.sort(scores, axis=None)
    cut = scores.size // 4
    assert_allclose(
        values[list(STATISTICS)],
        [
            ordered[cut : scores.size - cut].mean(),
            np.median(scores.mean(axis=0)),
            scores.mean(),
            np.maximum(1 - scores, 0).mean(),
        ],
        atol=1e-12,
    )
    assert set(table["seeds"]) == {len(scores)}
    assert set(table["tasks"]) == {scores.shape[1]}


@given(
    arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-9, 9))
)
def test_the_interquartile_mean_is_rliables(runs: FloatArray) -> None:
    expected = [metrics.aggregate_iqm(column) for column in runs.T]
    assert_allclose(interquartile_mean(runs), expected, rtol=1e-12, atol=1e-12)


def test_scores_are_returns_mapped_from_the_range_of_their_task() -> None:
    comparison = comparison_of({"a": [[[10, 30], [20, 40]]]}, score_range=(10, 20))
    assert_array_equal(comparison.scores("a"), [[2.0], [3.0]])
    assert_array_equal(comparison.scores("a", AREA_UNDER_CURVE), [[1.0], [2.0]])
    assert list(final_scores(comparison)["score"]) == [2.0, 3.0]
    assert list(final_scores(comparison)["area"]) == [20.0, 30.0]


def test_the_aggregate_curve_ends_at_the_interquartile_mean_of_the_last_evaluation() -> None:
    comparison = select_runs(make_results(seeds=5))
    iqm = aggregates(comparison).query("statistic == 'IQM' and measured == @FINAL")
    ends = aggregate_curves(comparison).groupby("agent", sort=False).last()
    assert_allclose(ends["value"], iqm.set_index("agent")["value"][ends.index])


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    scores = {"a": [[-0.5, 0.2], [0.7, 1.5]], "b": [[0.1, 0.1], [0.1, 0.1]]}
    table = performance_profiles(comparison_of(scores))
    for agent, runs in scores.items():
        part = table[table["agent"] == agent]
        share = [np.mean(np.array(runs) > threshold) for threshold in part["score"]]
        assert_array_equal(part["value"], share)
        assert_array_equal(part["score"].to_numpy()[[0, -1]], [-0.5, 1.5])
        assert (part["value"].diff().dropna() <= 0).all()
        assert (part["low"] <= part["high"]).all()


def test_a_task_curve_is_the_mean_over_its_finite_seeds_and_all_episodes() -> None:
    results = diverge(make_results(seeds=4), agent="sac", task="walker-walk", seed=2, step=20_000)
    table = task_curves(learning_curves(results)).query("task == 'walker-walk'")
    sac, qsm = (table[table["agent"] == agent] for agent in ("sac", "qsm"))
    rows = results.evaluations.query("agent == 'sac' and task == 'walker-walk' and seed != 2")
    assert_allclose(sac["value"], rows.groupby("step")["return"].mean())
    assert set(sac["seeds"]) == {3}
    assert set(qsm["seeds"]) == {4}


# Bootstrap


def mean(*scores: FloatArray) -> FloatArray:
    """Return the mean of the first array."""
    return np.atleast_1d(scores[0].mean())


def test_with_two_seeds_of_a_task_the_interval_of_the_mean_is_from_one_to_the_other() -> None:
    value, low, high = bootstrap(mean, np.array([[3.0], [5.0]]))
    assert (value[0], low[0], high[0]) == (4.0, 3.0, 5.0)


def test_differences_between_tasks_do_not_widen_an_interval() -> None:
    value, low, high = bootstrap(mean, np.array([[0.0, 1.0, 5.0]] * 4))
    assert value == low == high == 2.0


def test_a_single_seed_has_a_value_and_no_interval() -> None:
    value, low, high = bootstrap(mean, np.array([[0.0, 1.0, 5.0]]))
    assert value == 2.0
    assert np.isnan([low, high]).all()
    _, low, high = bootstrap(mean, np.ones((3, 1)), np.ones((1, 1)))
    assert np.isnan([low, high]).all()


def test_the_interval_of_many_seeds_is_that_of_the_central_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "REPLICATIONS", 2_000)
    scores = np.random.default_rng(0).normal(size=(200, 2))
    _, low, high = bootstrap(mean, scores)
    error = np.sqrt(scores.var(axis=0).mean() / scores.size)
    assert_allclose([low[0], high[0]], scores.mean() + error * np.array([-1.96, 1.96]), rtol=0.2)


def test_numpys_global_generator_neither_matters_nor_moves() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3))
    outcomes = []
    for seed in (1, 2):
        np.random.seed(seed)
        outcomes.append(bootstrap(mean, scores))
        after = np.random.random()
        np.random.seed(seed)
        assert np.random.random() == after
    first, second = outcomes
    assert_array_equal(first, second)


# Probability of improvement


@settings(max_examples=40)
@given(two_agents(seeds=4, tasks=3))
def test_the_probability_of_improvement_is_a_count(runs: tuple[FloatArray, FloatArray]) -> None:
    x, y = runs
    points = [
        (a > b) + (a == b) / 2
        for task in range(x.shape[1])
        for a, b in product(x[:, task], y[:, task])
    ]
    value = probability_of_improvement(x, y)
    assert_allclose(value, [np.mean(points)], rtol=1e-15)
    assert_allclose(value, [metrics.probability_of_improvement(x, y)], rtol=1e-12)
    assert value + probability_of_improvement(y, x) == 1.0


# Permutation test


def arrangements(x: FloatArray, y: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield all ways to deal each task's runs to two agents with as many runs as before."""
    pool = np.concatenate([x, y])
    choices = list(combinations(range(len(pool)), len(x)))
    for chosen in product(choices, repeat=x.shape[1]):
        mine = np.zeros(pool.shape, dtype=bool)
        for task, rows in enumerate(chosen):
            mine[list(rows), task] = True
        yield pool.T[mine.T].reshape(-1, len(x)).T, pool.T[~mine.T].reshape(-1, len(y)).T


def lead(x: FloatArray, y: FloatArray) -> int:
    """Return how many more pairs of runs x wins than y."""
    return int(np.sign(x[:, np.newaxis] - y[np.newaxis]).sum())


@settings(max_examples=40)
@given(st.one_of(two_agents(small), two_agents(returns_of)))
def test_p_is_the_share_of_arrangements_as_far_from_even(
    runs: tuple[FloatArray, FloatArray],
) -> None:
    leads = np.abs([lead(*dealt) for dealt in arrangements(*runs)])
    p, floor = permutation_test(*runs)
    assert p == np.mean(leads >= abs(lead(*runs)))
    assert floor == min(1.0, 2 / len(leads))


@settings(max_examples=10)
@given(two_agents())
def test_equal_agents_get_a_p_of_at_most_any_level_at_most_at_that_rate(
    runs: tuple[FloatArray, FloatArray],
) -> None:
    p = np.array([permutation_test(*dealt)[0] for dealt in arrangements(*runs)])
    for level in np.unique(p):
        assert np.mean(p <= level) <= level * (1 + 1e-12)


@settings(max_examples=40)
@given(two_agents(returns_of, seeds=6, tasks=5), st.randoms(use_true_random=False))
def test_p_depends_on_nothing_but_the_order_of_runs_within_tasks(
    runs: tuple[FloatArray, FloatArray], random: Any
) -> None:
    x, y = runs
    p = permutation_test(x, y)[0]
    seeds, tasks = random.sample(range(len(x)), len(x)), range(x.shape[1])
    tasks = random.sample(tasks, len(tasks))
    ranks = np.unique(np.concatenate([x, y]), return_inverse=True)[1].reshape(-1, x.shape[1])
    assert 0 < p <= 1
    assert permutation_test(y, x)[0] == pytest.approx(p, rel=1e-9)
    assert permutation_test(x[seeds][:, tasks], y[:, tasks])[0] == pytest.approx(p, rel=1e-9)
    cubed = (ranks.astype(np.float64) ** 3)[: len(x)], (ranks.astype(np.float64) ** 3)[len(x) :]
    assert permutation_test(*cubed)[0] == p


@pytest.mark.parametrize(
    ("n", "m", "tasks"), [(1, 1, 1), (1, 1, 6), (1, 4, 2), (3, 3, 1), (5, 2, 3)]
)
def test_runs_that_do_not_overlap_have_the_smallest_p(n: int, m: int, tasks: int) -> None:
    rng = np.random.default_rng(0)
    p, floor = permutation_test(rng.random((n, tasks)) + 1, rng.random((m, tasks)))
    assert p == floor


def test_equal_returns_have_a_p_of_one() -> None:
    assert permutation_test(np.ones((3, 6)), np.ones((5, 6)))[0] == 1.0


def test_p_stays_a_probability_for_many_seeds_on_many_tasks() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 70)), rng.normal(size=(10, 70))
    assert 0.01 < permutation_test(x, y)[0] <= 1.0
    assert 0.0 <= permutation_test(x + 9, y)[0] < 1e-50


def test_fourier_transforms_give_the_same_p() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 5))
    for shift in (0.0, 0.5, 1.0):
        direct = permutation_test(x + shift, y)[0]
        significance._tails.cache_clear()
        with patch.object(significance, "DIRECT_PRODUCTS", 0):
            assert permutation_test(x + shift, y)[0] == pytest.approx(direct, abs=1e-13)
        significance._tails.cache_clear()


@pytest.mark.parametrize(("n", "m", "tasks"), [(100, 100, 1), (150, 50, 2), (40, 200, 6)])
def test_the_normal_p_of_many_runs_is_that_of_the_exact_test(n: int, m: int, tasks: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(m, tasks)).round(2)  # some are equal
    for shift in (0.0, 0.1, 0.2):
        x = (rng.normal(size=(n, tasks)) + shift).round(2)
        exact = permutation_test(x, y)[0]
        with patch.object(significance, "EXACT_RUNS", 0):
            assert permutation_test(x, y)[0] == pytest.approx(exact, rel=0.2, abs=1e-6)
    for level in (0.05, 0.05 / 55):
        needed = detectable_improvement.__wrapped__
        exact = needed(n, m, tasks, level)
        with patch.object(significance, "EXACT_RUNS", 0):
            assert needed(n, m, tasks, level) == pytest.approx(exact, abs=2e-3)


def test_a_thousand_runs_take_no_more_memory_than_they_have() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2_000, 6))
    assert permutation_test(x, y)[0] > 0.01
    assert permutation_test(x + 0.1, y)[0] < 1e-10
    assert permutation_test(np.ones((2_000, 6)), np.ones((2_000, 6)))[0] == 1.0
    assert 0.5 < detectable_improvement(2_000, 2_000, 6, 0.05) < 0.51


@given(st.integers(2, 3), st.integers(3, 5), st.randoms(use_true_random=False))
def test_the_test_of_a_trend_is_pages(rows: int, levels: int, random: Any) -> None:
    from scipy.stats import page_trend_test

    order = list(range(levels))
    values = np.array([random.sample(order, levels) for _ in range(rows)], dtype=float)
    rise, p = trend_test(values)
    rising, falling = (page_trend_test(v, method="exact").pvalue for v in (values, values[:, ::-1]))
    assert p == pytest.approx(min(1.0, 2 * min(rising, falling)))
    assert rise == pytest.approx(np.corrcoef(np.tile(order, rows), values.ravel())[0, 1])


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_is_the_exact_binomial_one(successes: int, failures: int) -> None:
    p = sign_test(successes, successes + failures)
    if successes + failures == 0:
        assert p == 1.0
        return
    from scipy.stats import binomtest

    assert p == pytest.approx(binomtest(successes, successes + failures).pvalue)
    assert p == sign_test(failures, successes + failures)


def test_a_trend_in_every_row_has_the_smallest_p_and_ties_have_none() -> None:
    rise, p = trend_test(np.array([[0.0, 2.0, np.inf]] * 3))
    assert (rise, p) == (1.0, 2 / 6**3)
    assert trend_test(np.array([[np.inf, 2.0, 0.0]] * 3)) == (-1.0, p)
    assert trend_test(np.full((3, 4), np.inf)) == (0.0, 1.0)


@pytest.mark.parametrize("level", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(
    ("n", "m", "tasks"), [(1, 1, 1), (2, 2, 1), (2, 3, 1), (3, 3, 1), (2, 2, 2)]
)
def test_the_detectable_improvement_is_the_smallest_with_that_p(
    n: int, m: int, tasks: int, level: float
) -> None:
    runs = np.arange(float((n + m) * tasks)).reshape(n + m, tasks)
    seen = [
        probability_of_improvement(*dealt)[0]
        for dealt in arrangements(runs[:n], runs[n:])
        if permutation_test(*dealt)[0] <= level
    ]
    smallest = min((value for value in seen if value >= 0.5), default=np.nan)
    assert_allclose(detectable_improvement(n, m, tasks, level), smallest, rtol=1e-12)


# Holm's adjustment

p_values = st.integers(1, 5).flatmap(
    lambda count: arrays(np.float64, count, elements=st.floats(0, 1, allow_subnormal=False))
)


def test_holm_by_hand() -> None:
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([])).size == 0


@given(p_values)
def test_holm_is_the_closed_test_on_bonferroni(p: FloatArray) -> None:
    subsets = [s for k in range(len(p)) for s in combinations(range(len(p)), k + 1)]
    closed = [
        max(min(1.0, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in range(len(p))
    ]
    assert_allclose(holm(p), closed)


@given(p_values, st.randoms(use_true_random=False))
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p: FloatArray, random: Any) -> None:
    adjusted = holm(p)
    assert (p <= adjusted).all()
    assert (adjusted <= np.minimum(1.0, len(p) * p)).all()
    assert all(a <= b for a, b in pairwise(adjusted[np.argsort(p)]))
    order = random.sample(range(len(p)), len(p))
    assert_array_equal(holm(p[order]), adjusted[order])


# Pairs


def test_the_agent_ahead_is_named_first_with_its_counts() -> None:
    row = compare_all_pairs(
        comparison_of({"a": [[1, 2], [5, 5]], "b": [[3, 4, 5], [5, 5, 5]]})
    ).iloc[0]
    assert (row["better"], row["worse"]) == ("b", "a")
    assert (row["tasks"], row["wins"], row["ties"]) == (2, 1, 1)
    assert (row["seeds_better"], row["seeds_worse"]) == (3, 2)
    assert row["probability"] == 0.75
    assert 0.75 == row["low"] == row["high"]


def test_p_is_holms_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    returns = {agent: rng.normal(size=(2, 4)) + i for i, agent in enumerate("abc")}
    raw = [permutation_test(returns[a].T, returns[b].T)[0] for a, b in combinations(returns, 2)]
    assert_array_equal(compare_all_pairs(comparison_of(returns))["p"], holm(np.array(raw)))


def test_a_p_that_meets_the_level_exactly_is_a_verdict() -> None:
    returns = {agent: [[10 * i, 10 * i + 1, 10 * i + 2]] * 2 for i, agent in enumerate("abcde")}
    table = compare_all_pairs(comparison_of(returns))
    assert (table["p"] == 0.05).all()
    assert table["verdict"].all()
    assert table["attainable"].all()


def test_a_pair_with_too_few_runs_is_unattainable_whatever_others_have() -> None:
    many = [[0, 1, 2]] * 6
    table = compare_all_pairs(comparison_of({"a": many, "b": many, "c": [[7, 8, 9], *[None] * 5]}))
    attainable = {
        frozenset((row["better"], row["worse"])): row["attainable"] for _, row in table.iterrows()
    }
    assert attainable == {frozenset("ab"): True, frozenset("ac"): False, frozenset("bc"): False}


@settings(max_examples=40)
@given(two_agents(seeds=25, tasks=1))
def test_a_verdict_is_always_attainable(runs: tuple[FloatArray, FloatArray]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "bootstrap", without_interval)
        row = compare_all_pairs(comparison_of({"a": runs[0].T, "b": runs[1].T})).iloc[0]
    assert row["attainable"] or not row["verdict"]


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3), st.integers(0, 99))
def test_without_a_verdict_an_improvement_is_smaller_than_the_detectable_one(
    agents: int, seeds: int, tasks: int, state: int
) -> None:
    rng = np.random.default_rng(state)
    returns = {str(i): rng.normal(size=(tasks, seeds)) + i for i in range(agents)}
    for row in compare_all_pairs(comparison_of(returns)).to_dict("records"):
        assert row["verdict"] == np.isnan(row["detectable"]) or not row["attainable"]
        if np.isfinite(row["detectable"]):
            assert 0.5 <= row["probability"] < row["detectable"] <= 1.0


def test_couples_are_judged_on_their_tasks_alone_and_adjusted_together() -> None:
    rng = np.random.default_rng(0)
    comparison = comparison_of({a: rng.normal(size=(2, 4)) + i for i, a in enumerate("abc")})
    pairs = [("a", "b", ["task-0"]), ("c", "a", ["task-1"])]
    table = compare_pairs(comparison, pairs)
    raw = [
        permutation_test(*(comparison.final_returns(agent, tasks) for agent in (x, y)))[0]
        for x, y, tasks in pairs
    ]
    assert_array_equal(table["p"], holm(np.array(raw)))
    assert list(table["tasks"]) == [1, 1]
    assert table["better"][1] == "c"


def test_a_lone_run_against_many_equal_ones_can_be_a_verdict() -> None:
    row = compare_all_pairs(comparison_of({"a": [[1]], "b": [[0] * 25]})).iloc[0]
    assert row["p"] == 1 / 26
    assert row["attainable"]
    assert row["verdict"]


def test_equal_agents_tie_without_a_verdict() -> None:
    table = compare_all_pairs(comparison_of({agent: [[7, 7, 7]] * 6 for agent in "abc"}))
    assert (table["probability"] == 0.5).all()
    assert (table["p"] == 1.0).all()
    assert (table["ties"] == 6).all()
    assert not table["verdict"].any()


@pytest.mark.parametrize(
    ("x", "y"), [([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), ([0.1] * 3, [0.1] * 5)], ids=["order", "count"]
)
def test_equal_returns_tie_in_any_order_and_number(x: list[float], y: list[float]) -> None:
    row = compare_all_pairs(comparison_of({"a": [x], "b": [y]})).iloc[0]
    assert (row["wins"], row["ties"]) == (0, 1)


def test_agents_without_a_task_in_common_are_no_pair() -> None:
    table = compare_all_pairs(comparison_of({"a": [[1, 2], None], "b": [None, [1, 2]]}))
    assert table.empty
    assert list(table.columns) == list(compare_all_pairs(select_runs(make_results())).columns)


# Invariances


@pytest.mark.parametrize("order", [("td3", "qsm", "sac"), ("sac", "td3", "qsm")])
def test_the_order_of_agents_changes_no_number(order: tuple[str, ...]) -> None:
    expected, other = select_runs(make_results()), select_runs(make_results(agents=order))
    for table, keys in (
        (aggregates, ["agent", "measured", "statistic"]),
        (performance_profiles, ["agent", "score"]),
        (aggregate_curves, ["agent", "step"]),
        (final_scores, ["task", "agent", "seed"]),
        (compare_all_pairs, ["better", "worse"]),
    ):
        left, right = (
            t(c).sort_values(keys, ignore_index=True)
            for t, c in ((table, expected), (table, other))
        )
        assert_frame_equal(left, right, check_exact=True)


def test_seeds_may_be_numbered_in_any_order() -> None:
    results = make_results(seeds=4)
    renumbered = results.evaluations.assign(seed=3 - results.evaluations["seed"])
    first, second = select_runs(results), select_runs(replace(results, evaluations=renumbered))
    exact = ["better", "worse", "wins", "ties", "probability", "p", "verdict"]
    assert_frame_equal(
        compare_all_pairs(first)[exact], compare_all_pairs(second)[exact], check_exact=True
    )
    assert_allclose(aggregates(first)["value"], aggregates(second)["value"])


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**9])
def test_the_unit_of_returns_does_not_matter(factor: float) -> None:
    results = make_results()
    scaled = replace(
        results,
        cells=[c | {"score_range": [0.0, 1000 * factor]} for c in results.cells],
        evaluations=results.evaluations.assign(
            **{"return": factor * results.evaluations["return"]}
        ),
    )
    for table in (aggregates, performance_profiles, aggregate_curves, compare_all_pairs):
        assert_frame_equal(
            table(select_runs(results)), table(select_runs(scaled)), check_exact=True
        )


def test_the_same_results_give_the_same_bits_whatever_the_order_of_rows() -> None:
    results = make_results()
    rows = results.evaluations.sort_values(["episode", "step", "seed"], ascending=False)
    first, second = select_runs(results), select_runs(replace(results, evaluations=rows))
    assert first.left_out == second.left_out
    for table in TABLES:
        assert_frame_equal(table(first), table(second), check_exact=True)


# What is left out


def test_a_finished_experiment_leaves_nothing_out() -> None:
    comparison = select_runs(make_results())
    assert comparison.left_out == ()
    assert comparison.aggregate_tasks == comparison.tasks
    assert len(final_scores(comparison)) == 27


def test_without_any_evaluation_there_is_nothing_to_report() -> None:
    results = make_results()
    for evaluations in (
        results.evaluations[:0],
        pd.DataFrame(columns=results.evaluations.columns),
        results.evaluations[:1],
    ):
        with pytest.raises(UserError, match="'made-up' has no evaluations yet"):
            select_runs(replace(results, evaluations=evaluations))


def test_a_failed_cell_is_named_with_its_reason_and_not_compared() -> None:
    results = change(make_results(), "sac", "walker-walk", status="failed", reason="disk full")
    comparison = select_runs(results)
    assert ("sac", "walker-walk") not in comparison.runs
    assert comparison.aggregate_tasks == ("cartpole-swingup", "cheetah-run")
    assert comparison.left_out == (
        "sac on walker-walk: failed at step 20,000 (disk full).",
        "walker-walk is not in the aggregates: no run of sac.",
    )
    assert set(compare_all_pairs(comparison)["tasks"]) == {2, 3}


def test_a_task_on_which_all_failed_is_named() -> None:
    results = make_results(agents=["qsm", "sac"], tasks=["a", "b"])
    for agent in ("qsm", "sac"):
        results = change(results, agent, "b", status="failed")
    assert select_runs(results).tasks == ("a",)
    assert select_runs(results).left_out == (
        "qsm on b: failed at step 20,000.",
        "sac on b: failed at step 20,000.",
    )


def test_a_cell_that_was_never_run_is_named() -> None:
    results = make_results(agents=["qsm", "sac"], tasks=["a", "b"])
    cells = [c for c in results.cells if (c["agent"], c["task"]) != ("sac", "b")]
    comparison = select_runs(drop(replace(results, cells=cells), agent="sac", task="b"))
    assert comparison.left_out == (
        "sac on b: it was not run.",
        "b is not in the aggregates: no run of sac.",
    )


def test_an_agent_without_runs_is_named_and_does_not_empty_the_aggregates() -> None:
    comparison = select_runs(drop(make_results(tasks=["a"]), agent="td3"))
    assert comparison.agents == ("qsm", "sac")
    assert comparison.aggregate_tasks == ("a",)
    assert comparison.left_out == (
        "td3 on a: no complete evaluation.",
        "td3: it has no run to compare.",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_return_that_is_not_finite_takes_its_seed_out(value: float) -> None:
    where = {"agent": "sac", "task": "a", "seed": 1, "step": 10_000, "episode": 1}
    comparison = select_runs(diverge(make_results(tasks=["a"], episodes=2), value, **where))
    assert comparison.runs["sac", "a"].seeds == (0, 2)
    assert comparison.left_out == ("sac on a, seed 1: a return is not finite.",)
    assert np.isfinite(aggregates(comparison)["value"]).all()
    assert set(aggregates(comparison).query("agent == 'sac'")["seeds"]) == {2}


def test_a_cell_whose_seeds_all_diverged_does_not_hold_others_back() -> None:
    results = drop(make_results(tasks=["a"]), agent="sac", step=[10_000, 15_000, 20_000])
    comparison = select_runs(diverge(results, agent="sac"))
    assert list(comparison.steps("a")) == [5_000, 10_000, 15_000, 20_000]
    assert comparison.agents == ("qsm", "td3")
    assert [f"sac on a, seed {seed}: a return is not finite." for seed in range(3)] == list(
        comparison.left_out[:3]
    )


def test_if_all_runs_diverged_the_tables_are_empty_and_have_their_columns() -> None:
    comparison = select_runs(diverge(make_results(tasks=["a"]), task="a"))
    assert comparison.agents == comparison.tasks == ()
    assert len(comparison.left_out) == 9 + 3
    for table in TABLES:
        assert table(comparison).empty
        assert list(table(comparison)) == list(table(select_runs(make_results(tasks=["a"]))))


def test_a_running_cell_is_compared_as_far_as_it_is_and_the_rest_is_named() -> None:
    results = drop(make_results(tasks=["a", "b"]), agent="sac", task="a", step=[15_000, 20_000])
    comparison = select_runs(change(results, "sac", "a", status="running"))
    assert list(comparison.steps("a")) == [5_000, 10_000]
    assert list(comparison.steps("b")) == [5_000, 10_000, 15_000, 20_000]
    why = "not every agent and seed has a complete evaluation there"
    assert comparison.left_out == (
        f"a, after step 10,000 of 20,000: {why}.",
        "2 evaluations of b are not in the aggregate learning curve: not every task has one at "
        "the same step.",
    )
    assert set(aggregate_curves(comparison)["step"]) == {5_000, 10_000}


def test_an_experiment_that_all_agents_are_still_running_says_how_far_it_is() -> None:
    results = drop(make_results(tasks=["a"]), step=20_000)
    (sentence,) = select_runs(results).left_out
    assert sentence.startswith("a, after step 15,000 of 20,000: ")


def test_an_evaluation_counts_once_all_its_episodes_are_there() -> None:
    results = make_results(agents=["sac"], tasks=["a"], seeds=3, episodes=2)
    for rows in range(6, len(results.evaluations) + 1):
        comparison = select_runs(replace(results, evaluations=results.evaluations[:rows]))
        assert list(comparison.steps("a")) == [5_000 * (i + 1) for i in range(rows // 6)]
        assert comparison.runs["sac", "a"].seeds == (0, 1, 2)


def test_a_row_that_breaks_off_does_not_count() -> None:
    results = make_results(agents=["sac"], tasks=["a"])
    evaluations = results.evaluations.astype({"length": float})
    evaluations.loc[evaluations.index[-1], ["return", "length"]] = 1.0, np.nan
    comparison = select_runs(replace(results, evaluations=evaluations))
    assert list(comparison.steps("a")) == [5_000, 10_000, 15_000]
    (sentence,) = comparison.left_out
    assert sentence.startswith("a, after step 15,000 of 20,000: ")


def test_a_gap_in_one_agents_evaluations_is_named() -> None:
    results = drop(make_results(tasks=["a"]), agent="sac", seed=0, step=[5_000, 15_000])
    comparison = select_runs(results)
    assert list(comparison.steps("a")) == [10_000, 20_000]
    (sentence,) = comparison.left_out
    assert sentence.startswith("a, at step 5,000, 15,000: ")


def test_agents_never_evaluated_at_the_same_step_are_not_compared() -> None:
    results = make_results(agents=["qsm", "sac"], tasks=["a", "b"])
    results = drop(results, agent="qsm", task="a", step=[5_000, 10_000])
    comparison = select_runs(drop(results, agent="sac", task="a", step=[15_000, 20_000]))
    assert comparison.tasks == ("b",)
    assert comparison.left_out == ("a: its agents were never evaluated at the same step.",)


def test_unequal_seeds_are_balanced_and_the_spare_ones_named() -> None:
    results = drop(make_results(tasks=["a", "b"]), agent="sac", task="a", seed=[1, 2])
    comparison = select_runs(results)
    assert comparison.scores("sac").shape == (1, 2)
    assert comparison.scores("qsm").shape == (3, 2)
    assert comparison.left_out == (
        "sac on a, seed 1: no evaluation.",
        "sac on a, seed 2: no evaluation.",
        "sac on b, seed 1, 2: not used in the aggregates, the pair with qsm, the pair with td3, "
        "since another task has only 1, and all tasks count equally.",
    )


def test_a_task_without_a_range_is_compared_by_returns_alone() -> None:
    results = make_results(tasks=["a", "b"])
    for agent in ("qsm", "sac", "td3"):
        results = change(results, agent, "b", score_range=None)
    results = drop(results, agent="sac", task="b", seed=2)
    comparison = select_runs(results)
    assert comparison.aggregate_tasks == ("a",)
    assert set(aggregates(comparison)["seeds"]) == {3}
    assert set(compare_all_pairs(comparison)["tasks"]) == {2}
    scores = final_scores(comparison).set_index("task")["score"]
    assert scores["a"].notna().all()
    assert scores["b"].isna().all()
    assert comparison.left_out == (
        "sac on b, seed 2: no evaluation.",
        "b is not in the aggregates: its score range is not known.",
        "sac on a, seed 2: not used in the pair with qsm, the pair with td3, since another task "
        "has only 2, and all tasks count equally.",
    )


def test_one_seed_on_one_task_has_values_without_intervals_or_verdicts() -> None:
    comparison = select_runs(make_results(tasks=["a"], seeds=1))
    for table in (aggregates, performance_profiles, aggregate_curves):
        assert table(comparison)["value"].notna().all()
        assert table(comparison)[["low", "high"]].isna().all(axis=None)
    judged = compare_all_pairs(comparison)
    assert (judged["p"] == 1.0).all()
    assert not judged[["attainable", "verdict"]].any(axis=None)


AGENTS, TASKS, SEEDS, STEPS = ("a", "b"), ("s", "t"), (0, 1), (5_000, 10_000, 15_000)
CELLS = list(product(AGENTS, TASKS))
FATES = ("finished", "failed", "absent", "pending", "cut", "gap", "diverged", "one seed", "late")


@settings(max_examples=40)
@given(st.lists(st.sampled_from(FATES), min_size=len(CELLS), max_size=len(CELLS)))
def test_whatever_is_not_compared_is_named(fates: list[str]) -> None:
    results = make_results(AGENTS, TASKS, len(SEEDS), len(STEPS))
    for (agent, task), fate in zip(CELLS, fates, strict=True):
        cell: dict[str, Any] = {"agent": agent, "task": task}
        if fate == "absent":
            others = [c for c in results.cells if (c["agent"], c["task"]) != (agent, task)]
            results = replace(results, cells=others)
        if fate in ("absent", "pending"):
            results = drop(results, **cell)
        if fate == "failed":
            results = change(results, agent, task, status="failed")
        if fate == "cut":
            results = drop(results, **cell, step=STEPS[1:])
        if fate == "gap":
            results = drop(results, **cell, step=STEPS[1], seed=0, episode=0)
        if fate == "diverged":
            results = diverge(results, **cell, step=STEPS[2], seed=0)
        if fate == "one seed":
            results = drop(results, **cell, seed=0)
        if fate == "late":
            results = drop(results, **cell, step=STEPS[0])
    assume(len(results.evaluations))
    comparison = select_runs(results)

    def named(*beginnings: str) -> bool:
        return any(sentence.startswith(beginnings) for sentence in comparison.left_out)

    for agent, task in CELLS:
        runs = comparison.runs.get((agent, task))
        where = f"{agent} on {task}"
        for seed in SEEDS:
            if runs is None or seed not in runs.seeds:
                assert named(f"{where}:", f"{where}, seed {seed}:", f"{task}: its agents")
        for step in STEPS:
            if runs is not None and step not in runs.steps:
                assert named(f"{task}, at step", f"{task}, after step")
    for task in comparison.tasks:
        assert task in comparison.aggregate_tasks or named(f"{task} is not in the aggregates")
    uses = [(comparison.aggregate_tasks, "the aggregates")]
    if len(comparison.agents) == 2:
        uses.append((comparison.shared_tasks(*AGENTS), "the pair with"))
    for (tasks, use), agent in product(uses, comparison.agents):
        kept = len(comparison.balanced(agent, tasks)[0]) if tasks else 0
        for task in tasks:
            if spare := comparison.runs[agent, task].seeds[kept:]:
                (sentence,) = (
                    sentence
                    for sentence in comparison.left_out
                    if sentence.startswith(f"{agent} on {task}, seed {spare[0]}: not used in")
                )
                assert use in sentence


# The rate of false alarms


def without_interval(
    statistic: Any, *scores: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    value = statistic(*scores)
    return value, value, value


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_agents_get_any_verdict_in_at_most_one_experiment_of_twenty(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(significance, "bootstrap", without_interval)
    rng = np.random.default_rng(seeds)
    experiments, alarms = 1_000, 0
    for _ in range(experiments):
        shape = (6, seeds)
        # Every task has its own distribution: skewed, heavy-tailed, or of few values.
        draws = {
            agent: np.concatenate(
                [
                    rng.exponential(size=(2, seeds)),
                    rng.standard_t(2, (2, seeds)),
                    rng.integers(0, 4, (2, seeds)),
                ]
            ).reshape(shape)
            for agent in "abc"
        }
        alarms += bool(compare_all_pairs(comparison_of(draws))["verdict"].any())
    standard_error = np.sqrt(0.05 * 0.95 / experiments)
    assert alarms / experiments <= 0.05 + 2 * standard_error
