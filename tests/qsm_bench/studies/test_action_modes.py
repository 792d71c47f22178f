"""The study of action modes: what decides, and that it runs."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qsm_bench.cli import app
from qsm_bench.studies import action_modes, initial_state
from qsm_bench.studies.action_modes import (
    LENGTHS,
    QSM,
    SAC,
    STUDY,
    TASK,
    TRAINERS,
    decide_bounds,
    decide_maxima,
    decide_modes,
    decide_sides,
    measure_looks,
    measure_plays,
)
from qsm_bench.studies.initial_state import AXIS, Look, Play

BOTH, RIGHT = np.repeat([-1.0, 1.0], 50), np.ones(100)
VALLEY, HILL, SLOPE = AXIS**2, -(AXIS**2), AXIS


def make_looks(samples: Any, q: Any, agent: str = QSM, seeds: int = 6) -> pd.DataFrame:
    """Runs that are alike at two looks each."""
    runs = {(agent, seed): Look(samples, q) for seed in range(seeds)}
    return measure_looks({1: runs, 2: runs})


def modes_of(**modes: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"agent": agent, "seed": seed, "modes": value + change}
            for agent, found in modes.items()
            for seed, value in enumerate(found)
            for change in (-0.5, 0.5)  # two looks
        ]
    )


@pytest.mark.parametrize(
    ("modes", "outcome"),
    [
        ({QSM: [2.0] * 4, SAC: [1.0] * 4}, "holds"),
        ({QSM: [1.0] * 4, SAC: [2.0] * 4}, "does not hold"),
        ({QSM: [2.0] * 4, SAC: [2.0] * 4}, "cannot tell"),
        ({QSM: [2.0] * 3, SAC: [1.0] * 3}, "cannot tell"),  # no p is so small with three
        ({QSM: [2.0] * 4}, "cannot tell"),
        ({SAC: [2.0] * 4}, "cannot tell"),
    ],
)
def test_the_verdict_on_modes(modes: dict[str, list[float]], outcome: str) -> None:
    assert decide_modes(modes_of(**modes)).outcome == outcome


@pytest.mark.parametrize(
    ("looks", "outcome"),
    [
        ([(BOTH, VALLEY, 6)], "holds"),
        ([(BOTH, VALLEY, 5)], "cannot tell"),
        ([(RIGHT, VALLEY, 6)], "does not hold"),
        ([(BOTH, SLOPE, 6)], "cannot tell"),  # Q has no several maxima
        ([(BOTH, HILL, 6)], "cannot tell"),
        ([(BOTH, VALLEY, 6), (BOTH, HILL, 6)], "holds"),  # the latter looks do not count
        ([(BOTH, VALLEY, 6), (RIGHT, VALLEY, 6)], "does not hold"),  # half is not more than half
    ],
)
def test_the_verdict_on_maxima(looks: list[Any], outcome: str) -> None:
    measured = pd.concat([make_looks(samples, q, seeds=n) for samples, q, n in looks])
    others = make_looks(RIGHT, VALLEY, agent=SAC)  # do not count
    assert decide_maxima(pd.concat([measured, others])).outcome == outcome


@pytest.mark.parametrize(
    ("samples", "q", "seeds", "outcome"),
    [
        (BOTH, VALLEY, 6, "holds"),  # at the bounds, where Q is high
        (BOTH, HILL, 6, "does not hold"),
        (BOTH, SLOPE, 6, "does not hold"),
        (RIGHT, SLOPE, 6, "holds"),
        (0.5 * BOTH, HILL, 6, "holds"),
        (BOTH, VALLEY, 5, "cannot tell"),
        (BOTH, HILL, 5, "cannot tell"),
        (BOTH, HILL, 0, "cannot tell"),
    ],
)
def test_the_verdict_on_bounds(samples: Any, q: Any, seeds: int, outcome: str) -> None:
    measured = make_looks(samples, q, seeds=seeds)
    others = make_looks(BOTH, HILL, agent=SAC)
    assert decide_bounds(pd.concat([measured, others])).outcome == outcome


STREAM = np.random.default_rng(0)
KEPT = np.repeat(BOTH[:, np.newaxis], 100, axis=1)
DRAWN = STREAM.choice([-1.0, 1.0], (100, 100))
ONE_WAY = np.ones((100, 100))
FEW = np.where(np.arange(100)[:, np.newaxis] < 5, -ONE_WAY, ONE_WAY)


@pytest.mark.parametrize(
    ("actions", "seeds", "outcome"),
    [
        (KEPT, 6, "holds"),
        (KEPT, 5, "cannot tell"),
        (DRAWN, 6, "does not hold"),  # both sides, but no trajectory keeps to one
        (ONE_WAY, 6, "does not hold"),  # one side
        (FEW, 6, "does not hold"),
        (KEPT, 0, "cannot tell"),
    ],
)
def test_the_verdict_on_sides(actions: Any, seeds: int, outcome: str) -> None:
    plays = {(QSM, seed): Play(actions, actions, seconds=0.02) for seed in range(seeds)}
    plays[SAC, 0] = Play(KEPT, KEPT, seconds=0.02)
    assert decide_sides(measure_plays(plays)).outcome == outcome


def test_each_look_is_twice_as_late_as_the_one_before() -> None:
    for steps in LENGTHS.values():
        assert all(b == 2 * a for a, b in pairwise(steps))


@pytest.mark.parametrize("budget", ["tiny", "quick", "full"])
def test_the_shorter_runs_are_the_beginnings_of_the_longest(budget: Any) -> None:
    """Nothing but the number of steps differs, and all seeds are the same."""
    *shorter, longest = STUDY.cells(budget)
    assert longest.protocol.steps == LENGTHS[budget][-1]
    for cells in shorter:
        assert cells.protocol.but(steps=longest.protocol.steps) == longest.protocol
        assert cells.protocol.warmup_steps < cells.protocol.steps
        assert (cells.agents, cells.tasks, cells.seeds) == (longest.agents, TASK, longest.seeds)


@pytest.mark.slow
def test_the_study_runs_and_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(initial_state, "TRAJECTORIES", 4)
    folder = tmp_path / "reports" / "studies" / "action-modes"
    told, pages = [], []
    for _ in range(2):
        app(["study", "action-modes", "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
        pages.append((folder / "report.md").read_text(encoding="utf-8"))
    assert "skipped: 2 finished jobs" not in told[0]
    assert told[1].count("skipped: 2 finished jobs") == 2
    assert pages[0] == pages[1]
    assert all("action-modes: cannot tell. The tiny budget only shows" in text for text in told)
    ends = pd.read_csv(folder / "data" / "ends.csv")
    assert set(ends["agent"]) == {QSM, SAC} < set(TRAINERS)
    assert len(ends) == 2 * action_modes.SEEDS["tiny"]
    density = pd.read_csv(folder / "data" / "density.csv")
    sums = density.groupby(["agent", "step"])["share"].sum()
    assert len(sums) == 2 * len(LENGTHS["tiny"])
    np.testing.assert_allclose(sums, 1.0, atol=1e-6)
    for name in ("density", "runs", "measures", "trajectories", "sides"):
        assert (folder / "figures" / f"{name}.svg").exists()
