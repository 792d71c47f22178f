"""The regression: its false-alarm rate, its power, its baseline, and what the baseline says."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents.registry import built_in_trainers
from qsm_bench import regression
from qsm_bench.errors import UserError
from qsm_bench.regression import BASELINE_SEEDS, FALSE_ALARMS, SCORES, SEEDS, SMALL_TASKS

AGENTS = built_in_trainers()
COMMITTED = Path(__file__).parents[2] / "results" / "regression"


def made_up_scores(rng: np.random.Generator, seeds: int, shift: float = 0.0) -> pd.DataFrame:
    """Draw skewed scores of the whole family; the two scores of a run are correlated."""
    rows = []
    for task in SMALL_TASKS:
        for agent in AGENTS:
            ends = 1.0 - 0.1 * rng.exponential(size=seeds) - shift
            areas = ends - 0.05 * rng.exponential(size=seeds)
            rows += [
                (agent, task.name, seed, end, area)
                for seed, (end, area) in enumerate(zip(ends, areas, strict=True))
            ]
    return pd.DataFrame(rows, columns=["agent", "task", "seed", *SCORES])


def test_unchanged_code_raises_an_alarm_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    runs = 400
    alarms = sum(
        any(
            finding.alarm
            for finding in regression.find_regressions(
                made_up_scores(rng, BASELINE_SEEDS), made_up_scores(rng, SEEDS), {}
            )
        )
        for _ in range(runs)
    )
    # Three standard errors of a share of 1 % above it.
    assert alarms / runs <= FALSE_ALARMS + 3 * np.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / runs)


def test_a_loss_larger_than_the_seeds_spread_is_found_in_every_cell() -> None:
    rng = np.random.default_rng(1)
    findings = regression.find_regressions(
        made_up_scores(rng, BASELINE_SEEDS), made_up_scores(rng, SEEDS, shift=1.0), {}
    )
    assert len(findings) == len(SMALL_TASKS) * len(AGENTS) * len(SCORES)
    assert {finding.verdict for finding in findings} == {"worse"}


@pytest.mark.parametrize("reason", [None, "there is no compiler"])
def test_updates_are_compiled_where_they_can_be_and_that_saves_time(
    reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "why_not_compiled", lambda device: reason)
    jobs = [folder.read_manifest().job for folder in regression.prepare(tmp_path, range(2))]
    cells = {(job.agent_name, job.task) for job in jobs}
    assert len(cells) == len(jobs) == len(SMALL_TASKS) * len(built_in_trainers())
    compiled = {job.agent_name for job in jobs if job.compiled}
    plain = {job.agent_name for job in jobs if not job.compiled}
    assert compiled == (set() if reason else regression.COMPILED)
    assert plain == set(built_in_trainers()) - compiled


def test_a_gain_is_named_and_raises_no_alarm() -> None:
    rng = np.random.default_rng(2)
    findings = regression.find_regressions(
        made_up_scores(rng, BASELINE_SEEDS), made_up_scores(rng, SEEDS, shift=-1.0), {}
    )
    assert {finding.verdict for finding in findings} == {"better"}
    assert not any(finding.alarm for finding in findings)


def test_a_failed_cell_and_a_score_that_is_not_finite_are_alarms() -> None:
    rng = np.random.default_rng(3)
    now = made_up_scores(rng, SEEDS)
    now.loc[(now["agent"] == "sac") & (now["task"] == SMALL_TASKS[0].name), "end"] = np.nan
    failed = {("qsm", SMALL_TASKS[0].name): "it broke"}
    findings = regression.find_regressions(made_up_scores(rng, BASELINE_SEEDS), now, failed)
    alarms = {(f.agent, f.task, f.score): f.note for f in findings if f.alarm}
    assert alarms == {
        ("qsm", SMALL_TASKS[0].name, "end"): "it broke",
        ("qsm", SMALL_TASKS[0].name, "area"): "it broke",
        ("sac", SMALL_TASKS[0].name, "end"): "a score is not finite",
    }


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    scores = made_up_scores(np.random.default_rng(4), 3)
    regression.write_baseline(tmp_path, scores)
    pd.testing.assert_frame_equal(regression.read_baseline(tmp_path), scores)


def test_a_baseline_of_other_settings_is_refused(tmp_path: Path) -> None:
    regression.write_baseline(tmp_path, made_up_scores(np.random.default_rng(5), 3))
    file = tmp_path / "baseline.json"
    about = json.loads(file.read_text())
    about["protocol"][0]["settings"]["discount"] = 0.5
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="was made with other settings"):
        regression.read_baseline(tmp_path)


def test_a_setting_that_came_later_has_its_default_in_a_baseline(tmp_path: Path) -> None:
    regression.write_baseline(tmp_path, made_up_scores(np.random.default_rng(6), 3))
    file = tmp_path / "baseline.json"
    about = json.loads(file.read_text())
    for job in about["protocol"]:
        assert "compiled" not in job
        job["compiled"] = False  # as older baselines say
        # A setting of the agent's, too.
        assert job["settings"].pop("polyak") == 0.005
    file.write_text(json.dumps(about))
    assert len(regression.read_baseline(tmp_path)) == 3 * len(about["protocol"])


PROTOCOLS = {
    "nothing": "",
    "no JSON": "{",
    "cut off": '{"protocol": []',
    "nested 100,000 deep": "[" * 100_000,
    "no object": "[]",
    "no protocol": "{}",
    "a protocol of numbers": '{"protocol": [1]}',
    "a protocol that is one": '{"protocol": 7}',
    "a surrogate": '{"protocol": ["\\ud800"]}',
    "somebody's agent": '{"protocol": [{"agent_name": "antigravity:X", "settings": {}}]}',
    "an agent that is a list": '{"protocol": [{"agent_name": [], "settings": {}}]}',
    "settings of no agent": '{"protocol": [{"agent_name": "qsm", "settings": {"x": [[]]}}]}',
    "a huge file": " " * 2**21,
}


@pytest.mark.parametrize("damage", PROTOCOLS)
def test_a_baseline_that_cannot_be_read_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    regression.write_baseline(tmp_path, made_up_scores(np.random.default_rng(6), 3))
    (tmp_path / "baseline.json").write_text(PROTOCOLS[damage])
    with pytest.raises(
        UserError, match=r"no baseline can be read from .*baseline\.json"
    ) as refused:
        regression.read_baseline(tmp_path)
    assert "\n" not in str(refused.value)
    assert "antigravity" not in sys.modules


SCORES_OF: dict[str, Callable[[str], str]] = {
    "nothing": lambda text: "",
    "a foreign column": lambda text: text.replace("area", "arena"),
    "one column more": lambda text: text.replace("area\n", "area,more\n"),
    "200,000 columns": lambda text: "agent," * 200_000 + text,
    "a cell too few": lambda text: text[: text.index("td3,")],
    "a cell too many": lambda text: text + "evil,four-goals,0,1,1\n",
    "a seed twice": lambda text: text + text.splitlines()[-1] + "\n",
    "a seed too few": lambda text: text[: text.rindex("td3,")],
    "words for numbers": lambda text: text + "td3,four-goals,9,good,1\n",
    "an endless number": lambda text: text + "td3,four-goals,9,inf,1\n",
    "a blank": lambda text: text + "td3,four-goals,9,,1\n",
    "a blank agent": lambda text: text + ",four-goals,9,1,1\n",
    "part of a seed": lambda text: text + "td3,four-goals,1.5,1,1\n",
    "a negative seed": lambda text: text.replace(",0,", ",-1,"),
    "a seed beyond all": lambda text: text.replace(",0,", f",{10**30},"),
}


@pytest.mark.parametrize("damage", SCORES_OF)
def test_scores_of_a_baseline_that_are_damaged_are_one_clear_line(
    tmp_path: Path, damage: str
) -> None:
    regression.write_baseline(tmp_path, made_up_scores(np.random.default_rng(6), 3))
    file = tmp_path / "baseline.csv"
    file.write_text(SCORES_OF[damage](file.read_text()))
    with pytest.raises(UserError, match=r"no baseline can be read from .*baseline\.csv") as refused:
        regression.read_baseline(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["baseline.json", "baseline.csv"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_baseline_is_of_plain_files(tmp_path: Path, name: str, kind: str) -> None:
    regression.write_baseline(tmp_path / "b", made_up_scores(np.random.default_rng(6), 3))
    file = (tmp_path / "b" / name).replace(tmp_path / "elsewhere")
    place = tmp_path / "b" / name
    make: dict[str, Callable[[], object]] = {
        "link": lambda: place.symlink_to(file),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
    }
    make[kind]()
    with pytest.raises(UserError, match=f"{name} is a "):
        regression.read_baseline(tmp_path / "b")


def test_the_committed_baseline_is_of_the_settings_of_now() -> None:
    scores = regression.read_baseline(COMMITTED)
    assert set(map(tuple, scores[["agent", "task"]].to_numpy())) == {
        (agent, task.name) for agent in AGENTS for task in SMALL_TASKS
    }
    assert (scores.groupby(["agent", "task"])["seed"].nunique() == BASELINE_SEEDS).all()


def test_every_agent_beats_a_random_policy_on_every_small_task() -> None:
    ends = regression.read_baseline(COMMITTED).groupby(["agent", "task"])["end"]
    lower = ends.mean() - 3 * ends.std() / np.sqrt(ends.size())
    assert (lower > 0).all(), lower[lower <= 0]
