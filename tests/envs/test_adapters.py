"""Every environment's spaces become a 1-D float32 observation and an action box of [-1, 1]."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs import Task, TaskError, find_task, make
from envs.adapters import flat_observations, unit_actions
from tests.envs.made_up import MadeUp, made_up, registered


def flattened(space: spaces.Space[Any]) -> tuple[list[float], Any]:
    """Return a flat observation, and what it was made from."""
    env = MadeUp(space)
    observation, _ = flat_observations(env, "made-up").reset(seed=0)
    assert observation.dtype == np.float32
    return observation.tolist(), env.observation


def test_a_dictionary_is_flattened_in_the_order_of_its_keys_in_the_space() -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    flat, given_ = flattened(spaces.Dict({"b": box, "a": box, "c": box}))
    assert list(given_) == ["a", "b", "c"]
    assert flat == [*given_["a"], *given_["b"], *given_["c"]]


def test_a_tuple_is_flattened_from_first_to_last() -> None:
    flat, (first, second) = flattened(spaces.Tuple([spaces.Box(-1, 1, (2, 3)), spaces.Box(2, 3)]))
    assert flat == [*first.ravel(), *second]


def test_a_discrete_part_becomes_one_hot_counted_from_its_start() -> None:
    flat, given_ = flattened(spaces.Discrete(4, start=-1))
    assert flat == [float(value == given_) for value in (-1, 0, 1, 2)]


def test_a_multi_discrete_part_becomes_a_one_hot_for_each_entry() -> None:
    flat, (first, second) = flattened(spaces.MultiDiscrete([2, 3]))
    assert flat == [float(k == first) for k in range(2)] + [float(k == second) for k in range(3)]


def test_a_multi_binary_part_stays_as_it_is() -> None:
    flat, given_ = flattened(spaces.MultiBinary(5))
    assert flat == given_.tolist()


def test_a_nested_space_is_flattened_depth_first() -> None:
    box = spaces.Box(-1, 1, (), np.float64)
    space = spaces.Dict(
        {"z": spaces.Tuple([spaces.Discrete(2), spaces.Dict({"n": box, "m": box})]), "a": box}
    )
    flat, given_ = flattened(space)
    index, inner = given_["z"]
    expected = [given_["a"], index == 0, index == 1, inner["m"], inner["n"]]
    np.testing.assert_array_equal(flat, np.array(expected, np.float32))


@pytest.mark.parametrize("value", [0.5, 1e9, -3.0])
def test_values_are_kept_where_a_box_promises_another_type(value: float) -> None:
    """So that what does not fit is seen: cast to the space's type, NaN is a number like others."""

    class OtherType(MadeUp):
        def reset(self, **how: Any) -> Any:
            return np.array([value]), {}

    env = flat_observations(OtherType(spaces.Box(0, 255, (1,), np.uint8)), "made-up")
    assert env.reset()[0].tolist() == [value]
    value = np.nan
    with pytest.raises(TaskError, match="not finite"):
        env.reset()


dtypes: list[Any] = [np.float32, np.float64, np.uint8]
box_spaces = st.tuples(st.lists(st.integers(0, 3), max_size=2), st.sampled_from(dtypes)).map(
    lambda drawn: spaces.Box(0, 200, tuple(drawn[0]), drawn[1])
)
leaf_spaces = box_spaces | st.integers(1, 4).map(spaces.Discrete)
any_spaces = st.recursive(
    leaf_spaces,
    lambda parts: (
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple)
        | st.dictionaries(st.sampled_from("abcd"), parts, min_size=1).map(spaces.Dict)
    ),
    max_leaves=6,
).filter(lambda space: spaces.flatdim(space) > 0)


@given(any_spaces, st.integers(0, 2**31))
def test_flattening_agrees_with_gymnasium_for_any_nesting(
    space: spaces.Space[Any], seed: int
) -> None:
    env = MadeUp(space)
    adapted = flat_observations(env, "made-up")
    observation, _ = adapted.reset(seed=seed)
    expected = np.asarray(spaces.flatten(space, env.observation)).astype(np.float32)
    np.testing.assert_array_equal(observation, expected)
    assert observation in adapted.observation_space


@st.composite
def action_boxes(draw: st.DrawFn) -> spaces.Box:
    """Draw a box whose entries have separate bounds."""
    dtype: Any = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.sampled_from([(1,), (3,), (2, 2), (1, 2, 1)]))
    number = st.floats(
        -(2**20), 2**20, width=32 if dtype is np.float32 else 64, allow_subnormal=False
    )
    pairs = st.lists(number, min_size=2, max_size=2, unique=True).map(sorted)
    size = int(np.prod(shape))
    bounds = np.array(draw(st.lists(pairs, min_size=size, max_size=size)), dtype)
    return spaces.Box(bounds[:, 0].reshape(shape), bounds[:, 1].reshape(shape), dtype=dtype)


def received(box: spaces.Box, action: Any) -> NDArray[Any]:
    """Return what an environment gets when the adapted one is given `action` in every entry."""
    env = MadeUp(action_space=box)
    adapted = unit_actions(env, "made-up")
    assert isinstance(adapted.action_space, spaces.Box)
    assert adapted.action_space == spaces.Box(-1.0, 1.0, (int(np.prod(box.shape)),), np.float32)
    adapted.reset()
    adapted.step(np.full(adapted.action_space.shape, action, np.float32))
    (inner,) = env.actions
    assert isinstance(inner, np.ndarray)
    return inner


@given(action_boxes())
def test_the_unit_actions_bounds_reach_the_boxs_bounds_exactly(box: spaces.Box) -> None:
    np.testing.assert_array_equal(received(box, -1), box.low, strict=True)
    np.testing.assert_array_equal(received(box, 1), box.high, strict=True)


@given(action_boxes(), st.floats(-1, 1, width=32))
def test_a_unit_action_is_rescaled_linearly(box: spaces.Box, action: float) -> None:
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    expected = (low + high) / 2 + action * (high - low) / 2
    error = 1e-6 * np.maximum(np.abs(low), np.abs(high))
    assert np.all(np.abs(received(box, action) - expected) <= error)


def test_the_entries_of_an_action_keep_their_order() -> None:
    env = MadeUp(action_space=spaces.Box(0.0, 4.0, (2, 2), np.float32))
    adapted = unit_actions(env, "made-up")
    adapted.reset()
    adapted.step(np.array([-1.0, -0.5, 0.5, 1.0], np.float32))
    assert env.actions[0].tolist() == [[0.0, 1.0], [3.0, 4.0]]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_repeated_action_adds_up_the_rewards_of_its_steps(times: int) -> None:
    with registered(length=12) as name:
        env = make(Task("made-up", name, action_repeat=times))
        env.reset(seed=0)
        action = np.array([0.25], np.float32)
        rewards = [float(env.step(action)[1]) for _ in range(12 // times)]
    assert rewards == np.arange(1, 13).reshape(-1, times).sum(axis=1).tolist()
    assert made_up(env).actions == [action] * 12


def test_a_repeated_action_stops_where_the_episode_ends() -> None:
    with registered(length=5) as name:
        env = make(Task("made-up", name, action_repeat=3))
        env.reset(seed=0)
        first, second = (env.step(np.zeros(1, np.float32)) for _ in range(2))
    assert first[1:4] == (1 + 2 + 3, False, False)
    assert second[1:4] == (4 + 5, True, False)
    assert second[0] == made_up(env).observation


@pytest.mark.parametrize("name", ["walker-walk", "humanoid-walk", "HalfCheetah-v5"])
def test_a_tasks_observations_are_its_own_in_the_order_of_its_space(name: str) -> None:
    raw = gymnasium.make(find_task(name).gymnasium_id)
    adapted = make(name)
    generator = np.random.default_rng(0)
    theirs, ours = raw.reset(seed=7)[0], adapted.reset(seed=7)[0]
    for _ in range(3):
        expected = in_order(raw.observation_space, theirs).astype(np.float32)
        np.testing.assert_array_equal(ours, expected, strict=True)
        action = generator.uniform(-1, 1, adapted.action_space.shape).astype(np.float32)
        theirs, ours = raw.step(action)[0], adapted.step(action)[0]


def in_order(space: spaces.Space[Any], observation: Any) -> NDArray[Any]:
    if not isinstance(observation, Mapping):
        return np.asarray(observation)
    assert isinstance(space, spaces.Dict)
    assert set(observation) == set(space)
    return np.concatenate([np.ravel(observation[key]) for key in space])


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*A Box observation space.*infinity")
@pytest.mark.parametrize("name", ["cartpole-balance", "Hopper-v5"])
def test_gymnasium_finds_no_fault_with_an_adapted_task(name: str) -> None:
    check_env(make(name), skip_render_check=True)
