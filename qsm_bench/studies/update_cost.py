"""What an update of a diffusion trainer costs: seconds and bytes. And what an action costs.

For the studies of trainers and of depth: networks of the default sizes, one seed, nothing trained.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import pandas as pd
import torch

from agents.common.diffusion_agent import DiffusionAgent
from agents.protocol import Batch
from agents.registry import find_agent
from qsm_bench.experiment import AgentEntry
from qsm_bench.memory import measure_peak, saved_bytes

TASK = "walker-walk"
OBSERVATION, ACTION, BATCH = 24, 6, 256
"""The sizes of the task, and the default batch."""
CALLS = 3
"""A time is the shortest of so many calls: others who use the machine only make it longer."""
UPDATE, ACTOR, ONE_ACTION = "whole update", "actor's part", "one action"
CPU = torch.device("cpu")

Key = TypeVar("Key")


def build(name: str, seeds: Sequence[int] = (0,), **settings: Any) -> DiffusionAgent[Any]:
    """A new diffusion agent or preset of that name, for the sizes of the task.

    All that is not among ``settings`` is at its default.
    """
    registered = find_agent(name)
    config = AgentEntry(registered, settings).config(TASK, {})
    agent = cast(type[DiffusionAgent[Any]], registered.agent)
    return agent(config, OBSERVATION, ACTION, seeds, CPU)


def draw_batch() -> Batch:
    """A batch of normal observations and uniform actions, the same at every call."""
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(1, BATCH, *size, generator=draw)

    action = 2 * torch.rand(1, BATCH, ACTION, generator=draw) - 1
    discount = torch.full((1, BATCH), 0.99)
    return Batch(normal(OBSERVATION), action, normal(), discount, normal(OBSERVATION))


def measure_times(trainers: Sequence[str], steps: Sequence[int], rounds: int) -> pd.DataFrame:
    """Time updates; a round times every trainer at every number of steps, one after the other.

    Columns: agent, T, round, measure (``UPDATE``; ``ACTOR``: the actor's loss and optimizer),
    ratio (the time over that of the first trainer's whole update at the least steps, same round).
    """
    batch = draw_batch()
    work = {
        (trainer, t, measure): part
        for t in steps
        for trainer in trainers
        for measure, part in _parts(build(trainer, diffusion_steps=t), batch).items()
    }
    rows = []
    for turn, seconds in enumerate(_in_turns(work, rounds), start=1):
        unit = seconds[trainers[0], min(steps), UPDATE]
        rows += [
            {"agent": agent, "T": t, "round": turn, "measure": measure, "ratio": spent / unit}
            for (agent, t, measure), spent in seconds.items()
        ]
    return pd.DataFrame(rows)


def measure_milliseconds(names: Sequence[str], rounds: int) -> pd.DataFrame:
    """Time agents as they are used; a round times them all, one after the other.

    Columns: agent, round, measure (``UPDATE``, its random numbers included; ``ONE_ACTION``: acting
    on one observation, as in training), milliseconds.
    """
    batch, agents = draw_batch(), {name: build(name) for name in names}
    observation = batch.observation[:, :1]
    work: dict[tuple[str, str], Callable[[], object]] = {}
    for name, agent in agents.items():
        work[name, UPDATE] = lambda a=agent: a.update(batch)  # type: ignore[misc]
        work[name, ONE_ACTION] = lambda a=agent: a.act(observation, explore=True)  # type: ignore[misc]
    return pd.DataFrame(
        [
            {"agent": name, "round": turn, "measure": measure, "milliseconds": 1000 * spent}
            for turn, seconds in enumerate(_in_turns(work, rounds), start=1)
            for (name, measure), spent in seconds.items()
        ]
    )


def _in_turns(
    work: Mapping[Key, Callable[[], object]], rounds: int
) -> Sequence[Mapping[Key, float]]:
    """The seconds that each work takes in each round. One more round before is to warm up."""
    spent = [{key: _fastest(each) for key, each in work.items()} for _ in range(rounds + 1)]
    return spent[1:]


def _parts(agent: DiffusionAgent[Any], batch: Batch) -> dict[str, Callable[[], object]]:
    (noise,) = agent.draw_inputs(BATCH)

    def actor() -> None:
        loss, _ = agent.actor_loss(batch, noise.actor)
        agent.actor_optimizer.minimize(loss)

    return {UPDATE: lambda: agent.pure_update(batch, noise), ACTOR: actor}


def _fastest(work: Callable[[], object]) -> float:
    """The seconds of the fastest of ``CALLS`` calls."""
    spent = []
    for _ in range(CALLS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def measure_memory(trainers: Sequence[str], steps: Sequence[int]) -> pd.DataFrame:
    """Count bytes, exactly: the same on every machine.

    Columns: agent, T, saved (what the graph of the actor's loss keeps for its backward pass, apart
    from parameters, batch and noise), peak (the most that the tensors of an update take at once).
    """
    batch = draw_batch()
    rows = []
    for trainer in trainers:
        for t in steps:
            agent = build(trainer, diffusion_steps=t)
            (noise,) = agent.draw_inputs(BATCH)
            saved = saved_activations(agent, batch, noise.actor)
            peak = measure_peak(lambda a=agent, n=noise: a.pure_update(batch, n))  # type: ignore[misc]
            rows.append({"agent": trainer, "T": t, "saved": saved, "peak": peak})
    return pd.DataFrame(rows)


def saved_activations(agent: DiffusionAgent[Any], batch: Batch, noise: Iterable[Any]) -> int:
    """The bytes that the actor's loss keeps, apart from parameters, batch and noise."""
    read = (field for field in batch if field is not None)
    given = [*read, *noise, *agent.denoiser.parameters(), *agent.denoiser.buffers()]
    given += [*agent.critic.parameters(), *agent.target_critic.parameters()]
    return saved_bytes(lambda: agent.actor_loss(batch, noise)[0], given)
