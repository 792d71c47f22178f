"""A one-step task with two equally good actions and a bad one half-way between them."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MODES = (-0.5, 0.5)
"""The two best actions."""

OPTIMAL_RETURN = 1.0
"""The return of either mode."""

RANDOM_RETURN = 2.0 / 3.0
"""The expected return of a ~ U[-1, 1]: 1 - 4 E[(|a| - 1/2)^2], where the square has mean 1/12."""


def reward(action: float) -> float:
    """The reward 1 - 4 (|a| - 1/2)^2: 1 at a = -1/2 and a = 1/2, and 0 at -1, 0 and 1."""
    return 1.0 - 4.0 * (abs(action) - 0.5) ** 2


class BimodalBandit(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A task whose episodes terminate after one decision.

    The observation is always 0; the action is a number in [-1, 1]. A policy that keeps both modes
    acts near -1/2 as often as near 1/2; one that averages them acts near 0 and earns nothing.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), reward(float(action[0])), True, False, {}
