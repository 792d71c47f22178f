"""Environments of one task in several processes, which step while the caller does other work."""

import multiprocessing
import signal
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import EnvironmentDiedError, TaskError
from envs.lockstep import Lockstep, StepResult, empty_step
from envs.signals import die_with_parent
from envs.tasks import Task, find_task

CLOSE_SECONDS = 2.0
"""The time that an environment has to return from a call before its process is killed."""


class ParallelLockstep:
    """A `Lockstep` whose environments are in `processes` processes of their own.

    `begin` sends the actions and returns at once; `finish` waits for the results. If a process
    dies, its environments have failed.
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
        self.faults: dict[int, str] = {}
        """For each environment that has failed, the reason; see `Lockstep`."""
        sizes = self._answers(range(processes))
        if self.faults:
            raise EnvironmentDiedError(next(iter(self.faults.values())))
        self.observation_size, self.action_size = sizes[0]

    def reset(self, index: int, seed: int) -> NDArray[np.float32]:
        """Begin a new episode in environment `index`; see `Lockstep.reset`."""
        part = next(k for k, rows in enumerate(self._rows) if index in rows)
        self._ask(part, "reset", int(index - self._rows[part][0]), seed)
        observation: NDArray[np.float32] | None
        (observation,) = self._answers([part])
        return np.zeros(self.observation_size, np.float32) if observation is None else observation

    def begin(self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None) -> None:
        """Begin a step of the `active` [count] environments; see `Lockstep.begin`."""
        if actions.shape != (self.count, self.action_size):
            expected = (self.count, self.action_size)
            raise ValueError(f"actions have shape {actions.shape} instead of {expected}")
        self._begun = True
        for part, rows in enumerate(self._rows):
            self._ask(part, "step", actions[rows], None if active is None else active[rows])

    def finish(self) -> StepResult:
        """The results of the step that was begun. Raises RuntimeError if none was begun."""
        if not self._begun:
            raise RuntimeError("no step was begun")
        self._begun = False
        sizes = [len(rows) for rows in self._rows]
        steps = [
            empty_step(size, self.observation_size) if step is None else step
            for size, step in zip(sizes, self._answers(range(len(sizes))), strict=True)
        ]
        return StepResult(*map(np.concatenate, zip(*steps, strict=True)))

    def step(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> StepResult:
        """Begin a step and return its results."""
        self.begin(actions, active)
        return self.finish()

    def close(self) -> None:
        """End the processes. One that does not end in time is killed."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(CLOSE_SECONDS)
            if process.is_alive():
                process.kill()

    def _ask(self, part: int, method: str, *arguments: Any) -> None:
        with suppress(ConnectionError):  # the missing answer reports it
            self._ends[part].send((method, arguments))

    def _answers(self, parts: Iterable[int]) -> list[Any]:
        """The answers of the processes; None for one that has died. Raises an answer's error."""
        answers: list[Any] = []
        for part in parts:
            try:
                answer, faults = self._ends[part].recv()
            except (EOFError, ConnectionError):
                died = f"task {self.task.name!r}: its environment's process died"
                answer, faults = None, dict.fromkeys(range(len(self._rows[part])), died)
            answers.append(answer)
            for row, fault in faults.items():
                self.faults.setdefault(int(self._rows[part][row]), fault)
        # Raise only after every pipe has been read, so that no answer is left for the next call.
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _serve(end: Connection, task: Task, count: int) -> None:
    """Answer the calls from the pipe until it is closed.

    An answer is the value that a call returned, or its error, together with the faults so far.
    """
    die_with_parent()  # the pipe says so too, but not to an environment that does not return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the job saves itself first, then closes the pipe
    with suppress(EOFError, ConnectionError):
        try:
            environments = Lockstep(task, count)
        except TaskError as error:
            end.send((error, {}))
            return
        end.send(((environments.observation_size, environments.action_size), {}))
        try:
            while True:
                method, arguments = end.recv()
                try:
                    answer: Any = getattr(environments, method)(*arguments)
                except (ValueError, RuntimeError) as error:
                    answer = error
                end.send((answer, environments.faults))
        finally:
            environments.close()
