"""Time what a job is made of, each part for a moment: environments, acting, updates."""

import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from agents.speed.acceleration import accelerate
from envs import Lockstep, Task
from qsm_bench.contract import Checked, told
from qsm_bench.experiment import Job
from qsm_bench.rehearsal import rehearse
from qsm_bench.replay import ReplayBuffer
from qsm_bench.training import build_agent, portions

ENVIRONMENT_STEPS, CALLS = 50, 10
"""How many steps of an environment, and how many calls of an agent, are timed by default."""

Sizes = tuple[int, int]
"""The sizes of a task's observations and of its actions."""


@dataclass(frozen=True)
class TaskTime:
    """A task, with the seconds that its environments take."""

    sizes: Sizes
    step: float
    """The seconds of a step of all seeds."""
    fault: str | None
    """Why an environment has failed, if one has."""


@dataclass(frozen=True)
class CallTime:
    """The seconds of the calls of an agent, for all seeds."""

    start: float
    """What the first calls take beyond the usual: most of it is compiling, if they are compiled."""
    update: float
    """The seconds of an update, from then on."""
    act: float
    """The seconds of choosing an action and of remembering the transition, from then on."""
    evaluate: float
    """The seconds of choosing the actions of a step of all evaluation episodes, from then on."""


@dataclass(frozen=True)
class AgentTime:
    """The seconds that an agent takes on a task, and the bytes that it writes."""

    calls: CallTime
    """Its calls, not compiled."""
    record_bytes: int
    """The bytes of one transition of all seeds."""
    state_bytes: int
    """The bytes of the agent's state."""


def time_task(task: Task, seeds: int) -> TaskTime:
    """Time some random steps of ``seeds`` environments. Raises TaskError if it has none."""
    with chdir("."):  # a task may change the working directory
        environments = Lockstep(task, seeds)
        sizes = environments.observation_size, environments.action_size
        rng = np.random.default_rng(0)
        for row in range(seeds):
            environments.reset(row, row)

        def step() -> None:
            result = environments.step(rng.uniform(-1, 1, (seeds, sizes[1])).astype(np.float32))
            for row in np.flatnonzero(result.terminated | result.truncated).tolist():
                environments.reset(row, 0)

        step()  # the first takes longer
        seconds = _seconds(step, ENVIRONMENT_STEPS, torch.device("cpu"))
        environments.close()
    return TaskTime(sizes, seconds, next(iter(environments.faults.values()), None))


def time_agent(job: Job, sizes: Sizes) -> AgentTime:
    """Time the calls of the job's agent, not compiled.

    Raises AgentError where the agent fails at what a run will ask for.
    """
    rehearse(partial(build_agent, job, *sizes), sizes[0], job.protocol, torch.device(job.device))
    agent, replay = ready_to_learn(job, sizes)
    return AgentTime(
        calls=time_calls(job, sizes, compiled=False),
        record_bytes=replay.records[0].nbytes,
        state_bytes=state_bytes(agent),
    )


def time_calls(job: Job, sizes: Sizes, *, compiled: bool, calls: int = CALLS) -> CallTime:
    """Time ``calls`` calls of each kind of the job's agent, after as many to begin with.

    Several updates of a step are made together, as in a run, so their calls are fewer. An agent may
    have updates of several kinds in turn, which are compiled one by one. Raises AgentError for a
    call that fails.
    """
    agent, replay = ready_to_learn(job, sizes)
    seeds, device = len(job.seeds), torch.device(job.device)
    accelerate(agent.bare, device, seeds=seeds, compiled=compiled)
    observation = torch.zeros(seeds, sizes[0])
    reward, ended = torch.zeros(seeds), torch.zeros(seeds, dtype=torch.bool)

    updates = next(portions(job.protocol.updates_per_step))

    def update() -> None:
        with told(agent.label, agent.call_of(updates)):
            agent.update_several(replay.sample_several(job.protocol.batch_size, updates))

    def act() -> None:
        seen = observation.to(device)
        with told(agent.label, "act(observation, explore=True)"):
            action = agent.act(seen.unsqueeze(1), explore=True).squeeze(1)
        came = (x.to(device) for x in (reward, observation, ended, ended))
        replay.add(seen, action, *came)
        action.cpu()

    def evaluate() -> None:
        seen = observation.unsqueeze(1).repeat(1, job.protocol.eval_episodes, 1)
        with told(agent.label, "act(observation, explore=False)"):
            agent.act(seen.to(device), explore=False).cpu()

    # Updates come first: the replay buffer has the run's last transition until there is another.
    first, usual = 0.0, []
    for kind, made in ((update, updates), (act, 1), (evaluate, 1)):
        times = -(-calls // made)
        begun, later = (_seconds(kind, times, device) for _ in range(2))
        first += times * (begun - later)
        usual.append(later / made)
    return CallTime(max(0.0, first), *usual)


def ready_to_learn(job: Job, sizes: Sizes) -> tuple[Checked, ReplayBuffer]:
    """A new agent of the job, and a replay buffer of one transition of zeros, its run's last.

    So an agent that remembers something of each transition has the memory of the whole run.
    """
    replay = ReplayBuffer(
        1,
        *sizes,
        job.seeds,
        torch.device(job.device),
        n_step=job.settings["n_step"],
        discount=job.settings["discount"],
    )
    replay.records.zero_()
    replay.added = job.protocol.steps
    return build_agent(job, *sizes), replay


def state_bytes(agent: Checked) -> int:
    """The bytes of the tensors in the agent's state."""
    return sum(int(tensor.nbytes) for tensor in _tensors(agent.state_dict()))


def _seconds(work: Callable[[], object], calls: int, device: torch.device) -> float:
    """The seconds of each of ``calls`` calls, until a GPU has done what they asked of it."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    _wait(device)
    return (time.perf_counter() - began) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for value in values for tensor in _tensors(value)]
