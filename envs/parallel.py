"""Environments of one task spread over processes, which step while the caller does other work."""

import multiprocessing
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import EnvironmentDiedError, TaskError
from envs.lockstep import Lockstep, Step
from envs.signals import die_with_parent
from envs.tasks import Task, find_task

CLOSE_SECONDS = 2.0
"""For an environment to return from what it is doing; its process is killed then."""


class ParallelLockstep:
    """What `Lockstep` is, with the environments in `processes` processes of their own.

    `begin` hands out the actions and returns at once; `finish` waits for the results. Whatever an
    environment raises there is raised here.
    """

    def __init__(self, task: str | Task, count: int, processes: int) -> None:
        if not 1 <= processes <= count:
            raise ValueError(f"processes must be between 1 and {count}, not {processes}")
        self.task = find_task(task) if isinstance(task, str) else task
        self.count = count
        self._rows = np.array_split(np.arange(count), processes)
        # A process with a GPU must not be forked.
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for rows in self._rows:
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, self.task, len(rows)), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(mine)
            self._processes.append(process)
        self._begun = False
        self.observation_size, self.action_size = self._answers(self._ends)[0]

    def reset(self, index: int, seed: int) -> NDArray[np.float32]:
        """Begin a new episode in environment `index`; see `Lockstep.reset`."""
        part = next(k for k, rows in enumerate(self._rows) if index in rows)
        with suppress(ConnectionError):  # which the answer tells
            self._ends[part].send(("reset", (int(index - self._rows[part][0]), seed)))
        observation: NDArray[np.float32]
        (observation,) = self._answers([self._ends[part]])
        return observation

    def begin(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> None:
        """Have the environments that are `active` [count] step; `finish` has the results."""
        if actions.shape != (self.count, self.action_size):
            expected = (self.count, self.action_size)
            raise ValueError(f"actions have shape {actions.shape} instead of {expected}")
        self._begun = True
        for end, rows in zip(self._ends, self._rows, strict=True):
            with suppress(ConnectionError):  # which the answer tells
                end.send(("step", (actions[rows], None if active is None else active[rows])))

    def finish(self) -> Step:
        """The results of the step that `begin` began. Raises RuntimeError if there is none."""
        if not self._begun:
            raise RuntimeError("no step was begun")
        self._begun = False
        return Step(*map(np.concatenate, zip(*self._answers(self._ends), strict=True)))

    def step(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> Step:
        """Step and wait; see `Lockstep.step`."""
        self.begin(actions, active)
        return self.finish()

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(CLOSE_SECONDS)
            if process.is_alive():
                process.kill()

    def _answers(self, ends: list[Connection]) -> list[Any]:
        """What the processes answer. Raises what one raised, or TaskError if one has died."""
        answers: list[Any] = []
        for end in ends:
            try:
                answers.append(end.recv())
            except (EOFError, ConnectionError):
                name = self.task.name
                answers.append(
                    EnvironmentDiedError(f"task {name!r}: its environment's process died")
                )
        # Only when every pipe is read, so that none holds an answer to another question.
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _serve(end: Connection, task: Task, count: int) -> None:
    """Answer the calls that come through the pipe until it is closed."""
    die_with_parent()  # the pipe says so too, but not to an environment that does not return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the job saves itself first, then closes the pipe
    with suppress(EOFError, KeyboardInterrupt, ConnectionError):
        try:
            environments = Lockstep(task, count)
        except TaskError as error:
            end.send(error)
            return
        end.send((environments.observation_size, environments.action_size))
        while True:
            method, arguments = end.recv()
            try:
                answer: Any = getattr(environments, method)(*arguments)
            except (TaskError, ValueError, RuntimeError) as error:
                answer = error
            end.send(answer)
