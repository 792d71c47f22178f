"""What a run will take is put together from the measured times of its parts."""

from collections.abc import Callable
from unittest.mock import Mock, patch

import pytest

from agents.registry import AgentError
from envs import Task, TaskError
from qsm_bench import plan
from qsm_bench.experiment import Job
from qsm_bench.timing import AgentTime, CallTime, Sizes, TaskTime
from tests.qsm_bench.jobs import make_experiment, make_job
from tests.qsm_bench.plain_agents import Plain

SMALL, LARGE = "bimodal-bandit", "four-goals"
SIZES = {SMALL: (1, 1), LARGE: (2, 2)}
STEP, ACT, EVALUATE, STATE, RECORD = 2.0, 3.0, 5.0, 11, 13
PLAIN = {SMALL: 7.0, LARGE: 10.0}
"""The seconds of an update that is not compiled."""
COMPILING, COMPILED, COMPILED_ACT, COMPILED_EVALUATE = 1000.0, 4.0, 1.0, 2.0
"""The seconds of compiling, and of calls that are compiled, on the large task."""

SetUp = Callable[..., Mock]


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """Have every measurement return the times above; the mock is what times an agent's calls."""

    def fake_task(task: Task, seeds: int) -> TaskTime:
        return TaskTime(SIZES[task.name], STEP * seeds, None)

    def fake_calls(job: Job, sizes: Sizes, *, compiled: bool, calls: int = 10) -> CallTime:
        assert sizes == SIZES[job.task]
        if compiled:
            update = COMPILED * len(job.seeds)
            return CallTime(COMPILING, update, COMPILED_ACT, COMPILED_EVALUATE)
        return CallTime(0.0, PLAIN[job.task] * len(job.seeds), ACT, EVALUATE)

    def fake_agent(job: Job, sizes: Sizes) -> AgentTime:
        return AgentTime(fake_calls(job, sizes, compiled=False), RECORD, STATE)

    timed = Mock(side_effect=fake_calls)
    monkeypatch.setattr(plan, "configure_process", lambda: None)
    monkeypatch.setattr(plan, "time_task", Mock(side_effect=fake_task))
    monkeypatch.setattr(plan, "time_agent", Mock(side_effect=fake_agent))
    monkeypatch.setattr(plan, "time_calls", timed)
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
    protocol = jobs[0].protocol
    saved = protocol.updates * (PLAIN[LARGE] - COMPILED)
    saved += (protocol.steps - protocol.warmup_steps) * (ACT - COMPILED_ACT)
    saved += 3 * 1000 * (EVALUATE - COMPILED_EVALUATE)  # evaluations of 1,000 steps
    assert [cost.seconds for cost in costs] == [plain.seconds + COMPILING - saved] * 3
    assert [cost.start_seconds for cost in costs] == [COMPILING] * 3
    set_up.assert_called_once_with(jobs[-1], SIZES[LARGE], compiled=True)


def test_on_other_tasks_both_are_scaled_by_what_compiling_gains_on_the_largest(
    set_up: Mock,
) -> None:
    # Seeds are split 2 and 1: programs of other shapes.
    jobs = make_experiment(tasks=(LARGE, SMALL), seeds=3, per_job=2, compiled=True).jobs
    costs = plan.calibrate(jobs)
    plain = plan.calibrate([job.model_copy(update={"compiled": False}) for job in jobs])
    for job, cost, other in zip(jobs, costs, plain, strict=True):
        update = PLAIN[job.task] * len(job.seeds)
        saved = job.protocol.updates * update * (1 - COMPILED / PLAIN[LARGE])
        saved += (job.protocol.steps - job.protocol.warmup_steps) * (ACT - COMPILED_ACT)
        saved += 3 * 1000 * (EVALUATE - COMPILED_EVALUATE)
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
    plain = CallTime(0.5, update=8.0, act=3.0, evaluate=5.0)
    compiled = CallTime(60.0, update=2.0, act=1.5, evaluate=1.25)
    assert plan._Speedup(plain, compiled).of(plain) == compiled


@pytest.mark.parametrize("method", ["update", "act", "state_dict"])
def test_an_agent_that_raises_is_told_in_one_line_before_anything_runs(method: str) -> None:
    job = make_job("tests.qsm_bench.plain_agents:Plain")
    before = plan.longest_first if method == "act" else plan.estimate_memory
    with (
        patch.object(Plain, method, side_effect=KeyError("loss")),
        pytest.raises(AgentError, match=rf"'plain': {method}\(.*\) raised KeyError: 'loss'$"),
    ):
        before([job])
