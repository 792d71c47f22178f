"""Two experiments compared: a verdict that holds its rate, and can be that none was found."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qsm_bench.errors import UserError
from qsm_bench.report.compare import NOT_FOUND, SAME, Change, write_comparison
from qsm_bench.results import Results
from qsm_bench.statistics import estimates
from qsm_bench.statistics.selection import select_runs
from qsm_bench.statistics.significance import FALSE_ALARMS, compare_all_pairs
from tests.qsm_bench.synthetic import made_up_returns, make_results

AGENTS, TASKS = ("qsm", "td3"), ("a", "b", "c")


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


def experiment(name: str, shift: float = 0.0, noise: int = 0, seeds: int = 4) -> Results:
    """Make runs of two agents: qsm's returns are shifted, and all noise is drawn anew."""

    def returns(agent: str, task: str, seed: int, step: int) -> float:
        return made_up_returns(agent, task, seed + noise, step) + shift * (agent == "qsm")

    return make_results(AGENTS, TASKS, seeds, 2, 1, returns, name=name)


def test_an_improved_agent_is_seen_and_the_other_is_not() -> None:
    change = Change(experiment("before"), experiment("after", shift=200, noise=50))
    outcomes = dict(zip(change.overall["agent"], change.overall["outcome"], strict=True))
    assert outcomes == {"qsm": "qsm in after is better", "td3": NOT_FOUND}
    assert change.verdict[0] == "Difference found: qsm."
    assert change.verdict[1].startswith(
        "qsm: qsm in after is better; higher mean return on 3 of 3 tasks"
    )
    assert "a verdict needed a probability of at least" in change.verdict[2]


def test_a_worse_agent_is_said_to_have_been_better_before() -> None:
    change = Change(experiment("before"), experiment("after", shift=-200, noise=50))
    assert change.verdict[1].startswith("qsm: qsm in before is better")
    assert (change.cells.query("agent == 'qsm'")["difference"] < -100).all()


def test_equal_experiments_are_the_same_numbers() -> None:
    change = Change(experiment("before"), experiment("after"))
    assert change.verdict[0] == "Both have exactly the same numbers."
    assert set(change.overall["outcome"]) == set(change.cells["outcome"]) == {SAME}
    assert (change.cells["difference"] == 0).all()


def test_one_bit_is_enough_to_be_no_longer_the_same() -> None:
    after = experiment("after")
    rows = after.evaluations.copy()
    first = rows.index[0]
    rows.loc[first, "return"] = np.nextafter(rows.loc[first, "return"], np.inf)
    change = Change(experiment("before"), replace(after, evaluations=rows))
    assert change.verdict[0] == "No difference found."
    assert list(change.overall["outcome"]) == [NOT_FOUND, SAME]


def test_more_wins_with_the_lower_means_are_a_difference_and_not_better() -> None:
    def risky(agent: str, task: str, seed: int, step: int) -> float:
        return -1000.0 if seed == 0 else 10.0 + seed

    sides = [
        make_results(("qsm",), tuple("abcdef"), 5, 1, 1, returns, name=name)
        for name, returns in (("before", lambda *_: 5.0), ("after", risky))
    ]
    change = Change(*sides)
    assert change.verdict[0] == "Difference found: qsm."
    assert change.verdict[1].startswith(
        "qsm: different; qsm in after has the higher mean return on 0 of 6 tasks; a run of qsm in "
        "after beats one of qsm in before with probability 0.800"
    )


def test_one_seed_is_never_enough_and_that_is_said() -> None:
    change = Change(experiment("before", seeds=1), experiment("after", shift=900, seeds=1))
    assert change.verdict[0] == "No difference found."
    assert "so few runs could not have led to a verdict" in change.verdict[1]


def test_a_cells_row_holds_its_means_and_their_difference() -> None:
    before, after = experiment("before"), experiment("after", shift=200, noise=50)
    table = Change(before, after).cells.set_index(["agent", "task"])
    for results, column in ((before, "first"), (after, "second")):
        rows = results.evaluations[results.evaluations["step"] == 10_000]
        means = rows.groupby(["agent", "task"])["return"].mean()
        np.testing.assert_allclose(table[column].astype(float), means[table.index])
    np.testing.assert_allclose(table["difference"], table["second"] - table["first"])
    assert (table["low"] <= table["difference"]).all()
    assert (table["difference"] <= table["high"]).all()


def test_verdicts_are_those_of_the_agents_as_a_pair() -> None:
    before, after = experiment("before"), experiment("after", shift=40, noise=50)
    change = Change(before, after)
    table = compare_all_pairs(select_runs(change.analysis.results))
    labels = set(change.labels["qsm"])
    (pair,) = [r for r in table.to_dict("records") if {r["better"], r["worse"]} == labels]
    row = change.overall.set_index("agent").loc["qsm"]
    assert row["probability"] == pair["probability"]
    assert row["verdict"] == (row["p"] <= FALSE_ALARMS)


def test_experiments_of_one_name_are_told_apart() -> None:
    change = Change(experiment("run"), experiment("run", noise=50))
    assert change.names == ("run (first)", "run (second)")
    assert len(change.cells) == 6


def test_only_what_both_have_is_compared_and_the_rest_is_named(tmp_path: Path) -> None:
    before = make_results(("qsm", "td3"), ("a", "b"), 3, 4, 1, name="before")
    after = make_results(("td3", "sac"), ("b", "c"), 2, 2, 1, name="after")
    page, verdict = write_comparison(before, after, tmp_path / "c")
    text = page.with_name("report.md").read_text()
    for sentence in (
        "Only before has the agent qsm.",
        "Only after has the agent sac.",
        "Only before has the task a.",
        "Only after has the task c.",
        "b, after step 10,000 of 20,000",
    ):
        assert sentence in text
    assert verdict.startswith("No difference found.\ntd3: ")
    assert len(pd.read_csv(page.with_name("data") / "cells.csv")) == 1
    differences = pd.read_csv(page.with_name("data") / "differences.csv").set_index("what")
    assert list(differences.loc["steps"]) == ["20,000", "10,000"]
    assert list(differences.loc["seeds"]) == ["0, 1, 2", "0, 1"]


@pytest.mark.parametrize(
    ("agents", "tasks", "what"), [(("sac",), TASKS, "agent"), (AGENTS, ("x",), "task")]
)
def test_experiments_with_nothing_in_common_are_refused(
    agents: tuple[str, ...], tasks: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    other = make_results(agents, tasks, name="other")
    with pytest.raises(UserError, match=f"no {what} in common"):
        write_comparison(experiment("before"), other, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_the_same_two_experiments_give_the_same_page(tmp_path: Path) -> None:
    pages = [
        write_comparison(experiment("a"), experiment("b", noise=9), tmp_path / name)[0]
        for name in ("first", "second")
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_equal_agents_are_told_apart_at_most_at_the_stated_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "REPLICATIONS", 2)
    rng = np.random.default_rng(0)

    def noise(*_: object) -> float:
        return float(rng.normal())

    def change() -> Change:
        sides = [make_results(AGENTS, ("a",), 4, 1, 1, noise, name=name) for name in "xy"]
        return Change(*sides)

    alarms = [change().overall["verdict"].any() for _ in range(60)]
    assert np.mean(alarms) <= FALSE_ALARMS + 3 * np.sqrt(FALSE_ALARMS * 0.95 / 60)
