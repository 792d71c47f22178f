"""What a run will take is put together from the measured times of its parts."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest

from envs import Task, TaskError
from qsm_bench import plan
from qsm_bench.experiment import Job
from qsm_bench.timing import AgentTime, Sizes, TaskTime, UpdateTime
from tests.qsm_bench.jobs import make_experiment, make_job

SMALL, LARGE = "bimodal-bandit", "four-goals"
SIZES = {SMALL: (1, 1), LARGE: (2, 2)}
STEP, ACT, EVALUATE, STATE, RECORD = 2.0, 3.0, 5.0, 11, 13
PLAIN = {SMALL: 7.0, LARGE: 10.0}
"""The seconds of an update that is not compiled."""
COMPILING, COMPILED = 1000.0, 4.0
"""The seconds of compiling, and of a compiled update on the large task."""

SetUp = Callable[..., Mock]


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """Have every measurement return the times above; the mock is what times one update."""

    def fake_task(task: Task, seeds: int) -> TaskTime:
        return TaskTime(SIZES[task.name], STEP * seeds, None)

    def fake_update(job: Job, sizes: Sizes, *, compiled: bool, calls: int = 10) -> UpdateTime:
        assert sizes == SIZES[job.task]
        if compiled:
            return UpdateTime(COMPILING, COMPILED * len(job.seeds))
        return UpdateTime(0.0, PLAIN[job.task] * len(job.seeds))

    def fake_agent(job: Job, sizes: Sizes) -> AgentTime:
        update = fake_update(job, sizes, compiled=False)
        return AgentTime(ACT, EVALUATE, update, RECORD, STATE)

    timed = Mock(side_effect=fake_update)
    monkeypatch.setattr(plan, "configure_process", lambda: None)
    monkeypatch.setattr(plan, "time_task", Mock(side_effect=fake_task))
    monkeypatch.setattr(plan, "time_agent", Mock(side_effect=fake_agent))
    monkeypatch.setattr(plan, "time_update", timed)
    return timed


@pytest.mark.usefixtures("set_up")
def test_a_job_takes_its_steps_updates_and_evaluations() -> None:
    job = make_job(task=LARGE, seeds=1)
    steps, learning, evaluations = 45, 45 - 8, 3
    (cost,) = plan.calibrate([job])
    assert cost.seconds == (
        steps * STEP + learning * (ACT + PLAIN[LARGE]) + evaluations * 1000 * (EVALUATE + 2 * STEP)
    )
    assert cost.start_seconds == 0
    assert cost.disk_bytes == steps * RECORD + 3 * STATE


def test_a_compiled_job_takes_compiled_updates_and_is_compiled_once(set_up: Mock) -> None:
    jobs = make_experiment(tasks=(LARGE,), seeds=3, per_job=1, compiled=True).jobs
    costs = plan.calibrate(jobs)
    (plain,) = plan.calibrate([jobs[0].model_copy(update={"compiled": False})])
    saved = jobs[0].protocol.updates * (PLAIN[LARGE] - COMPILED)
    assert [cost.seconds for cost in costs] == [plain.seconds + COMPILING - saved] * 3
    assert [cost.start_seconds for cost in costs] == [COMPILING] * 3
    set_up.assert_called_once_with(jobs[-1], SIZES[LARGE], compiled=True)


def test_on_other_tasks_updates_are_scaled_by_what_compiling_gains_on_the_largest(
    set_up: Mock,
) -> None:
    # Seeds are split 2 and 1: programs of other shapes.
    jobs = make_experiment(tasks=(LARGE, SMALL), seeds=3, per_job=2, compiled=True).jobs
    costs = plan.calibrate(jobs)
    plain = plan.calibrate([job.model_copy(update={"compiled": False}) for job in jobs])
    for job, cost, other in zip(jobs, costs, plain, strict=True):
        update = PLAIN[job.task] * len(job.seeds)
        saved = job.protocol.updates * update * (1 - COMPILED / PLAIN[LARGE])
        assert cost.seconds == pytest.approx(other.seconds + COMPILING - saved)
    compiled = [call.args[0] for call in set_up.call_args_list]
    assert {(job.task, len(job.seeds)) for job in compiled} == {(LARGE, 2), (LARGE, 1)}
    assert len(compiled) == 2


@pytest.mark.usefixtures("set_up")
def test_a_task_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = TaskTime(SIZES[LARGE], STEP, "four-goals: it broke")
    monkeypatch.setattr(plan, "time_task", lambda task, seeds: broken)
    with pytest.raises(TaskError, match="it broke"):
        plan.calibrate([make_job()])


def test_the_longest_job_is_first_and_nothing_is_compiled_for_that(set_up: Mock) -> None:
    jobs = make_experiment(tasks=(SMALL, LARGE), seeds=3, per_job=2, compiled=True).jobs
    assert [len(jobs[number].seeds) for number in plan.longest_first(jobs)] == [2, 2, 1, 1]
    short, long = jobs[0], jobs[0].model_copy(update={"protocol": jobs[0].protocol.but(steps=90)})
    assert plan.longest_first([short, long]) == [1, 0]
    assert not any(call.kwargs["compiled"] for call in set_up.call_args_list)


def test_a_speedup_keeps_what_was_measured_where_it_was_measured() -> None:
    plain = UpdateTime(0.5, 8.0)
    speedup = plan._Speedup(start=60.0, ratio=0.25)
    assert speedup.of(plain) == replace(plain, start=60.0, usual=2.0)
