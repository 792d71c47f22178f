"""The episodes that are trained on, and which seeds still learn, beside a plain count of both."""

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.common.streams import derive_seed
from envs import Environments, StepResult, Task
from qsm_bench.errors import UserError
from qsm_bench.seed_status import SeedStatus
from qsm_bench.training_episodes import TrainingEpisodes

SEEDS = (3, 8)
CPU = torch.device("cpu")


class Counting:
    """Environments that observe (reset seed modulo 1000, steps since); an action earns itself.

    An episode ends with an action above 1/2.
    """

    observation_size = 2
    task = Task("counting", "")

    @property
    def faults(self) -> dict[int, str]:
        return {}

    def __init__(self) -> None:
        self.observation = np.zeros((len(SEEDS), 2), np.float32)

    def reset(self, row: int, seed: int) -> NDArray[np.float32]:
        self.observation[row] = (seed % 1000, 0)
        first: NDArray[np.float32] = self.observation[row].copy()
        return first

    def step(
        self, actions: NDArray[np.float32], active: NDArray[np.bool_] | None = None
    ) -> StepResult:
        self.observation[:, 1] += 1
        ended = actions[:, 0] > 0.5
        return StepResult(
            self.observation.copy(), actions[:, 0].copy(), ended, np.zeros(len(SEEDS), bool)
        )


def played(actions: list[list[float]]) -> tuple[TrainingEpisodes, list[list[torch.Tensor]]]:
    """Episodes after ``actions`` [K, S], and the transitions as the replay log has them."""
    episodes = TrainingEpisodes(cast(Environments, Counting()), SEEDS)
    episodes.begin_all()
    log = []
    for step, each in enumerate(actions, start=1):
        action = np.array(each, np.float32)[:, np.newaxis]
        before = episodes.observation
        result = episodes.environments.step(action)
        columns = (result.reward, result.terminated, result.terminated | result.truncated)
        flags = [torch.tensor(column, dtype=torch.float32).unsqueeze(-1) for column in columns]
        after = torch.tensor(result.observation)
        log.append([torch.tensor(before), torch.tensor(action), *flags, after])
        episodes.advance(result, step)
    return episodes, log


some_actions = st.lists(
    st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=2, max_size=2), min_size=1, max_size=12
)


@given(some_actions)
def test_episodes_are_counted_as_a_plain_loop_counts_them(actions: list[list[float]]) -> None:
    episodes, _ = played(actions)
    for row, seed in enumerate(SEEDS):
        starts, returns = [0], [0.0]
        for step, each in enumerate(actions, start=1):
            returns[-1] += each[row]
            if each[row] > 0.5:
                starts.append(step)
                returns.append(0.0)
        assert episodes.number[row] == len(starts) - 1
        assert episodes.start[row] == starts[-1]
        assert episodes.start_before[row] == (starts[-2] if len(starts) > 1 else -1)
        assert episodes.finished_returns[row] == returns[:-1]
        assert episodes.return_so_far[row] == returns[-1]
        reset_seed = derive_seed(seed, "episode", len(starts) - 1, bits=31)
        expected = np.array([reset_seed % 1000, len(actions) - starts[-1]], np.float32)
        assert episodes.observation[row].tolist() == expected.tolist()
    assert episodes.take_finished_returns() is not episodes.finished_returns
    assert episodes.take_finished_returns() == [[], []]


@given(some_actions, st.data())
def test_they_are_played_again_unless_any_number_differs(
    actions: list[list[float]], data: st.DataObject
) -> None:
    episodes, log = played(actions)
    observation, steps = episodes.observation.copy(), len(actions)

    def again() -> None:
        episodes.observation = np.zeros_like(observation)
        episodes.play_again(
            steps, np.ones(2, bool), lambda first, last: iter(log[first:last]), observation
        )

    again()
    assert episodes.observation.tolist() == observation.tolist()
    row = data.draw(st.integers(0, 1))
    first = max(0, int(episodes.start_before[row]))
    if first < steps:
        step = data.draw(st.integers(first, steps - 1))
        field = data.draw(st.sampled_from([0, 2, 3, 4, 5]))
        log[step][field][row, 0] += 1
        with pytest.raises(UserError, match="'counting' does not repeat itself"):
            again()


def test_the_job_ends_by_the_seed_that_failed_last() -> None:
    status = SeedStatus(SEEDS, CPU)
    assert status.all_failed() is None
    status.note_failed({0: "first"}, 5)
    status.note_failed({0: "again", 1: "second"}, 7)
    assert {seed: (f.step, f.reason) for seed, f in status.failed.items()} == {
        3: (5, "first"),
        8: (7, "second"),
    }
    assert str(status.all_failed()) == "second; by step 7 every seed had failed"


def test_a_seed_that_has_failed_does_not_diverge_too_and_the_first_step_counts() -> None:
    status = SeedStatus((1, 2, 3), CPU)
    status.note_failed({0: "fault"}, 4)
    status.finite[:2] = False
    for step in (6, 9):
        status.note_diverged(step)
    assert status.diverged == {2: 6}
    assert status.learning.tolist() == [False, False, True]
    again = SeedStatus((1, 2, 3), CPU)
    again.restore(status.diverged, status.failed)
    assert again.learning.tolist() == status.learning.tolist()
