"""Estimate the time and memory of a run before it starts, by short calibrations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, pairwise

import psutil
import torch
from rich.filesize import decimal as format_bytes

from agents.protocol import Agent
from agents.registry import AgentError, find_agent
from agents.speed.threads import one_thread
from envs import Lockstep, Task, TaskError
from qsm_bench.contract import told
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job
from qsm_bench.files import MIB
from qsm_bench.memory import available_bytes, estimate_peak, measure_peak
from qsm_bench.process import configure_process
from qsm_bench.rehearsal import rehearse
from qsm_bench.timing import (
    AgentTime,
    CallTime,
    Sizes,
    TaskTime,
    ready_to_learn,
    state_bytes,
    time_agent,
    time_calls,
    time_task,
)
from qsm_bench.training import AT_ONCE, build_agent

MEASURED_UPDATES = 2
"""Updates that are measured where it must be quick. Some agents update their actor in every second
one only."""
HEAP = 3
"""The most bytes of memory for each byte that tensors take at once in an update.

The C library does not give an array that was freed to the next of the same size, since it asks for
a little more and cuts it to fit. Where its holes fall differs from process to process: measured
with large candidates, 1.3 to 3.1.
"""
COMPILER_BYTES = 200 * MIB
"""What torch's compiler leaves in a process; a compiled update takes no more than a plain one."""


@dataclass(frozen=True)
class Cost:
    """The expected time and disk space of one job."""

    seconds: float
    start_seconds: float
    """Those of them that its first calls take beyond the usual, as they are compiled."""
    disk_bytes: int
    """The most bytes at any time, including the replay log."""


def calibrate(jobs: Sequence[Job]) -> list[Cost]:
    """What each job will take, by timing its parts for a moment on one thread.

    Environments are timed for each task, acting and updates for each agent on each task, all for
    each number of seeds in a job. Compiling takes longer than all of this, so each agent is
    compiled once for each number of seeds, on its largest task. That gives the time of compiling,
    which counts once in every job, and how much less acting and updates take then; on the agent's
    other tasks, they are timed as they stand and scaled by that. The compiler keeps its work on the
    disk, so a run that finds it there takes less than is said here.

    Raises TaskError or AgentError for what a task or an agent does wrong.
    """
    configure_process()
    tasks = {where: time_task(*where) for where in dict.fromkeys(map(_where, jobs))}
    for time in tasks.values():
        if time.fault:
            raise TaskError(time.fault)
    kinds = {(job.agent, *_where(job)): job for job in jobs}
    agents = {kind: time_agent(job, tasks[_where(job)].sizes) for kind, job in kinds.items()}
    sizes = {task: time.sizes for (task, _), time in tasks.items()}
    speedups = {
        (job.agent, len(job.seeds)): _Speedup(
            agents[job.agent, *_where(job)].calls,
            time_calls(job, sizes[job.environment], compiled=True),
        )
        for job in _largest((job for job in kinds.values() if job.compiled), sizes)
    }
    costs = {}
    for kind, job in kinds.items():
        calls = agents[kind].calls
        if job.compiled:
            calls = speedups[job.agent, len(job.seeds)].of(calls)
        costs[kind] = _cost(job, tasks[_where(job)], agents[kind], calls)
    return [costs[job.agent, *_where(job)] for job in jobs]


@dataclass(frozen=True)
class _Speedup:
    """What compiling does to an agent's calls, by measured times of them."""

    plain: CallTime
    """Their times as they stand."""
    compiled: CallTime
    """Their times compiled."""

    def of(self, plain: CallTime) -> CallTime:
        """The times of calls compiled, from those of them as they stand."""
        return CallTime(
            self.compiled.start,
            update=plain.update * self.compiled.update / self.plain.update,
            act=plain.act * self.compiled.act / self.plain.act,
            evaluate=plain.evaluate * self.compiled.evaluate / self.plain.evaluate,
        )


def _where(job: Job) -> tuple[Task, int]:
    """The job's task and number of seeds: what its environments are."""
    return job.environment, len(job.seeds)


def _largest(jobs: Iterable[Job], sizes: Mapping[Task, Sizes]) -> list[Job]:
    """The job of each agent and number of seeds whose task has the largest sizes."""
    order = sorted(jobs, key=lambda job: sum(sizes[job.environment]))
    return list({(job.agent, len(job.seeds)): job for job in order}.values())


def _cost(job: Job, task: TaskTime, agent: AgentTime, calls: CallTime) -> Cost:
    """What a job takes whose parts take so long."""
    protocol = job.protocol
    evaluations = len(protocol.evaluated_steps())
    # The length of an episode is not known in general: 1,000 environment steps are common.
    decisions = 1000 / protocol.action_repeat
    evaluation = decisions * (calls.evaluate + protocol.eval_episodes * task.step)
    return Cost(
        seconds=protocol.steps * task.step
        + (protocol.steps - protocol.warmup_steps) * calls.act
        + calls.start
        + protocol.updates * calls.update
        + evaluations * evaluation,
        start_seconds=calls.start,
        # The agent's state is on disk three times: two checkpoints, and one being written.
        disk_bytes=protocol.steps * agent.record_bytes + 3 * agent.state_bytes,
    )


@dataclass(frozen=True)
class Memory:
    """The expected memory of one job's process, at most, in bytes."""

    replay: int
    """The bytes of the replay buffer."""
    record: int
    """The bytes of one transition in the replay buffer, over all seeds."""
    rest: int
    """The bytes of everything else."""

    @property
    def total(self) -> int:
        """The bytes of the replay buffer and everything else."""
        return self.replay + self.rest


def estimate_memory(jobs: Sequence[Job]) -> list[Memory]:
    """The memory of each job: process, environments, replay buffer, an update, a checkpoint.

    The update of each agent is measured at small batch sizes, on its largest task. Raises UserError
    if the memory does not suffice for an agent's networks, and TaskError if a task cannot be
    constructed.
    """
    process = psutil.Process().memory_info().rss
    tasks = {task: _task_sizes(task) for task in dict.fromkeys(job.environment for job in jobs)}
    largest: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda j: (len(j.seeds), sum(tasks[j.environment][:2]))):
        largest[job.agent] = job
    learning = {
        agent: _learning_bytes(job, *tasks[job.environment][:2]) for agent, job in largest.items()
    }
    needs = []
    for job in jobs:
        observation_size, action_size, environment = tasks[job.environment]
        seeds = len(job.seeds)
        record = seeds * (2 * observation_size + action_size + 3) * torch.float32.itemsize
        environments = seeds * (1 + job.protocol.eval_episodes) * environment
        compiler = COMPILER_BYTES if job.compiled else 0
        rest = process + compiler + environments + seeds * learning[job.agent]
        needs.append(Memory(job.protocol.replay_size * record, record, rest))
    return needs


def rehearse_agents(jobs: Iterable[Job]) -> None:
    """Try each agent on one of its tasks, on the CPU, with two of its seeds at most.

    Raises AgentError where it fails at what a run will ask for.
    """
    tried = {job.agent: job for job in jobs}.values()
    sizes = {task: _sizes(task) for task in {job.environment for job in tried}}
    for job in tried:
        size = sizes[job.environment]
        build = partial(build_agent, _on_cpu(job, seeds=2), *size)
        with one_thread():
            rehearse(build, size[0], job.protocol, torch.device("cpu"))


def _sizes(task: Task) -> Sizes:
    with chdir("."):  # a task may change the working directory
        environment = Lockstep(task, 1)
        environment.close()
    return environment.observation_size, environment.action_size


def refuse_what_does_not_fit(jobs: Sequence[Job], needs: Sequence[Memory], workers: int) -> None:
    """Raise UserError if the ``workers`` largest jobs together need more memory than is free."""
    order = sorted(range(len(jobs)), key=lambda index: needs[index].total)[-workers:]
    total = sum(needs[index].total for index in order)
    if not order or total <= (free := available_bytes(jobs[0].device)):
        return
    job, need = jobs[order[-1]], needs[order[-1]]
    ways = []  # first what changes no number
    several = len(order) > 1
    alone = _replay_that_fits(job, need, free)
    if several and (fit := _that_fit(needs, order, free)):
        ways.append(f"--workers {fit}")
    elif several and alone:
        ways.append(f"--workers 1 and --replay-capacity {alone} or less")
    if len(job.seeds) > 1:
        ways.append("fewer --seeds-per-job")
    if capacity := _replay_that_fits(job, need, free // len(order)):
        ways.append(f"--replay-capacity {capacity} or less")
    ways = ways or ["fewer --eval-episodes", "a smaller --batch-size"]
    together = f"{len(order)} jobs at a time need about {format_bytes(total)}: " if several else ""
    raise UserError(
        f"not enough memory: {together}{job.agent} on {job.task} needs about "
        f"{format_bytes(need.total)}, {format_bytes(need.replay)} of it for its replay buffer, and "
        f"{format_bytes(free)} are free: give {', or '.join(ways)}"
    )


def _replay_that_fits(job: Job, need: Memory, free: int) -> int:
    """The transitions of each seed, rounded down, that fit beside the rest; 0 if too few do."""
    capacity = (free - need.rest) // need.record
    return _rounded_down(capacity) if capacity >= 2 * job.protocol.batch_size else 0


def _that_fit(needs: Sequence[Memory], order: Sequence[int], free: int) -> int:
    """How many of the largest jobs fit together; ``order`` has them by size, the largest last."""
    together = accumulate(needs[index].total for index in reversed(order))
    return sum(total <= free for total in together)


def _task_sizes(task: Task) -> tuple[int, int, int]:
    """The observation size, the action size, and about how many bytes one environment needs."""
    with chdir("."):  # a task may change the working directory
        made, resident = [], []
        for seed in range(4):
            made.append(Lockstep(task, 1))
            made[-1].reset(0, seed)
            resident.append(psutil.Process().memory_info().rss)
        for environments in made:
            environments.close()
    # The first two also load what all have in common, and leave garbage that the others fill.
    return made[0].observation_size, made[0].action_size, max(0, resident[3] - resident[1]) // 2


def _learning_bytes(job: Job, observation_size: int, action_size: int) -> int:
    """The bytes of each seed: networks, optimizers, an update, and a checkpoint being written."""
    widths = job.settings.get("hidden_sizes", ())
    weights = sum(a * b for a, b in pairwise([observation_size + action_size, *widths]))
    # At least two critics, their targets, and two averages of Adam for each weight of the critics.
    least = 8 * len(job.seeds) * weights * torch.float32.itemsize
    if least > (free := available_bytes("cpu")):
        raise UserError(
            f"{job.agent} on {job.task}: its networks alone need {format_bytes(least)} of "
            f"memory, and {format_bytes(free)} are free: give smaller hidden_sizes or fewer --seeds"
        )
    # All seeds need the same memory, so one is measured.
    alone = json.dumps(_on_cpu(job, seeds=1).model_dump(mode="json"))
    return _measured_bytes(find_agent(job.agent_name).agent, alone, observation_size, action_size)


@cache
def _measured_bytes(
    agent_class: type[Agent], content: str, observation_size: int, action_size: int
) -> int:
    """Measure what ``_learning_bytes`` returns, once for each job in JSON.

    The stages of an experiment, and several runs of a notebook, ask for the same. A notebook's
    agent that is defined anew is another ``agent_class``.
    """
    job = Job(**json.loads(content))
    protocol = job.protocol
    at_once = min(AT_ONCE, protocol.updates_per_step)
    state: int = 0

    def learn(batch_size: int) -> None:
        nonlocal state
        agent, replay = ready_to_learn(job, (observation_size, action_size))
        with told(agent.label, agent.call_of(at_once)):
            for _ in range(-(-MEASURED_UPDATES // at_once)):
                agent.update_several(replay.sample_several(batch_size, at_once))
        with told(agent.label, "state_dict()"):
            state = state_bytes(agent)

    try:
        peak = estimate_peak(learn, protocol.batch_size)
    except AgentError:  # it may need a batch of the run's size
        peak = measure_peak(partial(learn, protocol.batch_size))
    # A checkpoint is first written into memory, in an array that doubles when it is full.
    return state + HEAP * (peak - state) + 2 * state


def _on_cpu(job: Job, seeds: int) -> Job:
    """The job of its first seeds, on the CPU."""
    return job.model_copy(update={"device": "cpu", "seeds": job.seeds[:seeds]})


def longest_first(jobs: Sequence[Job]) -> list[int]:
    """The numbers of the jobs in the order of how long they take, so that no core waits at the end.

    It comes before every run, so it is quicker than ``calibrate``: each task is timed with one
    seed, and each agent's updates on one task, as they stand.
    """
    tasks: dict[Task, TaskTime] = {}
    updates: dict[str, float] = {}
    for job in jobs:
        if job.environment not in tasks:
            tasks[job.environment] = time_task(job.environment, 1)
        if job.agent not in updates:
            sizes = tasks[job.environment].sizes
            time = time_calls(_on_cpu(job, seeds=1), sizes, compiled=False, calls=MEASURED_UPDATES)
            updates[job.agent] = time.update

    def seconds(number: int) -> float:
        job = jobs[number]
        step = tasks[job.environment].step * (1 + job.protocol.eval_episodes / 10)
        once = job.protocol.steps * step + job.protocol.updates * updates[job.agent]
        return once * len(job.seeds)

    return sorted(range(len(jobs)), key=seconds, reverse=True)


def _rounded_down(number: int) -> int:
    """``number`` rounded down to two significant digits."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def makespan(seconds: Sequence[float], workers: int) -> float:
    """The seconds until the last job ends, if free workers take the jobs in order."""
    free = [0.0] * workers
    for job in seconds:
        first = free.index(min(free))
        free[first] += job
    return max(free)
