"""Environments stepped together behave as each does alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs import Lockstep, make
from qsm_bench.suites import SUITES
from tests.envs.made_up import made_up, registered

Array = NDArray[np.float32]

TASKS = ("four-goals", "linear-quadratic", "reacher-easy", "Hopper-v5")
SEEDS = (0, 1, 2**32 - 1)

Row = tuple[Array, np.float32, bool, bool]


def alone(task: str, seed: int, actions: Array) -> Iterator[Row]:
    """Yield the steps of an episode in a separate environment, until it ends."""
    env = make(task)
    env.reset(seed=seed)
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        yield observation, np.float32(reward), terminated, truncated
        if terminated or truncated:
            break
    env.close()


def random_actions(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_each_episode_is_the_one_of_an_environment_alone(task: str) -> None:
    together = Lockstep(task, len(SEEDS))
    env = make(task)
    for index, seed in enumerate(SEEDS):
        first = together.reset(index, seed)
        np.testing.assert_array_equal(first, env.reset(seed=seed)[0], strict=True)
    actions = random_actions(60, together.count, together.action_size)
    expected = [list(alone(task, seed, actions[:, i])) for i, seed in enumerate(SEEDS)]
    for t in range(len(actions)):
        active = np.array([t < len(rows) for rows in expected])
        step = together.step(actions[t], active)
        for i in np.flatnonzero(active):
            observation, *rest = expected[i][t]
            np.testing.assert_array_equal(step.observation[i], observation, strict=True)
            assert [step.reward[i], step.terminated[i], step.truncated[i]] == rest
    together.close()


SUITE_TASKS = sorted({task for suite in SUITES.values() for task in suite.tasks} - {*TASKS})


@pytest.mark.parametrize(
    "task", [*TASKS, *(pytest.param(task, marks=pytest.mark.slow) for task in SUITE_TASKS)]
)
def test_the_seed_alone_determines_an_episode(task: str) -> None:
    together = Lockstep(task, 1)
    actions = random_actions(50, 1, together.action_size)

    def episode(seed: int) -> list[Array]:
        observations, ended = [together.reset(0, seed)], False
        for row in actions:
            if ended:
                break
            step = together.step(row)
            observations.append(step.observation[0])
            ended = bool(step.terminated[0] or step.truncated[0])
        return observations

    first, other, again = episode(11), episode(12), episode(11)
    np.testing.assert_array_equal(again, first)
    assert task == "bimodal-bandit" or not np.array_equal(other[0], first[0])
    together.close()


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_inactive_environments_stand_still_and_their_rows_are_zero(
    pattern: list[list[bool]],
) -> None:
    together = Lockstep("linear-quadratic", 3)
    steps_taken = np.zeros(3, int)
    actions = random_actions(len(pattern), 3, 1)
    episodes = [list(alone("linear-quadratic", seed, actions[:, seed])) for seed in range(3)]
    for seed in range(3):
        together.reset(seed, seed)
    for row in pattern:
        active = np.array(row)
        given_actions = np.full((3, 1), np.nan, np.float32)
        for i in np.flatnonzero(active):
            given_actions[i] = actions[steps_taken[i], i]
        step = together.step(given_actions, active)
        assert not any(part[~active].any() for part in step)
        for i in np.flatnonzero(active):
            np.testing.assert_array_equal(step.observation[i], episodes[i][steps_taken[i]][0])
        steps_taken += active


def test_the_arrays_of_a_step_may_be_kept() -> None:
    together = Lockstep("linear-quadratic", 2)
    together.reset(0, 0)
    together.reset(1, 1)
    first = together.step(np.ones((2, 1), np.float32))
    kept = [part.copy() for part in first]
    together.step(-np.ones((2, 1), np.float32))
    for part, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, copy, strict=True)


def test_a_step_has_the_documented_shapes_and_types() -> None:
    together = Lockstep("four-goals", 3)
    for index in range(3):
        together.reset(index, index)
    step = together.step(np.zeros((3, 2), np.float32))
    assert [(part.shape, part.dtype.type) for part in step] == [
        ((3, 2), np.float32),
        ((3,), np.float32),
        ((3,), np.bool_),
        ((3,), np.bool_),
    ]


def test_an_ended_episode_cannot_be_stepped() -> None:
    with registered(length=2) as name:
        together = Lockstep(name, 2)
    actions = np.zeros((2, 1), np.float32)
    together.reset(0, 0)
    together.reset(1, 1)
    together.step(actions, np.array([False, True]))
    assert together.step(actions).terminated.tolist() == [False, True]
    with pytest.raises(RuntimeError, match=r"\[1\] must be reset"):
        together.step(actions)
    last = together.step(actions, np.array([True, False]))
    assert last.reward.tolist() == [2.0, 0.0]  # the refused step was not taken in either
    together.reset(1, 2)
    together.step(actions, np.array([False, True]))


def test_a_truncated_episode_cannot_be_stepped() -> None:
    together = Lockstep("linear-quadratic", 1)
    together.reset(0, 0)
    action = np.zeros((1, 1), np.float32)
    while not together.step(action).truncated[0]:
        pass
    with pytest.raises(RuntimeError, match="must be reset"):
        together.step(action)


def test_an_episode_that_never_began_cannot_be_stepped() -> None:
    together = Lockstep("bimodal-bandit", 3)
    together.reset(1, 0)
    with pytest.raises(RuntimeError, match=r"\[0, 2\] must be reset"):
        together.step(np.zeros((3, 1), np.float32))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 2), (2, 2, 1), (1, 2)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    together = Lockstep("four-goals", 2)
    together.reset(0, 0)
    together.reset(1, 1)
    with pytest.raises(ValueError, match=r"instead of \(2, 2\)"):
        together.step(np.zeros(shape, np.float32))


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_at_least_one_environment(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Lockstep("bimodal-bandit", count)


def test_closing_closes_every_environment() -> None:
    with registered() as name:
        together = Lockstep(name, 2)
    together.close()
    assert all(made_up(env).closed for env in together._envs)
