"""The study of trainers: its cells, what it measures, and what decides."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from agents.registry import find_agent
from qsm_bench.cli import app
from qsm_bench.statistics.selection import Comparison, Curves
from qsm_bench.studies import trainers
from qsm_bench.studies.trainers import (
    CRITICS_PART,
    INITIAL,
    KNOWN,
    LITERAL,
    PG,
    QL,
    QSM,
    REPETITIONS,
    STUDY,
    TRAINERS,
    compare_returns,
    decide_returns,
    decide_signal,
    decide_time,
    known_value,
    measure_critics,
)
from qsm_bench.studies.update_cost import ONE_ACTION, UPDATE, measure_milliseconds
from qsm_bench.studies.vector_field import known_gradient


def test_the_literal_gradient_is_the_reduced_one_without_its_reduction() -> None:
    literal, reduced = find_agent(LITERAL), find_agent(PG)
    assert literal.agent is reduced.agent
    assert literal.preset == {"chains": 1, "baseline": "none", "scale_advantage": False}
    assert not reduced.preset


@pytest.mark.parametrize("budget", ["tiny", "quick"])
def test_small_tasks_are_trained_with_the_projects_settings_for_them(budget: Any) -> None:
    (cells,) = STUDY.cells(budget)
    slow = "[actor_learning_rate=0.0001]"
    assert cells.agents == f"{QSM},{QL}{slow},{PG}{slow},{LITERAL}{slow}"
    for name in TRAINERS:
        # So the settings of all tasks are those of each of these.
        by_task: dict[str, Any] = vars(find_agent(name).agent)["small_task_settings"]
        patterns = by_task.keys() - {"*"}
        assert not any(fnmatch(t, p) for t in cells.tasks.lower().split(",") for p in patterns)


def test_the_full_budget_is_the_default_protocol() -> None:
    (cells,) = STUDY.cells("full")
    assert cells.agents == ",".join(TRAINERS)
    assert cells.protocol.settings == {}
    assert (cells.seeds, cells.protocol.steps) == (10, 1_000_000)


def test_the_known_critic_has_the_known_gradient_in_each_pair_of_dimensions() -> None:
    action = (2 * torch.rand(2, 5, 6) - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(known_value(action).sum(), action)
    expected = known_gradient(action.detach().unflatten(-1, (3, 2))).flatten(2)
    torch.testing.assert_close(gradient, expected)


def test_noise_is_measured_of_all_with_both_critics() -> None:
    (cells,) = STUDY.cells("tiny")
    noise = measure_critics(cells.protocol.but(batch_size=4), 3)
    counts = noise.groupby(["critic", "agent"], sort=False).size()
    agents = [QSM, CRITICS_PART, QL, PG, LITERAL]
    assert counts.to_dict() == {
        (critic, agent): len(REPETITIONS) for critic in (INITIAL, KNOWN) for agent in agents
    }


def test_milliseconds_are_those_of_every_agent_in_every_round() -> None:
    times = measure_milliseconds([QSM, LITERAL], rounds=2)
    assert (times["milliseconds"] > 0).all()
    assert times.groupby(["agent", "measure"]).size().to_dict() == {
        (agent, measure): 2 for agent in (QSM, LITERAL) for measure in (UPDATE, ONE_ACTION)
    }


def make_noise(qsm: list[float], literal: list[float]) -> pd.DataFrame:
    """Ratios that are the same with both critics, of which the known one is to differ."""
    ratios = {QSM: qsm, QL: [9.0] * 4, PG: [0.5] * 4, LITERAL: literal}
    return pd.DataFrame(
        [
            {"critic": critic, "agent": agent, "seed": seed, "ratio": ratio}
            for critic in (INITIAL, KNOWN)
            for agent, found in ratios.items()
            for seed, ratio in enumerate(found)
        ]
    )


@pytest.mark.parametrize(
    ("qsm", "literal", "outcome"),
    [
        ([1.0] * 4, [0.1, 0.2, -0.1, 0.9], "holds"),
        ([1.0] * 4, [0.1, 0.2, -0.1, 1.1], "cannot tell"),
        ([1.0] * 4, [1.1] * 4, "does not hold"),
        ([0.4] * 4, [0.1] * 4, "does not hold"),  # below the reduced one
    ],
)
def test_the_verdict_on_the_signal(qsm: list[float], literal: list[float], outcome: str) -> None:
    noise = make_noise(qsm, literal)
    assert decide_signal(noise).outcome == outcome
    # One critic is enough for a part that fails, and both are needed for one that holds.
    other = noise["critic"].eq(INITIAL) & noise["agent"].ne(QSM)
    beaten = noise.assign(ratio=noise["ratio"].where(~other, -1.0))
    assert decide_signal(beaten).outcome == outcome


LOW, MIDDLE, HIGH = ([base + x for x in range(5)] for base in (0.0, 10.0, 20.0))


def make_comparison(returns: dict[str, list[float]]) -> Comparison:
    steps = np.array([1])
    curves = {
        (agent, "task"): Curves(tuple(range(len(found))), steps, np.array(found)[:, np.newaxis])
        for agent, found in returns.items()
        if found
    }
    return Comparison(TRAINERS, ("task",), curves, {"task": None}, ())


@pytest.mark.parametrize(
    ("qsm", "ql", "pg", "literal", "outcome"),
    [
        (HIGH, MIDDLE, MIDDLE, LOW, "holds"),
        (HIGH, HIGH, MIDDLE, LOW, "holds"),
        (MIDDLE, HIGH, LOW, LOW, "does not hold"),
        (MIDDLE, LOW, LOW, HIGH, "does not hold"),
        (MIDDLE, MIDDLE, MIDDLE, LOW, "cannot tell"),
        (MIDDLE, MIDDLE, [], LOW, "cannot tell"),  # all seeds have diverged
        ([], MIDDLE, MIDDLE, LOW, "cannot tell"),
    ],
)
def test_the_verdict_on_returns(qsm: Any, ql: Any, pg: Any, literal: Any, outcome: str) -> None:
    returns = {QSM: qsm, QL: ql, PG: pg, LITERAL: literal}
    assert decide_returns(compare_returns(make_comparison(returns))).outcome == outcome


def test_the_tests_of_returns_are_exact_and_adjusted_for_three() -> None:
    pairs = compare_returns(make_comparison({QSM: HIGH, QL: HIGH, PG: MIDDLE, LITERAL: LOW}))
    # 2 of the 252 ways to choose 5 of 10 runs are as extreme.
    np.testing.assert_allclose(pairs["p"], [1.0, 2 / 252, 2 / 252])
    np.testing.assert_allclose(pairs["adjusted"], [1.0, 6 / 252, 6 / 252])
    np.testing.assert_allclose(pairs["probability"], [0.5, 1.0, 1.0])


def test_a_difference_counts_only_after_the_adjustment() -> None:
    pairs = pd.DataFrame({"rival": [QL, PG, LITERAL], "probability": 1.0, "p": 0.03})
    assert decide_returns(pairs.assign(adjusted=0.06)).outcome == "cannot tell"
    assert decide_returns(pairs.assign(adjusted=0.04)).outcome == "holds"


@pytest.mark.parametrize(
    ("qsm", "ql", "outcome"),
    [
        ([1.0, 1.1], [2.0, 2.0], "holds"),
        ([1.0, 2.1], [2.0, 2.0], "cannot tell"),
        ([2.1, 2.1], [2.0, 2.0], "does not hold"),
    ],
)
def test_the_verdict_on_time(qsm: list[float], ql: list[float], outcome: str) -> None:
    spent = {QSM: qsm, QL: ql, PG: [9.0, 9.0], LITERAL: [3.0, 3.0]}
    times = pd.DataFrame(
        [
            {"agent": agent, "round": turn, "measure": measure, "milliseconds": value}
            for agent, found in spent.items()
            for turn, each in enumerate(found)
            for measure, value in ((UPDATE, each), (ONE_ACTION, -each))
        ]
    )
    assert decide_time(times).outcome == outcome


@pytest.mark.slow
def test_the_study_runs_and_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainers, "ROUNDS", 1)
    told = []
    for _ in range(2):
        app(["study", "trainers", "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
    assert "skipped: 4 finished jobs" not in told[0]
    assert "skipped: 4 finished jobs" in told[1]
    assert all("trainers: cannot tell. The tiny budget only shows" in text for text in told)
    folder = tmp_path / "reports" / "studies" / "trainers"
    steps, updates, seconds = (
        pd.read_csv(folder / "data" / f"returns-{x}.csv") for x in ("steps", "updates", "seconds")
    )
    assert set(steps["agent"]) == set(TRAINERS)
    for table in (updates, seconds):
        pd.testing.assert_series_equal(table["value"], steps["value"])
    assert (updates["step"] - updates["update"] == 100).all()  # the warm-up
    assert (seconds["seconds"] > 0).all()
    for name in ("signal", "milliseconds"):
        assert (folder / "figures" / f"{name}.svg").exists()
