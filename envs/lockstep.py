"""Environments of one task stepped together, for seeds and evaluation episodes in lockstep."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.tasks import Task, find_task, make

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Step(NamedTuple):
    """What every environment answered; the arrays are overwritten by the next step."""

    observation: Floats
    """[count, obs]; of an episode that ended, its last observation."""
    reward: Floats
    """[count]."""
    terminated: Bools
    """[count]: the task ended the episode; nothing comes after."""
    truncated: Bools
    """[count]: a time limit ended it."""


class Lockstep:
    """``count`` environments of one task, stepped one after the other by one call."""

    def __init__(self, task: str | Task, count: int) -> None:
        self.task = find_task(task) if isinstance(task, str) else task
        self.environments = [make(self.task) for _ in range(count)]
        first = self.environments[0]
        self.observation_size = int(np.prod(first.observation_space.shape or ()))
        self.action_size = int(np.prod(first.action_space.shape or ()))
        self._step = Step(
            np.zeros((count, self.observation_size), np.float32),
            np.zeros(count, np.float32),
            np.zeros(count, np.bool_),
            np.zeros(count, np.bool_),
        )

    def reset(self, index: int, seed: int) -> Floats:
        """Begin an episode of one environment from ``seed`` alone: its observation [obs]."""
        observation: Floats = self.environments[index].reset(seed=seed)[0]
        return observation

    def step(self, actions: Floats, active: Bools | None = None) -> Step:
        """Step every environment, or the ``active`` [count] ones; the others' rows are zero.

        ``actions`` is [count, act] in [-1, 1]. An episode that ended is not reset.
        """
        result = self._step
        for i, environment in enumerate(self.environments):
            if active is None or active[i]:
                (
                    result.observation[i],
                    result.reward[i],
                    result.terminated[i],
                    result.truncated[i],
                    _,
                ) = environment.step(actions[i])
            else:
                for field in result:
                    field[i] = 0
        return result

    def close(self) -> None:
        """Close every environment."""
        for environment in self.environments:
            environment.close()
