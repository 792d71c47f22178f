"""Environments in processes of their own do what they do in one."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from envs import Environments, Lockstep, ParallelLockstep, Task, TaskError, find_task

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


def test_a_step_that_was_not_begun_is_an_error_and_no_wait() -> None:
    for environments in (Lockstep("four-goals", 2), ParallelLockstep("four-goals", 2, 1)):
        with pytest.raises(RuntimeError, match="no step was begun"):
            environments.finish()
        environments.close()


def test_a_task_goes_to_the_processes_with_its_action_repeat() -> None:
    task = replace(find_task("four-goals"), action_repeat=3)
    here, there = Lockstep(task, 1), ParallelLockstep(task, 1, 1)
    actions = np.full((1, here.action_size), 0.5, np.float32)
    for environments in (here, there):
        environments.reset(0, 1)
    for mine, theirs in zip(here.step(actions), there.step(actions), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    here.close()
    there.close()


def test_being_asked_to_stop_is_for_the_job_and_not_for_its_environments() -> None:
    environments = ParallelLockstep("four-goals", 2, 2)
    for process in environments._processes:
        assert process.pid
        os.kill(process.pid, signal.SIGTERM)
    assert environments.reset(1, 0).shape == (environments.observation_size,)
    environments.close()
    assert not any(process.is_alive() for process in environments._processes)


def test_no_more_processes_than_environments() -> None:
    with pytest.raises(ValueError, match="between 1 and 2, not 3"):
        ParallelLockstep("four-goals", 2, 3)


def test_a_process_that_is_killed_is_one_clear_line() -> None:
    environments = ParallelLockstep("four-goals", 2, 2)
    victim = environments._processes[1].pid
    assert victim
    os.kill(victim, signal.SIGKILL)
    assert not environments.reset(1, 0).any()
    assert environments.faults == {1: "task 'four-goals': its environment's process died"}
    environments.reset(0, 0)
    step = environments.step(np.ones((2, environments.action_size), np.float32))
    assert step.observation[0].any()
    assert not any(part[1].any() for part in step)
    environments.close()


def test_a_task_that_cannot_be_constructed_there_is_refused_here() -> None:
    with pytest.raises(TaskError, match="'absent-v0'"):
        ParallelLockstep(Task("absent-v0", "absent-v0"), 2, 2)
