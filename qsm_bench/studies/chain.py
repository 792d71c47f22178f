"""The chain a^T, ..., a^0 of a diffusion policy's sampler, seen from outside as an agent runs it.

For the study of depth: what backpropagation through the sampler leaves of the critic's gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.common.diffusion import Denoiser, DiffusionPolicy, Draw, reparameterized
from agents.common.diffusion_agent import DiffusionAgent
from agents.common.streams import derive_seed
from agents.diffusion_ql import ActorNoise, DiffusionQL
from agents.protocol import Batch
from envs import Environments, Lockstep
from qsm_bench.contract import Checked
from qsm_bench.policy import jobs_of, load_agent
from qsm_bench.results import Results
from qsm_bench.training import build_agent

INITIAL, TRAINED = "at initialization", "trained"
STATES = 256
"""The states of each seed at which an agent is looked into: a batch of the default size."""


@dataclass(frozen=True, eq=False)
class WatchedPolicy(DiffusionPolicy):
    """A policy that remembers the actions of its last chain, in the order it made them."""

    chain: list[Tensor] = field(default_factory=list)
    """a^T, ..., a^0: T + 1 tensors [S, B, act]."""

    def sample(self, observation: Tensor, noise: Tensor, draw: Draw = reparameterized) -> Tensor:
        self.chain.clear()
        seeing = DiffusionPolicy(cast(Denoiser, _Seeing(self.denoiser, self.chain)), self.schedule)
        action = seeing.sample(observation, noise, draw)
        self.chain.append(action)
        return action


@dataclass(frozen=True)
class _Seeing:
    """A denoiser that notes every action it is asked about: those of a chain but the last."""

    denoiser: Denoiser
    seen: list[Tensor]

    def at_observation(self, observation: Tensor, copies: int = 1) -> Any:
        predict = self.denoiser.at_observation(observation, copies)

        def predict_and_note(action: Tensor, t: int) -> Tensor:
            self.seen.append(action)
            return predict(action, t)

        return predict_and_note


@contextmanager
def watching(agent: DiffusionAgent[Any]) -> Iterator[list[Tensor]]:
    """Within the block, the list has the actions of the last chain that the agent's policy ran."""
    policy, acting = agent.policy, agent.acting_policy
    watched = WatchedPolicy(agent.denoiser, agent.schedule)
    agent.policy = agent.acting_policy = watched
    try:
        yield watched.chain
    finally:
        agent.policy, agent.acting_policy = policy, acting


def chain_gradients(
    agent: DiffusionQL, batch: Batch, noise: ActorNoise
) -> tuple[list[Tensor], list[Tensor]]:
    """The chain of Diffusion-QL's loss, and d loss / d a^t for all its actions a^T, ..., a^0."""
    leaf = noise.chain.detach().requires_grad_()
    with watching(agent) as chain:
        loss, _ = agent.actor_loss(batch, noise._replace(chain=leaf))
        return chain, list(torch.autograd.grad(loss.sum(), chain))


def norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each gradient [S, B, act] over a seed's batch: [T + 1, S]."""
    return torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])


def cut_shares(chain: Sequence[Tensor]) -> Tensor:
    """The share of the entries of a^{T-1}, ..., a^0 that the clip has put on a bound: [T, S].

    Through such an entry no gradient passes: the clip is constant there.
    """
    return torch.stack(
        [(action.abs() == 1).flatten(1).double().mean(dim=1) for action in chain[1:]]
    )


def parameter_norms(agent: DiffusionAgent[Any], batch: Batch) -> Tensor:
    """The norm of the gradient of the actor's parameters, of one loss: [S]."""
    noise = agent.draw_actor_noise(batch.action.shape[1])
    loss, _ = agent.actor_loss(batch, noise)
    gradients = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
    return torch.stack(squares).sum(dim=0).sqrt()


def measure_runs(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Look into the agents of an experiment, new and as its checkpoints have them.

    Returns two tables that share the columns agent (the trainer), T, when (``INITIAL`` or
    ``TRAINED``), seed. The first has a row for each action of a chain: t, cut (``cut_shares``; NaN
    at t = T), and for Diffusion-QL relative (the norm of d loss / d a^t over that at a^0). The
    second has a row for each run: parameters (``parameter_norms``), constant (the ratio with a
    constant denoiser and no clip), and for Diffusion-QL first and last (the norms at a^T and
    a^0), ratio (of the two), factor (ratio over constant), dead (the share of samples whose
    gradient at a^T is exactly zero).
    """
    chains, runs = [], []
    for folder, job in jobs_of(results):
        device = torch.device(job.device)
        environments = Lockstep(job.environment, len(job.seeds))
        sizes = environments.observation_size, environments.action_size
        trained, _ = load_agent(folder, job, *sizes)
        for when, agent in ((INITIAL, build_agent(job, *sizes)), (TRAINED, trained)):
            batch = play(agent, job.seeds, environments, device)
            chain, run = look_into(cast(DiffusionAgent[Any], agent.bare), batch)
            steps = job.settings["diffusion_steps"]
            about = {"agent": job.agent_name, "T": steps, "when": when}
            seeds = dict(enumerate(job.seeds))
            chains.append(chain.assign(**about, seed=chain.pop("row").map(seeds)))
            runs.append(run.assign(**about, seed=list(job.seeds)))
        environments.close()
    return pd.concat(chains, ignore_index=True), pd.concat(runs, ignore_index=True)


def play(
    agent: Checked, seeds: Sequence[int], environments: Environments, device: torch.device
) -> Batch:
    """The first ``STATES`` steps of episodes, played as in training; the next of each is unknown.

    Where an episode ends before, another begins.
    """
    episode = 0

    def begin(row: int) -> NDArray[np.float32]:
        return environments.reset(row, derive_seed(seeds[row], "depth", episode, bits=32))

    observation = np.stack([begin(row) for row in range(len(seeds))])
    seen, taken = [], []
    for _ in range(STATES):
        seen.append(torch.from_numpy(observation).to(device))
        action = agent.act(seen[-1].unsqueeze(1), explore=True).squeeze(1)
        taken.append(action)
        # A seed that has diverged stands still.
        result = environments.step(action.nan_to_num(0.0, 0.0, 0.0).cpu().numpy())
        observation = result.observation
        for row in np.flatnonzero(result.terminated | result.truncated).tolist():
            episode += 1
            observation[row] = begin(row)
    nothing = torch.zeros(len(seeds), STATES, device=device)
    states = torch.stack(seen, dim=1)
    return Batch(states, torch.stack(taken, dim=1), nothing, nothing, states)


def look_into(agent: DiffusionAgent[Any], batch: Batch) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of ``measure_runs`` for one agent: rows of its seeds, without their names."""
    chain, gradients = ([x.cpu() for x in part] for part in _chain_of(agent, batch))
    steps, seeds = agent.schedule.steps, len(batch.observation)
    norm = norms(gradients).double() if gradients else torch.full((steps + 1, seeds), torch.nan)
    cut = torch.cat([torch.full((1, seeds), torch.nan, dtype=torch.float64), cut_shares(chain)])
    constant = float(agent.schedule.abar[steps]) ** -0.5
    ratio = norm[0] / norm[-1]
    dead = (gradients[0] == 0).all(dim=-1).double().mean(dim=1) if gradients else norm[0]
    along = {
        "row": torch.arange(seeds).repeat(steps + 1),
        "t": torch.arange(steps, -1, -1).repeat_interleave(seeds),
        "cut": cut.flatten(),
        "relative": (norm / norm[-1]).flatten(),
    }
    ends = {"first": norm[0], "last": norm[-1], "ratio": ratio, "factor": ratio / constant}
    run = {**ends, "dead": dead, "parameters": parameter_norms(agent, batch).cpu()}
    table = pd.DataFrame({name: value.numpy() for name, value in run.items()})
    return (
        pd.DataFrame({name: value.numpy() for name, value in along.items()}),
        table.assign(constant=constant),
    )


def _chain_of(
    agent: DiffusionAgent[Any], batch: Batch
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """A chain at each state, and the gradients at its actions; none if the loss has no chain."""
    size = batch.observation.shape[1]
    if isinstance(agent, DiffusionQL):
        return chain_gradients(agent, batch, agent.draw_actor_noise(size))
    with watching(agent) as chain:
        agent.sample_policy(batch.observation, 1, agent.update_stream)
        return chain, []
