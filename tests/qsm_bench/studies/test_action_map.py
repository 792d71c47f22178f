"""The study of the action map: what it measures, its maps, and what decides."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.common.streams import SeedStreams
from qsm_bench.cli import app
from qsm_bench.statistics.selection import Comparison, Curves
from qsm_bench.studies import sampled_actions
from qsm_bench.studies.action_map import (
    MAPS,
    PCA,
    QL,
    QSM,
    STUDY,
    TRAINERS,
    UMAP,
    decide_parts,
    map_actions,
    shared_seeds,
)
from qsm_bench.studies.embedding import NEIGHBORS, neighbor_map, principal_components
from qsm_bench.studies.parts import decide
from qsm_bench.studies.sampled_actions import (
    ALL_MODES,
    AT_BOUND,
    EACH,
    ENTROPY,
    GAIN,
    HELD,
    MEASURES,
    MODES,
    OTHER_GAIN,
    PULLED,
    Actions,
    Trained,
    gains,
    look,
    measure,
    pick_states,
    pulled_inward,
)
from tests.qsm_bench.test_cli import assert_refused, call

CPU = torch.device("cpu")


def cloud(places: Sequence[Sequence[float]], spread: float, each: int = 100) -> Tensor:
    """As many normal samples around each place: [M, act]."""
    centers = torch.tensor(places).repeat_interleave(each, dim=0)
    noise = SeedStreams([0], "cloud", CPU).normal(*centers.shape)[0]
    return centers + spread * noise


def measured(samples: Tensor, gain: Tensor, pulled: Tensor | None = None) -> "pd.Series[Any]":
    """The measures of actions [M, act] with gains [M] at one state."""
    inward = torch.zeros_like(samples, dtype=torch.bool) if pulled is None else pulled
    actions = Actions(samples[None], gain[None], -gain[None], inward[None])
    return measure({(QSM, 3): actions}).iloc[0]


@given(st.lists(st.booleans(), min_size=1, max_size=4))
def test_a_known_mixture_has_its_modes_and_those_at_high_q(high: list[bool]) -> None:
    corners = [[0.7, 0.7], [-0.7, 0.7], [0.7, -0.7], [-0.7, -0.7]][: len(high)]
    gain = torch.tensor([0.9 if up else 0.1 for up in high]).repeat_interleave(100)
    row = measured(cloud(corners, 0.05), gain)
    assert row[ALL_MODES] == len(high)
    assert row[MODES] == sum(high)
    assert row[HELD] == 1.0
    assert row[GAIN] == pytest.approx(float(gain.mean()))
    assert row[OTHER_GAIN] == pytest.approx(-float(gain.mean()))
    assert row[AT_BOUND] == row[PULLED] == 0.0


def test_what_is_spread_too_thinly_is_in_no_mode() -> None:
    few = torch.tensor([[0.9, 0.9]]).repeat(4, 1)  # of 100: less than 5 %
    row = measured(torch.cat([cloud([[-0.8, -0.8]], 0.02, 96), few]), torch.ones(100))
    assert row[ALL_MODES] == 1
    assert row[HELD] == pytest.approx(0.96)


@pytest.mark.parametrize("size", [1, 3])
def test_the_entropy_of_a_normal_policy_is_the_known_one(size: int) -> None:
    row = measured(cloud([[0.0] * size], 0.3, 500), torch.ones(500))
    assert row[ENTROPY] == pytest.approx(size / 2 * math.log(2 * math.pi * math.e * 0.09), abs=0.15)


def test_overshoot_beyond_one_maximum_is_told_from_two_modes() -> None:
    """On a parabola whose maximum is at 0.6, a policy that jumps from bound to bound."""
    best, jumps = 0.6, torch.tensor([[1.0], [-1.0]]).repeat(50, 1)
    uniform = torch.linspace(-1, 1, 1001).unsqueeze(1)

    def q(action: Tensor) -> Tensor:
        return -(action - best).square().sum(dim=-1)

    gain = gains(q(jumps), q(uniform), torch.tensor(0.0))
    row = measured(jumps, gain, pulled_inward(jumps, -2 * (jumps - best)))
    assert row[ALL_MODES] == 2
    assert row[MODES] == 1  # the far bound is worse than uniform actions
    assert row[AT_BOUND] == row[PULLED] == 1.0


def test_an_entry_is_pulled_inward_where_q_rises_inward_at_a_bound() -> None:
    action = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.99, -1.0])
    gradient = torch.tensor([-1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    assert pulled_inward(action, gradient).tolist() == [True, False, True, False, False, False]


@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_a_gain_does_not_depend_on_the_critics_scale(scale: float, shift: float) -> None:
    draw = SeedStreams([0], "values", CPU)
    values, uniform = draw.normal(2, 5)[0].double(), draw.normal(2, 9)[0].double()
    best = torch.cat([values, uniform], dim=1).amax(dim=1)
    first = gains(values, uniform, best)
    other = gains(scale * values + shift, scale * uniform + shift, scale * best + shift)
    torch.testing.assert_close(first, other)
    assert float(first.max()) <= 1.0
    torch.testing.assert_close(gains(best[:, None], uniform, best), torch.ones(2, 1).double())
    mean = uniform.mean(dim=1, keepdim=True)
    torch.testing.assert_close(gains(mean, uniform, best), torch.zeros(2, 1).double())


def test_a_flat_critic_has_no_gain() -> None:
    flat = torch.ones(2, 4)
    assert gains(flat, flat, flat[:, 0]).tolist() == [[0.0] * 4] * 2


def test_states_come_from_both_trainers_and_from_all_of_an_episode() -> None:
    visited = {
        (trainer, seed): torch.tensor([[100.0 * place + 10 * seed + step] for step in range(8)])
        for place, trainer in enumerate(TRAINERS)
        for seed in (1, 0)
    }
    assert pick_states(visited, TRAINERS, 4).squeeze(1).tolist() == [
        *(1.0, 13.0, 5.0, 17.0),  # steps 1, 3, 5, 7 of seeds 0, 1, 0, 1
        *(101.0, 113.0, 105.0, 117.0),
    ]


class Known:
    """An agent whose seeds always take their own action; its Q is the slope times the action."""

    def __init__(self, actions: Sequence[float], slope: float) -> None:
        self.actions, self.slope = torch.tensor(actions), slope

    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        rows = self.actions.view(-1, 1, 1, 1)
        return rows.expand(-1, observation.shape[1], count, 2).clone()

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.slope * action[..., 0] + observation[..., 0]

    def action_gradient(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.full_like(action, self.slope)


def test_every_run_is_judged_by_its_own_critic_and_by_that_of_its_seed() -> None:
    def job(trainer: str, seeds: Sequence[int], actions: Sequence[float], slope: float) -> Trained:
        agent = cast(Any, Known(actions, slope))
        return Trained(trainer, seeds, agent, CPU, torch.zeros(len(seeds), 8, 1))

    jobs = [
        job(QL, (2,), [-0.5], -1.0),
        job(QSM, (0, 2), [0.5, -1.0], 1.0),
        job(QL, (0, 1), [1.0, 0.0], -2.0),
        job(QSM, (1,), [0.0], 1.0),
    ]
    found = look(jobs, TRAINERS, [0, 2])
    assert set(found) == {(trainer, seed) for trainer in TRAINERS for seed in (0, 2)}
    runs = measure(found).groupby(["agent", "seed"])[[GAIN, OTHER_GAIN, PULLED]].mean()
    # Uniform actions have a mean of nearly 0, and 1 and -1 are nearly the best.
    expected = {
        (QSM, 0): (0.5, -0.5, 0.0),
        (QL, 0): (-1.0, 1.0, 1.0),
        (QSM, 2): (-1.0, 1.0, 1.0),
        (QL, 2): (0.5, -0.5, 0.0),
    }
    for run, values in expected.items():
        np.testing.assert_allclose(runs.loc[[run]].to_numpy()[0], values, atol=0.06)


# The maps.


def test_principal_components_keep_the_distances_of_a_plane() -> None:
    plane = np.random.default_rng(0).normal(size=(50, 2)) * [3.0, 1.0]
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    places, shares = principal_components(plane @ turned[:2] + 7.0)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] > 0.8
    apart = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (plane, places)]
    np.testing.assert_allclose(apart[0], apart[1])


def test_points_that_are_all_equal_have_a_map() -> None:
    places, shares = principal_components(np.ones((20, 3)))
    assert shares.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(neighbor_map(np.ones((20, 3))), places)


def two_corners() -> dict[str, Actions]:
    """Two trainers, each at corners of its own: equal actions, few different ones."""
    found = {}
    for sign, trainer in zip((1.0, -1.0), TRAINERS, strict=True):
        samples = torch.tensor([[sign, 1.0], [sign, -1.0], [sign, -1.0]])
        gain = torch.tensor([sign, 0.0, 0.0])
        pulled = torch.tensor([[False, True], [False, False], [False, False]])
        found[trainer] = Actions(samples[None], gain[None], gain[None], pulled[None])
    return found


def test_equal_actions_are_one_mark_that_counts_them() -> None:
    points, shares = map_actions(two_corners(), 0)
    assert sum(shares) == pytest.approx(1.0)
    for name in MAPS:
        here = points[points["map"] == name]
        assert here["agent"].tolist() == [QSM, QSM, QL, QL]
        assert here["count"].tolist() == [1, 2, 1, 2]
        assert here["gain"].tolist() == [1.0, 0.0, -1.0, 0.0]
        assert here["pulled"].tolist() == [True, False, True, False]
        # Both trainers are on one map: no two of the four corners share a place.
        assert len(here[["x", "y"]].drop_duplicates()) == 4


@pytest.mark.slow
def test_umap_gives_the_same_map_twice_and_keeps_neighbors() -> None:
    pytest.importorskip("umap")
    centers = np.repeat(3.0 * np.eye(6)[:3], 40, axis=0)
    points = centers + np.random.default_rng(0).normal(size=(120, 6)) * 0.1
    points[:20] = points[0]
    first, second = neighbor_map(points), neighbor_map(points)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first[:20], axis=0)) == 1
    assert len(np.unique(points, axis=0)) > NEIGHBORS
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (apart.argmin(axis=1) // 40 == np.arange(120) // 40).all()


# What decides.

LOW, HIGH = [0.1, 0.2, 0.3, 0.4, 0.45, 0.47], [0.51, 0.6, 0.7, 0.8, 0.9, 0.95]
MIXED = LOW[:3] + HIGH[:3]


def make_runs(modes: Any, entropy: Any, gain: Any) -> pd.DataFrame:
    """Runs with these values, (qsm's, diffusion_ql's), one a seed; the mean of two states."""
    rows = [
        {
            **dict.fromkeys(MEASURES, 0.0),
            **{"agent": trainer, "seed": seed, "state": state},
            **{MODES: m + off, ENTROPY: e - off, GAIN: g + off / 100},
        }
        for trainer, *values in zip(TRAINERS, modes, entropy, gain, strict=True)
        for seed, (m, e, g) in enumerate(zip(*values, strict=True))
        for state, off in enumerate((-1.0, 1.0))
    ]
    return pd.DataFrame(rows)


MORE, FEWER, EQUAL = (HIGH, LOW), (LOW, HIGH), (MIXED, MIXED)


@pytest.mark.parametrize(
    ("modes", "entropy", "gain", "outcomes", "whole"),
    [
        (MORE, MORE, MORE, ("holds", "holds", "holds"), "holds"),
        (MORE, MORE, EQUAL, ("holds", "holds", "cannot tell"), "cannot tell"),
        (EQUAL, MORE, MORE, ("cannot tell", "holds", "holds"), "cannot tell"),
        (FEWER, EQUAL, MORE, ("does not hold", "cannot tell", "holds"), "does not hold"),
        (MORE, FEWER, MORE, ("holds", "does not hold", "holds"), "does not hold"),
        (MORE, MORE, FEWER, ("holds", "holds", "does not hold"), "does not hold"),
    ],
)
def test_the_verdict_is_as_the_test_says(
    modes: Any, entropy: Any, gain: Any, outcomes: tuple[str, ...], whole: str
) -> None:
    parts = decide_parts(make_runs(modes, entropy, gain))
    assert tuple(part.outcome for part in parts) == outcomes
    assert decide(parts).outcome == whole


def test_two_seeds_decide_nothing() -> None:
    two = tuple(values[:2] for values in MORE)
    assert {part.outcome for part in decide_parts(make_runs(two, two, two))} == {"cannot tell"}


@pytest.mark.parametrize(
    ("of_qsm", "of_ql", "shared"),
    [((0, 1, 2), (2, 0), [0, 2]), ((0, 1), (2,), []), ((0, 1), None, [])],
)
def test_a_seed_counts_if_both_trainers_have_a_run_of_it(
    of_qsm: tuple[int, ...], of_ql: tuple[int, ...] | None, shared: list[int]
) -> None:
    runs = {
        (trainer, "task"): Curves(seeds, np.array([1]), np.zeros((len(seeds), 1)))
        for trainer, seeds in zip(TRAINERS, (of_qsm, of_ql), strict=True)
        if seeds is not None
    }
    comparison = Comparison(TRAINERS, ("task",), runs, {"task": None}, ())
    assert shared_seeds(comparison) == shared


# The command.


def test_without_umap_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.chdir(tmp_path)
    assert_refused(call("study", STUDY.name), "pip install 'qsm_bench[studies]'")
    assert list(tmp_path.iterdir()) == []
    assert STUDY.name in call("study").out


@pytest.mark.slow
def test_the_study_runs_and_the_same_results_give_the_same_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("umap")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampled_actions, "SAMPLES", 60)
    monkeypatch.setattr(sampled_actions, "UNIFORM", 50)
    told, reports = [], []
    folder = tmp_path / "reports" / "studies" / STUDY.name
    for _ in range(2):
        app(["study", STUDY.name, "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        reports.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert "skipped: 2 finished jobs" not in told[0]
    assert "skipped: 2 finished jobs" in told[1]
    assert all("action-map: cannot tell. The tiny budget only shows" in text for text in told)
    assert reports[0] == reports[1]
    names = {str(file) for file in reports[0]}
    assert names >= {f"figures/map-{trainer}.svg" for trainer in TRAINERS}
    runs = pd.read_csv(folder / "data" / "measures-table.csv")
    assert len(runs) == 2 * 2 * 2 * EACH  # trainers, seeds, states
    points = pd.read_csv(folder / "data" / f"map-{QSM}.csv")
    assert set(points["map"]) == {UMAP, PCA}
    assert points.groupby(["map", "agent"])["count"].sum().eq(60).all()
