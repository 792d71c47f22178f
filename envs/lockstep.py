"""Several environments of one task, stepped together."""

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.errors import TaskError
from envs.tasks import Task, find_task, make


class Step(NamedTuple):
    """One step of every environment; the rows of those that were not stepped are zero.

    The arrays are new at every step, so they may be kept. The observation of an episode that has
    ended is its last one.
    """

    observation: NDArray[np.float32]  # [count, observation_size]
    reward: NDArray[np.float32]  # [count]
    terminated: NDArray[np.bool_]  # [count]
    truncated: NDArray[np.bool_]  # [count]


class Environments(Protocol):
    """What `Lockstep` and `ParallelLockstep` share."""

    task: Task
    count: int
    observation_size: int
    action_size: int

    def reset(self, index: int, seed: int) -> NDArray[np.float32]: ...

    def begin(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> None: ...

    def finish(self) -> Step: ...

    def step(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> Step: ...

    def close(self) -> None: ...


class Lockstep:
    """`count` environments of one task in one process, stepped one after the other.

    Nothing is reset behind the caller's back: whoever sees an episode end resets it. What a task
    does wrong, by raising or by handing out an observation of another shape or a number that is
    not finite, raises TaskError.
    """

    def __init__(self, task: str | Task, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self.task = find_task(task) if isinstance(task, str) else task
        self.count = count
        self._envs = [make(self.task) for _ in range(count)]
        self.observation_size = self._envs[0].observation_space.shape[0]  # type: ignore[index]
        self.action_size = self._envs[0].action_space.shape[0]  # type: ignore[index]
        self._running = np.zeros(count, bool)
        self._all = np.ones(count, bool)
        self._begun: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None

    def reset(self, index: int, seed: int) -> NDArray[np.float32]:
        """Begin a new episode in environment `index`.

        Args:
            seed: 0 <= seed < 2^32 (what DeepMind Control takes); it alone determines the episode.

        Returns:
            The first observation [observation_size].
        """
        try:
            observation, _ = self._envs[index].reset(seed=seed)
        except Exception as error:  # whatever a third party's environment raises
            raise self._raised(error) from error
        self._check(observation, 0.0)
        self._running[index] = True
        return observation

    def begin(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> None:
        """Have the environments that are `active` (all of them by default) step.

        Args:
            actions: [count, action_size] in [-1, 1]; rows of inactive environments are not read.
            active: [count]

        Raises:
            ValueError: `actions` has another shape.
            RuntimeError: an active environment's episode has ended, or never began.
        """
        if actions.shape != (self.count, self.action_size):
            expected = (self.count, self.action_size)
            raise ValueError(f"actions have shape {actions.shape} instead of {expected}")
        active = self._all if active is None else active
        if np.any(active & ~self._running):
            late = np.flatnonzero(active & ~self._running).tolist()
            raise RuntimeError(f"environments {late} must be reset before they are stepped")
        self._begun = actions, active

    def finish(self) -> Step:
        """The results of the step that `begin` began. Raises RuntimeError if there is none."""
        if self._begun is None:
            raise RuntimeError("no step was begun")
        (actions, active), self._begun = self._begun, None
        step = Step(
            np.zeros((self.count, self.observation_size), np.float32),
            np.zeros(self.count, np.float32),
            np.zeros(self.count, bool),
            np.zeros(self.count, bool),
        )
        for index in np.flatnonzero(active):
            try:
                observation, reward, terminated, truncated, _ = self._envs[index].step(
                    actions[index]
                )
                reward = float(reward)
            except Exception as error:
                raise self._raised(error) from error
            self._check(observation, reward)
            step.observation[index] = observation
            step.reward[index] = reward
            step.terminated[index] = terminated
            step.truncated[index] = truncated
            self._running[index] = not (terminated or truncated)
        return step

    def step(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> Step:
        """Step and wait: `begin` and `finish` in one."""
        self.begin(actions, active)
        return self.finish()

    def _raised(self, error: Exception) -> TaskError:
        return TaskError(f"task {self.task.name!r} raised {type(error).__name__}: {error}")

    def _check(self, observation: NDArray[np.float32], reward: float) -> None:
        promised = (self.observation_size,)
        if observation.shape != promised:
            raise TaskError(
                f"task {self.task.name!r} returned an observation of shape {observation.shape} and"
                f" promised {promised}"
            )
        if not np.isfinite(observation).all():
            raise TaskError(f"task {self.task.name!r} returned an observation that is not finite")
        if not math.isfinite(reward):
            raise TaskError(f"task {self.task.name!r} returned the reward {reward}")

    def close(self) -> None:
        """Free the environments."""
        for env in self._envs:
            env.close()
