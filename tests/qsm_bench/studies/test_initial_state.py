"""What is measured at the first state of an episode: closed forms."""

import numpy as np
import pytest
from dm_control import suite
from hypothesis import given
from hypothesis import strategies as st

from envs import Lockstep
from qsm_bench.diagnostics import SLICE_CELLS
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.studies import initial_state
from qsm_bench.studies.initial_state import (
    AXIS,
    SAMPLES,
    STATE_SEED,
    WINDOW,
    Look,
    Play,
    commitment,
    density,
    peaks,
    shares,
)

STREAM = np.random.default_rng(0)
NOISE = STREAM.standard_normal(SAMPLES)
UNIFORM = STREAM.uniform(-1.0, 1.0, SAMPLES)
SIDES = np.sign(NOISE)
"""Samples at the two bounds alone."""
FLAT, VALLEY, HILL, SLOPE = 0 * AXIS, AXIS**2, -(AXIS**2), AXIS


def look(samples: FloatArray = UNIFORM, q: FloatArray = FLAT) -> Look:
    return Look(samples, q)


@pytest.mark.parametrize(
    ("samples", "places"),
    [
        (0.1 * NOISE, [0.0]),
        (0.5 * SIDES + 0.05 * NOISE, [-0.5, 0.5]),
        (SIDES, [-1.0, 1.0]),
        (np.ones(SAMPLES), [1.0]),
        (np.where(np.arange(SAMPLES) < 0.05 * SAMPLES, -1.0, 1.0), [1.0]),  # too few for a mode
        (np.where(np.arange(SAMPLES) < 0.2 * SAMPLES, -1.0, 1.0), [-1.0, 1.0]),
        (np.tanh(0.5 * NOISE), [0.0]),
        (np.tanh(2.0 * NOISE), [-1.0, 1.0]),  # as wide as that, a squashed normal has two
    ],
)
def test_the_modes_of_samples_are_where_they_crowd(
    samples: FloatArray, places: list[float]
) -> None:
    np.testing.assert_allclose(look(samples).modes, places, atol=0.1)


def test_uniform_samples_have_one_mode() -> None:
    assert len(look(UNIFORM).modes) == 1


@given(st.floats(-1.0, 1.0))
def test_the_density_of_a_sample_anywhere_has_all_its_mass_on_the_axis(at: float) -> None:
    found = density(np.array([at]))
    assert np.trapezoid(found, AXIS) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("q", "places"),
    [
        (FLAT, []),
        (SLOPE, [1.0]),
        (HILL, [0.0]),
        (VALLEY, [-1.0, 1.0]),
        (VALLEY + 0.5 * SLOPE, [-1.0, 1.0]),
        (VALLEY + 1.5 * SLOPE, [1.0]),  # at the other bound it rises by 1/40 of the range
        (np.cos(2 * np.pi * AXIS), [-1.0, 0.0, 1.0]),
        (SLOPE + 0.02 * np.cos(20 * AXIS), [1.0]),  # ripples
    ],
)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 50.0)])
def test_the_maxima_of_q_depend_on_no_scale(
    q: FloatArray, places: list[float], scale: float, shift: float
) -> None:
    np.testing.assert_allclose(look(q=scale * q + shift).maxima, places, atol=0.05)


@pytest.mark.parametrize(
    ("samples", "q", "followed"),
    [
        (SIDES, VALLEY, 2),
        (np.ones(SAMPLES), VALLEY, 1),
        (SIDES, SLOPE, 1),
        (SIDES, HILL, 0),
        (SIDES, FLAT, 0),
        (0.1 * NOISE, HILL, 1),
        (0.1 * NOISE, VALLEY, 0),
    ],
)
def test_a_maximum_has_a_mode_if_one_is_near(
    samples: FloatArray, q: FloatArray, followed: int
) -> None:
    assert look(samples, q).followed == followed


@pytest.mark.parametrize(
    ("samples", "q", "overshoot"),
    [
        (SIDES, VALLEY, 0.0),  # the same samples are modes
        (SIDES, HILL, 1.0),  # or overshoot: Q says which
        (SIDES, SLOPE, float((SIDES < 0).mean())),
        (SIDES, VALLEY + 0.1 * SLOPE, 0.0),
        (SIDES, VALLEY + 0.5 * SLOPE, float((SIDES < 0).mean())),  # a maximum, but a low one
        (0.1 * NOISE, HILL, 0.0),  # none is at a bound
        (0.96 * SIDES, HILL, 1.0),
        (SIDES, FLAT, 0.0),
    ],
)
def test_samples_at_a_bound_overshoot_where_q_is_low(
    samples: FloatArray, q: FloatArray, overshoot: float
) -> None:
    assert look(samples, q).overshoot == pytest.approx(overshoot)
    assert look(samples, q).at_bounds == (np.abs(samples) >= 0.95).mean()


def test_the_peaks_are_those_of_the_axis() -> None:
    assert peaks(HILL).tolist() == [0.0]
    assert AXIS[[0, -1]].tolist() == [-1.0, 1.0]


def test_every_sample_is_in_one_cell() -> None:
    found = shares(look(np.concatenate([SIDES, UNIFORM])))
    assert found.shape == (SLICE_CELLS,)
    assert found.sum() == pytest.approx(1.0)
    assert found[0] > 0.2
    assert found[-1] > 0.2


KEPT = np.repeat(SIDES[:400, np.newaxis], 25, axis=1)
"""Each of 400 trajectories keeps one push."""


def test_who_keeps_one_push_has_committed() -> None:
    assert commitment(KEPT) == pytest.approx(1.0)
    assert commitment(7 * KEPT + np.linspace(0, 5, 25)) == pytest.approx(1.0)


@pytest.mark.parametrize("all_do_the_same", [0.0, np.linspace(-3, 3, 25)])
def test_independent_pushes_do_not_commit(all_do_the_same: FloatArray) -> None:
    pushes = np.random.default_rng(1).choice([-1.0, 1.0], (4_000, 25))
    assert commitment(pushes + all_do_the_same) == pytest.approx(0.0, abs=0.01)


def test_three_of_four_pushes_to_a_side_are_a_quarter() -> None:
    stream = np.random.default_rng(2)
    side = stream.choice([-1.0, 1.0], (4_000, 1))
    own = stream.random((4_000, 25)) < 0.75
    assert commitment(np.where(own, side, -side)) == pytest.approx(0.25, abs=0.01)


def test_trajectories_that_are_all_the_same_have_no_commitment() -> None:
    assert np.isnan(commitment(np.ones((10, 25))))


def test_the_side_is_that_of_the_window() -> None:
    decisions = round(WINDOW / 0.02)
    actions = np.concatenate([KEPT, -9 * KEPT, -9 * KEPT], axis=1)
    assert decisions == 25
    play = Play(actions, np.zeros_like(actions), seconds=0.02)
    right = float((KEPT[:, 0] > 0).mean())
    np.testing.assert_array_equal(play.to_the_right, KEPT[:, 0] > 0)
    assert play.smaller_side == pytest.approx(min(right, 1 - right))
    assert play.commitment == pytest.approx(1.0)


def test_all_trajectories_begin_in_one_state_in_which_the_pole_hangs() -> None:
    environments = Lockstep("cartpole-swingup", 2)
    first, second = (environments.reset(i, STATE_SEED) for i in range(2))
    environments.close()
    np.testing.assert_array_equal(first, second)
    position, cosine, sine, *speeds = first
    assert cosine < -0.99
    assert max(abs(x) for x in (position, sine, *speeds)) < 0.1


def test_a_decision_takes_the_tasks_own_time_step() -> None:
    task = suite.load("cartpole", "swingup")
    assert task.control_timestep() == pytest.approx(initial_state.STEP_SECONDS)
