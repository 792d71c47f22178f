"""What would settle it, held against closed forms and against the test that the report applies."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm_bench.statistics import estimates
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.power import POWER
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.settling import (
    TRIED_SEEDS,
    seconds_per_seed,
    seeds_needed,
    settling,
)
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    permutation_test,
)
from tests.qsm_bench.synthetic import make_results


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


def runs(seeds: int, tasks: int, shift: float = 0.0, state: int = 0) -> FloatArray:
    return np.random.default_rng(state).standard_normal((seeds, tasks)) + shift


levels = st.sampled_from([0.05, 0.05 / 3, 0.05 / 21, 0.05 / 190])


@settings(max_examples=20, deadline=None)
@given(levels, st.integers(1, 3), st.integers(1, 3))
def test_runs_that_never_overlap_need_the_fewest_seeds_that_can_have_a_verdict(
    level: float, seeds: int, tasks: int
) -> None:
    needed = seeds_needed(runs(seeds, tasks, 100), runs(seeds, tasks), level)
    fewest = next(n for n in count(1) if 2 / comb(2 * n, n) ** tasks <= level)
    assert needed == max(seeds + 1, fewest)


@settings(max_examples=20, deadline=None)
@given(levels, st.integers(2, 4))
def test_an_agent_that_was_measured_elsewhere_keeps_its_seeds(level: float, seeds: int) -> None:
    mine, theirs = runs(seeds, 1, 100), runs(seeds, 1)
    fewest = next(n for n in count(1) if 2 / comb(n + seeds, n) <= level)
    expected = max(seeds + 1, fewest) if fewest <= TRIED_SEEDS else None
    assert seeds_needed(mine, theirs, level, (True, False)) == expected
    assert seeds_needed(theirs, mine, level, (False, True)) == expected
    assert seeds_needed(mine, theirs, level, (False, False)) is None


@given(st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_no_number_of_seeds_tells_equal_runs_apart(seeds: int, tasks: int) -> None:
    assert seeds_needed(runs(seeds, tasks), runs(seeds, tasks), 0.05) is None


def test_tasks_on_which_nothing_was_learned_do_not_count() -> None:
    """There all returns are 0, and the test has nothing to compare."""
    x, y = runs(6, 2, 0.9), runs(6, 2, state=1)
    nothing = np.zeros((6, 3))
    more_x, more_y = (np.concatenate([returns, nothing], axis=1) for returns in (x, y))
    needed = seeds_needed(x, y, 0.05)
    assert needed is not None
    assert seeds_needed(more_x, more_y, 0.05) == needed
    assert seeds_needed(nothing, nothing, 0.05) is None


def test_a_larger_lead_needs_fewer_seeds_and_a_smaller_level_more() -> None:
    x, y = runs(8, 2), runs(8, 2, state=1)
    needed = [seeds_needed(x + shift, y, 0.05) for shift in (0.8, 1.2, 2.0, 4.0)]
    known = [n for n in needed if n is not None]
    assert len(known) >= 3
    assert known == sorted(known, reverse=True)
    assert known[0] > known[-1]
    assert seeds_needed(x + 1.2, y, 0.001) > needed[1]  # type: ignore[operator]


@pytest.mark.parametrize("shift", [0.7, 0.9])
def test_the_reports_own_test_gives_verdicts_as_often_as_is_said(shift: float) -> None:
    """Runs are drawn anew, moved apart by less than their distances, so that none are equal."""
    x, y, level = runs(6, 2, shift), runs(6, 2, state=1), 0.05
    needed = seeds_needed(x, y, level)
    assert needed is not None
    assert needed > 8
    rng, repeats = np.random.default_rng(2), 400

    def found(seeds: int) -> float:
        verdicts = 0
        for _ in range(repeats):
            drawn = [
                np.take_along_axis(r, rng.integers(len(r), size=(seeds, 2)), axis=0)
                + 1e-9 * rng.standard_normal((seeds, 2))
                for r in (x, y)
            ]
            verdicts += permutation_test(*drawn)[0] <= level
        return verdicts / repeats

    error = 4 * sqrt(POWER * (1 - POWER) / repeats)
    assert found(needed) > POWER - error
    assert found(needed - 1) < POWER + error
    assert found(needed + 8) > POWER


def apart(agent: str, task: str, seed: int, step: int) -> float:
    noise = np.random.default_rng([seed, step, *f"{agent}/{task}".encode()]).normal()
    return float({"qsm": 0.0, "sac": 1.0, "td3": 0.8}[agent] + noise)


def test_the_table_has_every_open_pair_at_the_level_of_holm_and_its_cost() -> None:
    analysis = Analysis(make_results(tasks=("a", "b"), seeds=5, returns=apart))
    table, comparison = analysis.settling, analysis.comparison
    still_open = analysis.pairs[~analysis.pairs["verdict"]]
    assert {frozenset(p) for p in table[["first", "second"]].to_numpy().tolist()} == {
        frozenset(p) for p in still_open[["better", "worse"]].to_numpy().tolist()
    }
    assert len(table)
    seconds = seconds_per_seed(analysis.results)
    for row in table.to_dict("records"):
        x, y = (
            comparison.final_returns(agent, ("a", "b")) for agent in (row["first"], row["second"])
        )
        needed = seeds_needed(x, y, FALSE_ALARMS / len(still_open))
        if needed is None:
            assert np.isnan(row["needed"])
            assert np.isnan(row["seconds"])
        else:
            each = [
                seconds[agent, task] for agent in (row["first"], row["second"]) for task in "ab"
            ]
            assert (row["needed"], row["seconds"]) == (
                needed,
                pytest.approx((needed - 5) * sum(each)),
            )
    assert table["needed"].notna().any()


def test_an_unfinished_cell_has_no_known_cost_and_leaves_the_number_of_seeds() -> None:
    results = make_results(tasks=("a",), seeds=5, returns=apart)
    before = Analysis(results).settling
    results.cells[0]["status"] = "running"
    table = Analysis(results).settling
    assert list(table["needed"].dropna()) == list(before["needed"].dropna())
    of_it = (table["first"] == "qsm") | (table["second"] == "qsm")
    assert table.loc[of_it, "seconds"].isna().all()


def test_one_seed_costs_its_share_of_training_and_evaluation() -> None:
    results = make_results(("qsm",), ("a",), seeds=4)
    (cell,) = results.cells
    cell |= {"train_seconds": 70.0, "evaluation_seconds": 10.0}
    assert seconds_per_seed(results) == {("qsm", "a"): 20.0}


def test_no_pair_makes_an_empty_table_with_its_columns() -> None:
    analysis = Analysis(make_results(("qsm",), ("a",)))
    assert analysis.settling.empty
    assert {"first", "second", "needed", "seconds"} <= set(analysis.settling)


def test_seeds_are_added_here_only() -> None:
    analysis = Analysis(make_results(tasks=("a", "b"), seeds=5, returns=apart))
    comparison = analysis.comparison
    renamed = {"sac": "sac (record)"}
    runs_by_name = {(renamed.get(a, a), t): curves for (a, t), curves in comparison.runs.items()}
    agents = tuple(renamed.get(a, a) for a in comparison.agents)
    comparison = replace(comparison, agents=agents, runs=runs_by_name)
    pairs = analysis.pairs.replace(renamed)
    seconds = {(a, t): 10.0 for a in agents if a not in renamed.values() for t in "ab"}
    table = settling(comparison, pairs, seconds, agents, {"sac (record)"})
    of_it = table[(table["first"] == "sac (record)") | (table["second"] == "sac (record)")]
    assert len(of_it)
    for row in of_it.to_dict("records"):
        assert {row["grows_first"], row["grows_second"]} == {True, False}
        if not np.isnan(row["needed"]):
            assert row["seconds"] == 2 * 10.0 * (row["needed"] - 5)
