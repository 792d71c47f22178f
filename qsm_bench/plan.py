"""Estimate the time and memory of a run before it starts, by short calibrations."""

import time
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import psutil
import torch
from rich.filesize import decimal as format_bytes

from envs import Lockstep, Task, TaskError
from qsm_bench.contract import Checked, rehearse
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job
from qsm_bench.memory import available_bytes, estimate_peak
from qsm_bench.process import configure_process
from qsm_bench.replay import ReplayBuffer
from qsm_bench.training import build_agent

ENVIRONMENT_STEPS, UPDATES = 50, 10
MEASURED_UPDATES = 2
"""Updates whose memory is measured. Some agents update their actor in every second one only."""


@dataclass(frozen=True)
class Cost:
    """The expected time and disk space of one job."""

    seconds: float
    disk_bytes: int
    """The most bytes at any time, including the replay log."""


def calibrate(job: Job) -> Cost:
    """Time a few environment steps, actions and updates of ``job`` on one thread.

    Updates are timed eager: to compile them would take longer than all the rest.
    """
    configure_process()
    seeds, protocol = len(job.seeds), job.protocol
    environments = Lockstep(job.environment, seeds)
    sizes = environments.observation_size, environments.action_size
    device = torch.device(job.device)
    rehearse(partial(build_agent, job, *sizes), sizes[0], protocol.batch_size, device)
    agent = build_agent(job, *sizes)
    room = max(protocol.batch_size, ENVIRONMENT_STEPS)
    replay = ReplayBuffer(room, *sizes, job.seeds, device)
    observation = np.stack([environments.reset(row, row) for row in range(seeds)])

    def act(episodes: int) -> None:
        batch = torch.from_numpy(observation).unsqueeze(1).expand(-1, episodes, -1)
        agent.act(batch.to(device), explore=False)

    rng = np.random.default_rng(0)

    def step() -> None:
        nonlocal observation
        action = rng.uniform(-1, 1, (seeds, sizes[1])).astype(np.float32)
        result = environments.step(action)
        replay.add(
            *(
                torch.from_numpy(x).to(device)
                for x in (
                    observation,
                    action,
                    result.reward,
                    result.observation,
                    result.terminated,
                    result.truncated,
                )
            )
        )
        observation = result.observation
        for row in np.flatnonzero(result.terminated | result.truncated).tolist():
            observation[row] = environments.reset(row, 0)

    def seconds_per(call: object, times: int, *arguments: int) -> float:
        assert callable(call)
        call(*arguments)
        began = time.perf_counter()
        for _ in range(times):
            call(*arguments)
        return (time.perf_counter() - began) / times

    step_time = seconds_per(step, ENVIRONMENT_STEPS)
    act_time = seconds_per(act, UPDATES, 1)
    evaluation_act_time = seconds_per(act, UPDATES, protocol.eval_episodes)
    update_time = seconds_per(lambda: agent.update(replay.sample(protocol.batch_size)), UPDATES)
    if environments.faults:
        raise TaskError(next(iter(environments.faults.values())))
    environments.close()

    evaluations = -(-protocol.steps // protocol.eval_every)
    # The length of an episode is not known in general: 1,000 environment steps are common.
    decisions = 1000 / protocol.action_repeat
    evaluation_time = decisions * (evaluation_act_time + protocol.eval_episodes * step_time)
    return Cost(
        seconds=protocol.steps * step_time
        + (protocol.steps - protocol.warmup_steps) * act_time
        + protocol.updates * update_time
        + evaluations * evaluation_time,
        # The agent's state is on disk three times: two checkpoints, and one being written.
        disk_bytes=protocol.steps * replay.records[0].nbytes
        + 3 * sum(p.nbytes for p in _tensors(agent.state_dict())),
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
        rest = process + environments + seeds * learning[job.agent]
        needs.append(Memory(job.protocol.replay_size * record, record, rest))
    return needs


def refuse_what_does_not_fit(jobs: Sequence[Job], needs: Sequence[Memory], workers: int) -> None:
    """Raise UserError if the ``workers`` largest jobs together need more memory than is free."""
    order = sorted(range(len(jobs)), key=lambda index: needs[index].total)[-workers:]
    total = sum(needs[index].total for index in order)
    if not order or total <= (free := available_bytes(jobs[0].device)):
        return
    job, need = jobs[order[-1]], needs[order[-1]]
    ways = ["fewer --seeds"]
    if len(order) > 1:
        ways.append("fewer --workers")
    capacity = (free // len(order) - need.rest) // need.record
    if capacity >= 2 * job.protocol.batch_size:
        ways.insert(0, f"--replay-capacity {_rounded_down(capacity)} or less")
    several = len(order) > 1
    together = f"{len(order)} jobs at a time need about {format_bytes(total)}: " if several else ""
    raise UserError(
        f"not enough memory: {together}{job.agent} on {job.task} needs about "
        f"{format_bytes(need.total)}, {format_bytes(need.replay)} of it for its replay buffer, and "
        f"{format_bytes(free)} are free: give {', or '.join(ways)}"
    )


def _task_sizes(task: Task) -> tuple[int, int, int]:
    """The observation size, the action size, and about how many bytes one environment needs."""
    with chdir("."):  # a task may change the working directory
        first = Lockstep(task, 1)
        first.reset(0, 0)
        before = psutil.Process().memory_info().rss
        second = Lockstep(task, 1)
        second.reset(0, 1)
        more = max(0, psutil.Process().memory_info().rss - before)
        for environments in (first, second):
            environments.close()
    return first.observation_size, first.action_size, more


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
    job = _alone(job)
    state: int = 0

    def learn(batch_size: int) -> None:
        nonlocal state
        agent, replay = _ready_to_learn(job, observation_size, action_size)
        for _ in range(MEASURED_UPDATES):
            agent.update(replay.sample(batch_size))
        state = sum(int(tensor.nbytes) for tensor in _tensors(agent.state_dict()))

    # A checkpoint is first written into memory, in an array that doubles when it is full.
    update = estimate_peak(learn, job.protocol.batch_size)
    return update + 2 * state


def _ready_to_learn(
    job: Job, observation_size: int, action_size: int
) -> tuple[Checked, ReplayBuffer]:
    """A new agent of the job, and a replay buffer of one transition of zeros."""
    sizes = observation_size, action_size
    replay = ReplayBuffer(1, *sizes, job.seeds, torch.device(job.device))
    replay.records.zero_()
    replay.added = 1
    return build_agent(job, *sizes), replay


def _alone(job: Job) -> Job:
    """The job of its first seed, on the CPU."""
    return job.model_copy(update={"device": "cpu", "seeds": job.seeds[:1]})


def longest_first(jobs: Sequence[Job]) -> list[int]:
    """The numbers of the jobs in the order of how long they take, so that no core waits at the end.

    Each task's environment and each agent's update are timed for a moment.
    """
    tasks: dict[Task, tuple[float, tuple[int, int]]] = {}
    updates: dict[str, float] = {}
    for job in jobs:
        if job.environment not in tasks:
            tasks[job.environment] = _time_task(job.environment)
        if job.agent not in updates:
            updates[job.agent] = _time_update(_alone(job), *tasks[job.environment][1])

    def seconds(number: int) -> float:
        job = jobs[number]
        step = tasks[job.environment][0] * (1 + job.protocol.eval_episodes / 10)
        once = job.protocol.steps * step + job.protocol.updates * updates[job.agent]
        return once * len(job.seeds)

    return sorted(range(len(jobs)), key=seconds, reverse=True)


def _time_task(task: Task) -> tuple[float, tuple[int, int]]:
    """Measure the seconds of one environment step; return them with the task's sizes."""
    with chdir("."):
        environments = Lockstep(task, 1)
        environments.reset(0, 0)
        sizes = environments.observation_size, environments.action_size
        action = np.zeros((1, sizes[1]), np.float32)
        began = time.perf_counter()
        for _ in range(ENVIRONMENT_STEPS):
            result = environments.step(action)
            if result.terminated[0] or result.truncated[0] or environments.faults:
                environments.reset(0, 0)
        seconds = (time.perf_counter() - began) / ENVIRONMENT_STEPS
        environments.close()
    return seconds, sizes


def _time_update(job: Job, observation_size: int, action_size: int) -> float:
    """Measure the seconds of one update of a job."""
    agent, replay = _ready_to_learn(job, observation_size, action_size)
    agent.update(replay.sample(job.protocol.batch_size))  # the first takes longer
    began = time.perf_counter()
    for _ in range(MEASURED_UPDATES):
        agent.update(replay.sample(job.protocol.batch_size))
    return (time.perf_counter() - began) / MEASURED_UPDATES


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


def _tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for value in values for tensor in _tensors(value)]
