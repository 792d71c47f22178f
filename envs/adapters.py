"""Wrappers that give every environment the same interface.

Observations become 1-D float32 arrays, actions float32 arrays in [-1, 1]. Values that float32
arithmetic cannot learn from are refused here, so that the error names the task and not an agent.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction, TransformObservation
from numpy.typing import NDArray

from envs.errors import TaskError

Env = gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]

# MuJoCo writes an unlimited actuator's range as +-1e10 (its mjMAXVAL), not as infinity.
UNBOUNDED = 1e10

LARGEST = 1e15
"""The largest magnitude of rewards and of the entries of observations.

A thousand such rewards add up to 1e18. The sum of the squares of 256 such errors is still below
3.4e38, the largest float32. With larger rewards, the loss of any critic could be infinite.
"""


def flat_observations(env: gymnasium.Env[Any, Any], name: str) -> Env:
    """Flatten observations to 1-D float32 arrays.

    Dict and Tuple spaces are concatenated in the order of the space, as `gymnasium.spaces.flatten`
    has it (Gymnasium sorts the keys of a plain dictionary when it builds the space); discrete parts
    become one-hot.

    Raises:
        TaskError: a part of the space has no fixed number of entries, or there are no entries.
    """
    space = env.observation_space
    for leaf in _leaves(space):
        if not isinstance(leaf, _FLATTENABLE):
            raise TaskError(
                f"task {name!r}: observation space {leaf} cannot be flattened to a Box; it must be"
                " made of Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple spaces"
            )
    bounds = spaces.flatten_space(space) if any(map(spaces.flatdim, _leaves(space))) else None
    if not isinstance(bounds, spaces.Box):
        raise TaskError(f"task {name!r}: observation space {space} has no entries")
    with np.errstate(over="ignore"):  # a float64 bound beyond float32 is no bound
        low, high = bounds.low.astype(np.float32), bounds.high.astype(np.float32)

    promised = low.shape

    def flatten(observation: Any) -> NDArray[np.float32]:
        parts = list(_flat_parts(space, observation))
        with np.errstate(over="ignore"):  # an overflow is reported below
            flat = np.concatenate(parts, dtype=np.float32, casting="unsafe")
        if flat.shape != promised:
            raise TaskError(
                f"task {name!r} returned an observation of shape {flat.shape}, but its"
                f" observation space has {promised}"
            )
        # This is False for NaN, too.
        within = np.abs(flat) <= LARGEST
        if not within.all():
            entry = int(np.argmin(within))
            raise _not_learnable(name, "an observation with", np.concatenate(parts)[entry])
        return flat

    return TransformObservation(env, flatten, spaces.Box(low, high, dtype=np.float32))


def checked_reward(name: str, reward: Any) -> float:
    """The reward as a float.

    Raises TaskError if it is not finite or larger than ``LARGEST`` in magnitude, and TypeError or
    ValueError if it is not a single number.
    """
    value = float(reward) if isinstance(reward, (int, float)) else float(np.asarray(reward).item())
    if not abs(value) <= LARGEST:
        raise _not_learnable(name, "the reward", value)
    return value


def checked_flag(name: str, which: str, flag: Any) -> bool:
    """The flag as a bool. ``which`` is its name: "terminated" or "truncated".

    Raises TaskError if it is not a truth value, or an array of one.
    """
    if isinstance(flag, bool):
        return flag
    value = np.asarray(flag)
    if value.size != 1 or value.dtype.kind not in "biu" or value.item() not in (0, 1):
        raise TaskError(f"task {name!r} returned {flag!r} for {which}; it must be True or False")
    return bool(value.item())


def _not_learnable(name: str, what: str, value: float) -> TaskError:
    fault = f"beyond the +-{LARGEST:.0e} that float32 can learn from"
    if not np.isfinite(value):
        fault = "not finite"
    return TaskError(f"task {name!r} returned {what} {value}, which is {fault}")


_FLATTENABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _leaves(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        for part in space.spaces.values():
            yield from _leaves(part)
    elif isinstance(space, spaces.Tuple):
        for part in space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _flat_parts(space: spaces.Space[Any], value: Any) -> Iterator[NDArray[Any]]:
    """Yield the 1-D arrays that `value` consists of, in order.

    `spaces.flatten` would cast a Box's values to the type that its space promises: in one of
    integers 0.5 would become 0, and NaN a number that nobody could tell from a right one.
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _flat_parts(part, value[key])
    elif isinstance(space, spaces.Tuple):
        for part, item in zip(space.spaces, value, strict=True):
            yield from _flat_parts(part, item)
    elif isinstance(space, spaces.Box):
        yield np.ravel(value)
    else:
        yield spaces.flatten(space, value)  # type: ignore[misc]


def unit_actions(env: gymnasium.Env[Any, Any], name: str) -> Env:
    """Rescale actions from [-1, 1]^A, float32 and 1-D, to the environment's own box.

    -1 and 1 reach the box's bounds exactly. An action outside [-1, 1] is not clipped here.

    Raises:
        TaskError: the action space is not a Box of real numbers with finite bounds, low < high.
    """
    box = env.action_space
    if not isinstance(box, spaces.Box) or not np.issubdtype(box.dtype, np.floating):
        raise TaskError(f"task {name!r}: action space {box} is not a Box of real numbers")
    low, high = box.low.ravel().astype(np.float64), box.high.ravel().astype(np.float64)
    if box.shape == () or low.size == 0:
        raise TaskError(f"task {name!r}: action space {box} must have at least one axis and entry")
    if np.any(np.abs(low) >= UNBOUNDED) or np.any(np.abs(high) >= UNBOUNDED):
        raise TaskError(f"task {name!r}: action space {box} is unbounded; it must have bounds")
    if np.any(low >= high):
        raise TaskError(f"task {name!r}: action space {box} must have low < high in every entry")

    def as_given(action: NDArray[np.float32]) -> NDArray[np.float32]:
        return action

    def rescale(action: NDArray[np.float32]) -> NDArray[Any]:
        share = (action.astype(np.float64) + 1.0) / 2.0
        # In this form, unlike low + share * (high - low), both ends are exact.
        return ((1.0 - share) * low + share * high).astype(box.dtype).reshape(box.shape)

    is_unit = box.shape == low.shape and np.all(low == -1.0) and np.all(high == 1.0)
    unit_box = spaces.Box(-1.0, 1.0, low.shape, np.float32)
    return TransformAction(env, as_given if is_unit else rescale, unit_box)


class RepeatAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Take every action `times` times, or until the episode ends; rewards add up."""

    def __init__(self, env: gymnasium.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info
