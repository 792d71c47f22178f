"""Environments in processes of their own do what they do in one."""

import os
import signal

import numpy as np
import pytest

from envs import Environments, Lockstep, ParallelLockstep, TaskError

COUNT = 5


@pytest.mark.parametrize("processes", [1, 2, COUNT])
def test_the_same_steps_as_in_one_process(processes: int) -> None:
    rng = np.random.default_rng(0)
    here: Environments = Lockstep("four-goals", COUNT)
    there: Environments = ParallelLockstep("four-goals", COUNT, processes)
    sizes = here.count, here.observation_size, here.action_size
    assert (there.count, there.observation_size, there.action_size) == sizes
    for index in range(COUNT):
        np.testing.assert_array_equal(here.reset(index, 7 + index), there.reset(index, 7 + index))
    for _ in range(20):
        actions = rng.uniform(-1, 1, (COUNT, here.action_size)).astype(np.float32)
        active = rng.random(COUNT) < 0.7
        there.begin(actions, active)
        for mine, theirs in zip(here.step(actions, active), there.finish(), strict=True):
            np.testing.assert_array_equal(mine, theirs, strict=True)
    here.close()
    there.close()


def test_errors_come_back_and_the_processes_go_on() -> None:
    environments = ParallelLockstep("four-goals", 2, 2)
    actions = np.zeros((2, environments.action_size), np.float32)
    with pytest.raises(ValueError, match="actions have shape"):
        environments.begin(actions[:1])
    with pytest.raises(RuntimeError, match="must be reset before"):
        environments.step(actions)
    assert environments.reset(1, 0).shape == (environments.observation_size,)
    environments.close()


def test_no_more_processes_than_environments() -> None:
    with pytest.raises(ValueError, match="between 1 and 2, not 3"):
        ParallelLockstep("four-goals", 2, 3)


def test_a_process_that_is_killed_is_one_clear_line() -> None:
    environments = ParallelLockstep("four-goals", 2, 2)
    victim = environments._processes[1].pid
    assert victim
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(TaskError, match="'four-goals': its environment's process died") as told:
        environments.reset(1, 0)
    assert "\n" not in str(told.value)
    environments.close()
