"""Several environments of one task that are stepped together."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.adapters import checked_flag, checked_reward
from envs.errors import task_error_from
from envs.tasks import Task, close, find_task, make


class StepResult(NamedTuple):
    """The results of one step of every environment.

    The rows of environments that were not stepped, or have failed, are zero. If an episode ended,
    the observation is its last one. The arrays are new at every step, so they may be kept.
    """

    observation: NDArray[np.float32]  # [count, observation_size]
    reward: NDArray[np.float32]  # [count]
    terminated: NDArray[np.bool_]  # [count]
    truncated: NDArray[np.bool_]  # [count]


def empty_step(count: int, observation_size: int) -> StepResult:
    """The result of a step in which no environment was stepped: all zero."""
    return StepResult(
        np.zeros((count, observation_size), np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )


class Environments(Protocol):
    """The interface of `Lockstep` and `ParallelLockstep`."""

    task: Task
    count: int
    observation_size: int
    action_size: int

    @property
    def faults(self) -> Mapping[int, str]: ...

    def reset(self, index: int, seed: int) -> NDArray[np.float32]: ...

    def begin(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> None: ...

    def finish(self) -> StepResult: ...

    def step(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> StepResult: ...

    def close(self) -> None: ...


class Lockstep:
    """`count` environments of one task in one process, stepped one after the other.

    Environments are never reset automatically: the caller resets one whose episode has ended.

    An environment fails if it raises an error or returns an invalid observation, reward or flag.
    From then on it is neither reset nor stepped, its rows are zero, and `faults` has the reason.
    The other environments go on.
    """

    def __init__(self, task: str | Task, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self.task = find_task(task) if isinstance(task, str) else task
        self.count = count
        self._envs = [make(self.task) for _ in range(count)]
        self.observation_size = self._envs[0].observation_space.shape[0]  # type: ignore[index]
        self.action_size = self._envs[0].action_space.shape[0]  # type: ignore[index]
        self.faults: dict[int, str] = {}
        """For each environment that has failed, one line that names the task and the reason."""
        self._running = np.zeros(count, bool)
        self._all = np.ones(count, bool)
        self._begun: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None

    def reset(self, index: int, seed: int) -> NDArray[np.float32]:
        """Begin a new episode in environment `index`.

        Args:
            seed: 0 <= seed < 2^32 (what DeepMind Control takes); it alone determines the episode.

        Returns:
            The first observation [observation_size]; zeros if the environment has failed.
        """
        if index not in self.faults:
            try:
                observation, _ = self._envs[index].reset(seed=seed)
                self._running[index] = True
                return observation
            except BaseException as error:  # whatever a third party's environment raises
                self._fail(index, error)
        return np.zeros(self.observation_size, np.float32)

    def begin(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> None:
        """Begin a step of the `active` environments, by default all. Failed ones are left out.

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
        if self.faults:
            active = active.copy()
            active[list(self.faults)] = False
        if np.any(active & ~self._running):
            late = np.flatnonzero(active & ~self._running).tolist()
            raise RuntimeError(f"environments {late} must be reset before they are stepped")
        self._begun = actions, active

    def finish(self) -> StepResult:
        """The results of the step that was begun. Raises RuntimeError if none was begun."""
        if self._begun is None:
            raise RuntimeError("no step was begun")
        (actions, active), self._begun = self._begun, None
        step = empty_step(self.count, self.observation_size)
        for index in np.flatnonzero(active).tolist():
            try:
                observation, reward, terminated, truncated, _ = self._envs[index].step(
                    actions[index]
                )
                reward = checked_reward(self.task.name, reward)
                terminated = checked_flag(self.task.name, "terminated", terminated)
                truncated = checked_flag(self.task.name, "truncated", truncated)
            except BaseException as error:
                self._fail(index, error)
                continue
            step.observation[index] = observation
            step.reward[index] = reward
            step.terminated[index] = terminated
            step.truncated[index] = truncated
            self._running[index] = not (terminated or truncated)
        return step

    def step(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> StepResult:
        """Begin a step and return its results."""
        self.begin(actions, active)
        return self.finish()

    def close(self) -> None:
        """Close the environments. Errors that they raise are ignored."""
        for env in self._envs:
            close(env)

    def _fail(self, index: int, error: BaseException) -> None:
        self.faults[index] = str(task_error_from(self.task.name, error))
        self._running[index] = False
