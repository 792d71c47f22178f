"""What a run will take, before it is run: a short calibration of every cell."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from envs import Lockstep
from qsm_bench.contract import rehearse
from qsm_bench.experiment import Job
from qsm_bench.process import settle
from qsm_bench.replay import ReplayBuffer
from qsm_bench.training import build_agent

ENVIRONMENT_STEPS, UPDATES = 50, 10


@dataclass(frozen=True)
class Cost:
    """What one cell is expected to take."""

    seconds: float
    disk_bytes: int
    """At its largest, replay log included; a finished cell keeps no replay log."""


def calibrate(job: Job) -> Cost:
    """Time a few environment steps, actions and updates of ``job`` on one thread.

    Updates are timed as they stand: compiling them would take longer than the rest together.
    """
    settle()
    seeds = len(job.seeds)
    environments = Lockstep(job.task, seeds)
    sizes = environments.observation_size, environments.action_size
    device = torch.device(job.device)
    rehearse(partial(build_agent, job, *sizes), sizes[0], job.batch_size, device)
    agent = build_agent(job, *sizes)
    replay = ReplayBuffer(max(job.batch_size, ENVIRONMENT_STEPS), *sizes, job.seeds, device)
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
    evaluation_act_time = seconds_per(act, UPDATES, job.eval_episodes)
    update_time = seconds_per(lambda: agent.update(replay.sample(job.batch_size)), UPDATES)
    environments.close()

    updates = job.steps - job.warmup_steps
    evaluations = -(-job.steps // job.eval_every)
    # An episode's length is known only where the task has a limit; DMC's is the common one.
    evaluation_time = 1000 * (evaluation_act_time + job.eval_episodes * step_time)
    return Cost(
        seconds=job.steps * step_time
        + updates * (act_time + update_time)
        + evaluations * evaluation_time,
        # The agent's state is there as the last checkpoint, the one before, and the next.
        disk_bytes=job.steps * replay.records[0].nbytes
        + 3 * sum(p.nbytes for p in _tensors(agent.state_dict())),
    )


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of the jobs ends if free workers take them in order."""
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
