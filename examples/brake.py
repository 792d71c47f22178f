"""A task of your own in one file: bring a cart to rest at the origin.

Importing the file registers the task with Gymnasium, so in this folder it is ``brake:Brake-v0``:

    python -m qsm_bench run --agents qsm,sac --tasks brake:Brake-v0 --steps 20000
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

TIME_STEP = 0.2
LENGTH = 30
"""The number of steps of an episode."""
STANDING_STILL = LENGTH / 2
"""The mean return of the policy that never accelerates: |position| is 1/2 on average."""


class Brake(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A cart on a line: it observes its position and speed, and the action is its acceleration.

    It starts at rest, at a position uniform in [-1, 1]. The reward of a step is 1 - |position|, so
    standing still earns ``STANDING_STILL`` on average.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.position, self.speed = 0.0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; all randomness comes from ``seed``."""
        super().reset(seed=seed)
        self.position, self.speed = float(self.np_random.uniform(-1.0, 1.0)), 0.0
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Accelerate, then move. The task never terminates; Gymnasium cuts it at ``LENGTH``."""
        self.speed += TIME_STEP * float(action[0])
        self.position += TIME_STEP * self.speed
        return self._observation(), 1.0 - abs(self.position), False, False, {}

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self.position, self.speed], np.float32)


gymnasium.register("Brake-v0", f"{__name__}:Brake", max_episode_steps=LENGTH)
