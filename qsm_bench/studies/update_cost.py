"""What an update of a diffusion trainer costs as its chain gets longer: seconds and bytes.

For the study of depth: networks of the default sizes, one seed, nothing trained.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import torch

from agents.common.diffusion_agent import DiffusionAgent, Noise
from agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from agents.protocol import Batch
from agents.qsm import QSM, QSMConfig
from qsm_bench.memory import measure_peak, saved_bytes

OBSERVATION, ACTION, BATCH = 24, 6, 256
"""The sizes of walker-walk, and the default batch."""
CALLS = 3
"""A time is the shortest of so many calls: others who use the machine only make it longer."""
UPDATE, ACTOR = "whole update", "actor's part"
CPU = torch.device("cpu")


def build(trainer: str, steps: int) -> DiffusionAgent[Any]:
    """A new agent with ``steps`` denoising steps and all other settings at their defaults."""
    if trainer == "qsm":
        return QSM(QSMConfig(diffusion_steps=steps), OBSERVATION, ACTION, [0], CPU)
    config = DiffusionQLConfig(diffusion_steps=steps)
    return DiffusionQL(config, OBSERVATION, ACTION, [0], CPU)


def draw_batch() -> Batch:
    """A batch of normal observations and uniform actions, the same at every call."""
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(1, BATCH, *size, generator=draw)

    action = 2 * torch.rand(1, BATCH, ACTION, generator=draw) - 1
    discount = torch.full((1, BATCH), 0.99)
    return Batch(normal(OBSERVATION), action, normal(), discount, normal(OBSERVATION))


def draw_noise(agent: DiffusionAgent[Any]) -> Noise:
    """The random numbers of one update."""
    return Noise(agent.draw_critic_noise(BATCH), agent.draw_actor_noise(BATCH))


def measure_times(trainers: Sequence[str], steps: Sequence[int], rounds: int) -> pd.DataFrame:
    """Time updates; a round times every trainer at every number of steps, one after the other.

    Columns: agent, T, round, measure (``UPDATE``; ``ACTOR``: the actor's loss and optimizer),
    ratio (the time over that of the first trainer's whole update at the least steps, same round).
    """
    batch = draw_batch()
    agents = {(trainer, t): build(trainer, t) for t in steps for trainer in trainers}
    rows = []
    for turn in range(rounds + 1):  # the first of them is to warm up, and does not count
        seconds = {
            (*key, measure): _fastest(work)
            for key, agent in agents.items()
            for measure, work in _work(agent, batch).items()
        }
        unit = seconds[trainers[0], min(steps), UPDATE]
        if turn:
            rows += [
                {"agent": agent, "T": t, "round": turn, "measure": measure, "ratio": spent / unit}
                for (agent, t, measure), spent in seconds.items()
            ]
    return pd.DataFrame(rows)


def _work(agent: DiffusionAgent[Any], batch: Batch) -> dict[str, Callable[[], object]]:
    noise = draw_noise(agent)

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
            agent = build(trainer, t)
            noise = draw_noise(agent)
            saved = saved_activations(agent, batch, noise.actor)
            peak = measure_peak(lambda a=agent, n=noise: a.pure_update(batch, n))  # type: ignore[misc]
            rows.append({"agent": trainer, "T": t, "saved": saved, "peak": peak})
    return pd.DataFrame(rows)


def saved_activations(agent: DiffusionAgent[Any], batch: Batch, noise: Iterable[Any]) -> int:
    """The bytes that the actor's loss keeps, apart from parameters, batch and noise."""
    given = [*batch, *noise, *agent.denoiser.parameters(), *agent.denoiser.buffers()]
    given += [*agent.critic.parameters(), *agent.target_critic.parameters()]
    return saved_bytes(lambda: agent.actor_loss(batch, noise)[0], given)
