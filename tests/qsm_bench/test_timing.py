"""What is timed is what a run does; how long it takes is no matter of a test."""

from typing import Any
from unittest.mock import patch

import pytest

from envs import Task
from qsm_bench import plan, timing
from qsm_bench.contract import Checked
from tests.envs.made_up import MadeUp, registered
from tests.qsm_bench.jobs import make_job


@pytest.mark.parametrize("compiled", [False, True])
def test_acting_and_updates_are_timed_as_in_training(compiled: bool) -> None:
    """The clock runs over as many updates as those to begin with, in which they are compiled."""
    job = make_job(seeds=3)
    with patch.object(timing, "accelerate") as accelerate:
        timing.time_calls(job, (2, 2), compiled=compiled)
    (agent, device), options = accelerate.call_args
    assert device.type == job.device
    assert options == {"seeds": 3, "compiled": compiled}
    assert agent.updates.value == 2 * timing.CALLS


def test_several_updates_of_a_step_are_timed_as_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent may make them in a call that takes much less than so many calls."""
    job = make_job(updates_per_step=20)
    clock = iter([0.0, 100.0, 100.0, 140.0, *map(float, range(1000, 1008))])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with (
        patch.object(timing, "accelerate"),
        patch.object(Checked, "update_several", autospec=True) as several,
    ):
        time = timing.time_calls(job, (2, 2), compiled=False)
    assert [len(call.args[1]) for call in several.call_args_list] == [20, 20]
    assert (time.update, time.start) == (2.0, 60.0)


def test_what_the_first_calls_take_beyond_the_usual_is_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates, acts = [0.0, 64.0, 100.0, 104.0], [200.0, 208.0, 300.0, 302.0]
    evaluations = [400.0, 404.0, 500.0, 504.0]
    clock = iter(updates + acts + evaluations)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with patch.object(timing, "accelerate"):
        time = timing.time_calls(make_job(), (2, 2), compiled=True, calls=4)
    assert time == timing.CallTime(start=60.0 + 6.0, update=1.0, act=0.5, evaluate=1.0)


def test_a_dry_run_and_a_run_count_the_same_bytes_of_a_transition() -> None:
    job = make_job(seeds=3)
    task = timing.time_task(job.environment, 3)
    assert task.sizes == (2, 2)
    assert task.fault is None
    (memory,) = plan.estimate_memory([job])
    assert timing.time_agent(job, task.sizes).record_bytes == memory.record


class Breaks(MadeUp):
    def step(self, action: Any) -> Any:
        raise RuntimeError("it broke")


def test_episodes_end_and_environments_fail_while_they_are_timed() -> None:
    with registered(length=3) as name:
        assert timing.time_task(Task("short", name), 2).fault is None
    with registered(Breaks) as name:
        assert "it broke" in str(timing.time_task(Task("breaks", name), 2).fault)
