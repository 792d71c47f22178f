"""A point in the plane with four equally good goals around it.

A task of the kind that Haarnoja et al. (2017), "Reinforcement Learning with Deep Energy-Based
Policies", use to show multimodal policies; the constants are this package's own.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

GOALS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
"""The goals, [4, 2]. Within GOAL_RADIUS of a goal, it is reached, and the episode terminates."""

GOAL_RADIUS = 0.1
START_HALF_WIDTH = 0.1
STEP_LENGTH = 0.1
ACTION_COST = 0.1
ARENA_HALF_WIDTH = 1.5
HORIZON = 30

RANDOM_RETURN = -24.89
"""The expected return of uniformly random actions: 400,000 simulated episodes (+-0.004)."""


def transition(
    position: NDArray[np.float64], action: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """One step of any number of points.

    Args:
        position: [..., 2]
        action: [..., 2] in [-1, 1], the velocity.

    Returns:
        The next position [..., 2], kept inside the arena; the reward [...], which is minus the
        distance from there to the nearest goal and minus ACTION_COST |a|^2; and whether a goal is
        reached [...].
    """
    moved = position + STEP_LENGTH * np.asarray(action, np.float64)
    moved = moved.clip(-ARENA_HALF_WIDTH, ARENA_HALF_WIDTH)
    distance = _to_goals(moved).min(axis=-1)
    cost = ACTION_COST * np.square(action, dtype=np.float64).sum(axis=-1)
    return moved, -distance - cost, distance <= GOAL_RADIUS


def straight_line(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """The reference policy: head for the nearest goal at full speed.

    Full speed means that the larger component of the action [..., 2] is 1 or -1.
    """
    nearest = GOALS[_to_goals(position).argmin(axis=-1)]
    heading = nearest - position
    action: NDArray[np.float64] = heading / np.abs(heading).max(axis=-1, keepdims=True)
    return action


def _to_goals(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [..., 4] to the goals."""
    offset = position[..., None, :] - GOALS
    distance: NDArray[np.float64] = np.sqrt(np.square(offset).sum(axis=-1))
    return distance


def straight_line_return(points: int = 20) -> float:
    """Expected return of `straight_line`, by the midpoint rule on points^2 starts."""
    along = START_HALF_WIDTH * ((2.0 * np.arange(points) + 1.0) / points - 1.0)
    position = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    total = np.zeros(len(position))
    running = np.ones(len(position), bool)
    for _ in range(HORIZON):
        position, reward, reached = transition(position, straight_line(position))
        total += running * reward
        running &= ~reached
    return float(total.mean())


OPTIMAL_RETURN = straight_line_return()
"""The return of `straight_line`. A slower last step would save at most ACTION_COST / 4."""


class FourGoals(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observation: the position [2]. Action: the velocity [2] in [-1, 1].

    The start is uniform in a small square around the origin, where the average of the four best
    actions is to stay. Truncated after HORIZON steps.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-ARENA_HALF_WIDTH, ARENA_HALF_WIDTH, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._position = self.np_random.uniform(-START_HALF_WIDTH, START_HALF_WIDTH, 2)
        return self._position.astype(np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._position, reward, reached = transition(self._position, action)
        return self._position.astype(np.float32), float(reward), bool(reached), False, {}
