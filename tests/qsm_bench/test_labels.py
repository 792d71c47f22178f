"""Settings that all columns share leave their labels, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from qsm_bench.relabeling import relabeled
from qsm_bench.report import write_report
from qsm_bench.report.labels import without_shared_settings
from qsm_bench.results import Beside, Damaged
from qsm_bench.statistics import estimates
from tests.qsm_bench.synthetic import make_results, with_diagnostics


def labels_of(agents: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels that a report shows, and what it says once."""
    results = make_results(tuple(agents), ("a",), 1, 1, 1)
    recorded = tuple(agent for agent in agents if agent.endswith("(record)"))
    results = replace(results, beside=Beside(agents=recorded))
    shorter, shared = without_shared_settings(results)
    return shorter.experiment["agents"], shared


@pytest.mark.parametrize(
    ("agents", "shown", "shared"),
    [
        (["qsm[alpha=10,x=1]", "sac[x=1]"], ["qsm[alpha=10]", "sac"], ["x=1"]),
        (["qsm[x=1]", "sac[x=2]"], ["qsm[x=1]", "sac[x=2]"], []),
        (["qsm[x=1]", "sac"], ["qsm[x=1]", "sac"], []),
        (["qsm[x=1]"], ["qsm[x=1]"], []),
        (["qsm[a=1,x=1]", "qsm[a=2,x=1]"], ["qsm[a=1]", "qsm[a=2]"], ["x=1"]),
        (["qsm[h=[5,5],x=1]", "td3[h=[5,5]]"], ["qsm[x=1]", "td3"], ["h=[5,5]"]),
        (["qsm[h=[5,6]]", "td3[h=[5,5]]"], ["qsm[h=[5,6]]", "td3[h=[5,5]]"], []),
        (["m:Q[x=1]", "sac[x=1]", "td3 (record)"], ["m:Q", "sac", "td3 (record)"], ["x=1"]),
        (["qsm[x=1]", "td3[x=1] (record)"], ["qsm[x=1]", "td3[x=1] (record)"], []),
        (["[x=1]", "sac[x=1]"], ["[x=1]", "sac[x=1]"], []),
        (["qsm[x=1,y]", "sac[x=1,y]"], ["qsm[x=1,y]", "sac[x=1,y]"], []),
        # Shorter, the two would be one: an odd label that no command makes.
        (["qsm[x=1]", "qsm[x=1,x=1]"], ["qsm[x=1]", "qsm[x=1,x=1]"], []),
    ],
)
def test_only_what_all_columns_share_is_said_once(
    agents: list[str], shown: list[str], shared: list[str]
) -> None:
    assert labels_of(agents) == (shown, shared)


settings_of_an_agent = st.dictionaries(
    st.sampled_from("abcd"), st.sampled_from(["1", "2", "[1,2]"]), max_size=4
)


@given(st.lists(settings_of_an_agent, min_size=2, max_size=4))
def test_nothing_is_lost_and_nothing_that_differs_is_left_out(agents: list[dict[str, str]]) -> None:
    def label(index: int, settings: dict[str, str]) -> str:
        pairs = ",".join(f"{key}={settings[key]}" for key in sorted(settings))
        return f"agent{index}[{pairs}]" if pairs else f"agent{index}"

    shown, shared = labels_of([label(i, settings) for i, settings in enumerate(agents)])
    common = set.intersection(*(set(settings.items()) for settings in agents))
    assert shared == [f"{key}={value}" for key, value in sorted(common)]
    left = [dict(settings.items() - common) for settings in agents]
    assert shown == [label(i, settings) for i, settings in enumerate(left)]


def test_every_table_has_the_new_labels_and_its_own_numbers() -> None:
    results = with_diagnostics(make_results(("qsm[x=1]", "td3[x=1]"), ("a",)))
    results = replace(results, damaged=(Damaged("td3[x=1]", "b", (0,), "gone"),))
    shorter, _ = without_shared_settings(results)
    assert {cell["agent"] for cell in shorter.cells} == {"qsm", "td3"}
    assert shorter.damaged[0].agent == "td3"
    for name in ("evaluations", "training", "diagnostics", "slices"):
        before, after = getattr(results, name), getattr(shorter, name)
        assert set(after["agent"]) == {"qsm", "td3"}
        assert_frame_equal(before.drop(columns="agent"), after.drop(columns="agent"))
    back = relabeled(shorter, {"qsm": "qsm[x=1]", "td3": "td3[x=1]"})
    assert back.cells == results.cells
    assert back.experiment == results.experiment
    assert_frame_equal(back.evaluations, results.evaluations)


def test_a_report_says_a_shared_setting_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "REPLICATIONS", 20)
    results = with_diagnostics(make_results(("qsm[a=2,zz=7]", "td3[zz=7]"), ("a",), 2, 2, 1))
    page = write_report(results, tmp_path / "r")
    text = page.with_name("report.md").read_text()
    before, _, commands = text.partition("Commands that made these results")
    assert before.count("zz=7") == 1
    assert "All agents: zz=7." in before.partition("## ")[0]
    assert "--agents qsm[a=2,zz=7]" in commands
    for file in (tmp_path / "r" / "data").iterdir():
        assert "zz=7" not in file.read_text(), file
    assert set(pd.read_csv(tmp_path / "r" / "data" / "runs.csv")["agent"]) == {"qsm[a=2]", "td3"}
