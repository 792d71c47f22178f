"""The episodes that a job trains on, and how they are brought back from a checkpoint.

Environments hold no state that matters: an episode is its reset seed and its actions, so one that
was interrupted is played again from these, and must be what it was.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agents.common.streams import derive_seed
from envs import Environments, StepResult
from qsm_bench.errors import UserError


class TrainingEpisodes:
    """Each seed's running episode in its environment, one environment a seed."""

    def __init__(self, environments: Environments, seeds: Sequence[int]) -> None:
        self.environments = environments
        self.seeds = seeds
        count = len(seeds)
        self.observation = np.zeros((count, environments.observation_size), np.float32)
        """[S, obs]: what the next action is chosen for; zeros for a seed that has failed."""
        self.number = np.zeros(count, dtype=np.int64)
        """[S]: the running episode, counted from 0."""
        self.start = np.zeros(count, dtype=np.int64)
        """[S]: the step at which it began."""
        self.start_before = np.full(count, -1)
        """[S]: the step at which the episode before it began; -1 if there was none."""
        self.return_so_far = np.zeros(count)
        """[S]: the sum of its rewards."""
        self.finished_returns: list[list[float]] = [[] for _ in seeds]
        """For each seed, the returns of the episodes that ended since they were last read."""

    def begin_all(self) -> None:
        """Begin every seed's first episode."""
        self.observation = np.stack([self._begin(row) for row in range(len(self.seeds))])

    def advance(self, result: StepResult, step: int) -> None:
        """Take in the result of step ``step``, and begin new episodes where one has ended."""
        self.return_so_far += result.reward
        self.observation = result.observation
        for row in np.flatnonzero(result.terminated | result.truncated).tolist():
            self.finished_returns[row].append(float(self.return_so_far[row]))
            self.number[row] += 1
            self.start_before[row] = self.start[row]
            self.start[row] = step
            self.return_so_far[row] = 0.0
            self.observation[row] = self._begin(row)

    def take_finished_returns(self) -> list[list[float]]:
        """Return the returns of the episodes that ended since the last call, of each seed."""
        finished = self.finished_returns
        self.finished_returns = [[] for _ in self.seeds]
        return finished

    def _begin(self, row: int, back: int = 0) -> NDArray[np.float32]:
        """Begin a seed's running episode, or the one that was so many before it."""
        number = int(self.number[row]) - back
        seed = derive_seed(self.seeds[row], "episode", number, bits=31)
        return self.environments.reset(row, seed)

    def play_again(
        self,
        step: int,
        running: NDArray[np.bool_],
        transitions: Callable[[int, int], Iterator[Sequence[Tensor]]],
        expected: NDArray[np.float32] | None,
    ) -> None:
        """Bring every running seed's environment to where it was after ``step`` steps.

        ``transitions(first, last)`` are those of the steps ``first``..``last`` - 1, as the replay
        log has them; ``expected`` are the observations [S, obs] that the checkpoint was taken at,
        where it holds them. Raises UserError if an environment does not do what it did.
        """
        for row in np.flatnonzero(running).tolist():
            # So is the episode before: the running one may have no step to compare yet.
            if self.start_before[row] >= 0:
                earlier = transitions(int(self.start_before[row]), int(self.start[row]))
                self._repeat(row, self._begin(row, back=1), earlier)
            recorded = transitions(int(self.start[row]), step)
            observation = self._repeat(row, self._begin(row), recorded)
            if expected is not None:
                self._refuse_unless(np.array_equal(expected[row], observation))
            self.observation[row] = observation

    def _repeat(
        self, row: int, observation: NDArray[np.float32], transitions: Iterator[Sequence[Tensor]]
    ) -> NDArray[np.float32]:
        """Take a seed's recorded steps again; return the observation after them."""
        only = np.arange(len(self.seeds)) == row
        for fields in transitions:
            seen, _, reward, terminated, ended, after = (field[row].numpy() for field in fields)
            self._refuse_unless(np.array_equal(seen, observation))
            step = self.environments.step(fields[1].numpy(), only)
            observation = step.observation[row]
            self._refuse_unless(
                np.array_equal(after, observation)
                and reward[0] == step.reward[row]
                and terminated[0] == step.terminated[row]
                and ended[0] == (step.terminated[row] | step.truncated[row])
            )
        return observation

    def _refuse_unless(self, repeated: bool) -> None:
        if faults := self.environments.faults:
            raise UserError(
                f"{next(iter(faults.values()))}; so the run could not be resumed, and is as it was"
            )
        if not repeated:
            raise UserError(
                f"task {self.environments.task.name!r} does not repeat itself from the same seed "
                "and actions, so its run cannot be resumed: start it anew under another --name"
            )
