"""The ranking: an order by a stated measure, and groups that hide no verdict."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench.results import Results
from qsm_bench.statistics import estimates
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.ranking import groups_without_verdict
from qsm_bench.statistics.significance import in_order, names_better
from tests.qsm_bench.synthetic import make_results

COLUMNS = [
    *("better", "worse", "tasks", "wins", "ties", "seeds_better", "seeds_worse"),
    *("probability", "low", "high", "verdict"),
]
AGENTS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


def verdicts(decided: set[tuple[str, str]], agents: list[str]) -> pd.DataFrame:
    """Make the columns of a table of pairs that the groups depend on."""
    rows = [(x, y, (x, y) in decided) for x, y in combinations(agents, 2)]
    return pd.DataFrame(rows, columns=["better", "worse", "verdict"])


@given(st.sets(st.sampled_from(list(combinations(AGENTS, 2)))), st.permutations(AGENTS))
def test_groups_are_all_the_largest_sets_without_a_verdict(
    decided: set[tuple[str, str]], agents: list[str]
) -> None:
    def without_verdict(group: tuple[str, ...]) -> bool:
        return not any({(x, y), (y, x)} & decided for x, y in combinations(group, 2))

    found = groups_without_verdict(agents, verdicts(decided, AGENTS))
    sets = [s for n in range(1, 7) for s in combinations(agents, n) if without_verdict(s)]
    largest = {s for s in sets if not any(set(s) < set(other) for other in sets)}
    assert set(found) == largest
    assert len(found) == len(largest)
    firsts = [agents.index(group[0]) for group in found]
    assert firsts == sorted(firsts)


def test_a_pair_that_was_not_compared_hides_no_verdict_and_makes_none() -> None:
    table = verdicts({("a", "b")}, ["a", "b"])
    assert groups_without_verdict(["a", "b", "c"], table) == (("a", "c"), ("b", "c"))


def unknown_ranges(results: Results) -> Results:
    """Return the same results, no task with a score range."""
    return replace(results, cells=[cell | {"score_range": None} for cell in results.cells])


def level(agent: str, task: str, seed: int, step: int) -> float:
    """Return more for later letters, and a little noise."""
    noise = np.random.default_rng([seed, step, *f"{agent}/{task}".encode()]).normal()
    return 100.0 * ["qsm", "sac", "td3"].index(agent) + float(noise)


def test_agents_stand_in_the_order_of_their_interquartile_means() -> None:
    analysis = Analysis(make_results(returns=level))
    ranked, table = analysis.ranking, analysis.aggregates
    assert ranked.agents == ("td3", "sac", "qsm")
    assert ranked.measure == "IQM of normalized scores"
    iqm = table[table["statistic"] == "IQM"].set_index(["measured", "agent"])
    for row in ranked.table.to_dict("records"):
        for when, columns in (
            ("at the end", ("value", "low", "high")),
            ("area under the curve", ("area", "area_low", "area_high")),
        ):
            assert [row[c] for c in columns] == list(
                iqm.loc[(when, row["agent"]), ["value", "low", "high"]]
            )
    assert ranked.better_than == {"td3": ("sac", "qsm"), "sac": ("qsm",), "qsm": ()}
    assert list(ranked.table["groups"]) == ["a", "b", "c"]


def test_without_a_score_range_one_shared_task_is_ranked_by_its_returns() -> None:
    results = make_results(tasks=("a",), returns=level)
    ranked = Analysis(unknown_ranges(results)).ranking
    assert ranked.measure == "IQM of returns on a"
    scores = Analysis(results).ranking.table
    np.testing.assert_allclose(ranked.table["value"], 1000 * scores["value"])
    np.testing.assert_allclose(ranked.table["area_low"], 1000 * scores["area_low"])


def test_without_scores_agents_are_ranked_by_their_mean_probability_of_improvement() -> None:
    ranked = Analysis(unknown_ranges(make_results(returns=level))).ranking
    assert ranked.measure == "mean probability of improvement"
    assert list(ranked.table["value"]) == [1.0, 0.5, 0.0]
    assert ranked.table["area"].isna().all()
    assert ranked.agents == ("td3", "sac", "qsm")


def risky(agent: str, task: str, seed: int, step: int) -> float:
    """Win four runs of five by a little, and lose the fifth by a lot."""
    return 5.0 + seed / 100 if agent == "sure" else (-1000.0 if seed == 0 else 10.0 + seed)


def test_who_wins_most_runs_but_has_the_lower_means_is_not_better() -> None:
    analysis = Analysis(make_results(("sure", "risky"), tuple("abcdef"), 5, returns=risky))
    (pair,) = analysis.pairs.to_dict("records")
    assert (pair["better"], pair["wins"], pair["verdict"]) == ("risky", 0, True)
    assert not names_better(analysis.pairs).any()
    assert analysis.ranking.better_than == {"sure": (), "risky": ()}
    assert set(analysis.ranking.groups) == {("sure",), ("risky",)}


@given(st.permutations(["qsm", "sac", "td3"]), st.integers(0, 3))
def test_open_pairs_stand_in_the_given_order_and_turn_as_a_whole(
    agents: list[str], decided: int
) -> None:
    pairs = pd.DataFrame(
        [
            ("sac", "qsm", 3, 2, 1, 5, 4, 0.7, 0.6, 0.9, decided > 0),
            ("qsm", "td3", 3, 0, 0, 4, 5, 0.5, 0.2, 0.6, decided > 1),
            ("td3", "sac", 3, 1, 1, 5, 5, 0.6, 0.3, 0.7, decided > 2),
        ],
        columns=COLUMNS,
    )
    table = in_order(pairs, agents)
    assert len(table) == 3
    rank = [(agents.index(x), agents.index(y)) for x, y in table[["first", "second"]].to_numpy()]
    assert rank == sorted(rank)
    for row in table.to_dict("records"):
        names = {row["first"], row["second"]}
        (pair,) = [p for p in pairs.to_dict("records") if {p["better"], p["worse"]} == names]
        same = pair["better"] == row["first"]
        assert same or agents.index(row["first"]) < agents.index(row["second"])
        assert same or not pair["verdict"]
        bounds = [pair[c] for c in ("probability", "low", "high")]
        turned = [1 - bounds[0], 1 - bounds[2], 1 - bounds[1]]
        np.testing.assert_allclose(
            [row[c] for c in ("probability", "low", "high")], bounds if same else turned
        )
        assert row["wins"] == (pair["wins"] if same else 3 - pair["wins"] - pair["ties"])
        assert row["seeds_first"] == pair["seeds_better" if same else "seeds_worse"]
