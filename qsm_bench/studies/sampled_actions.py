"""What trained diffusion policies do at the same states, and what the critics say to it.

For the study of the action map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from agents.common.diffusion_agent import DiffusionAgent
from agents.common.streams import SeedStreams
from envs import Lockstep
from qsm_bench.diagnostics import SMALLEST_MODE, clipped_share, entropy, mode_members
from qsm_bench.policy import jobs_of, load_agent
from qsm_bench.results import Results
from qsm_bench.studies.chain import play

EACH = 4
"""The number of states that come from the episodes of each trainer."""
SAMPLES = 500
"""Sampled actions of each policy at each state."""
UNIFORM = 1_000
"""Uniform actions at each state, to which the critics' values are related."""
HIGH = 0.5
"""From this gain on, an action is nearer to the best that is known than to a uniform one."""

MODES, ALL_MODES, HELD = "modes at high Q", "all modes", "samples in a mode"
ENTROPY, GAIN, OTHER_GAIN = "entropy", "gain", "gain by the other critic"
AT_BOUND, PULLED = "entries at a bound", "entries pulled inward"
MEASURES = MODES, ENTROPY, GAIN, ALL_MODES, HELD, AT_BOUND, PULLED, OTHER_GAIN

Run = tuple[str, int]
"""A trainer and a seed."""


@dataclass(frozen=True)
class Trained:
    """The agents of one job, S seeds, as its last checkpoint has them."""

    trainer: str
    seeds: Sequence[int]
    agent: DiffusionAgent[Any]
    device: torch.device
    visited: Tensor
    """The states of the first steps of an episode, [S, steps, obs]."""


@dataclass(frozen=True)
class Actions:
    """The actions of one run: M at each of N states."""

    samples: Tensor
    """[N, M, act]"""
    gain: Tensor
    """Their gains by the run's own critic, [N, M]."""
    other_gain: Tensor
    """Their gains by the critic of the other trainer's run of this seed, [N, M]."""
    pulled: Tensor
    """Which entries the run's critic pulls inward from a bound, [N, M, act] of bool."""


def load_trained(results: Results) -> list[Trained]:
    """Load the agents of an experiment from its checkpoints, and let them play."""
    found = []
    for folder, job in jobs_of(results):
        device = torch.device(job.device)
        environments = Lockstep(job.environment, len(job.seeds))
        sizes = environments.observation_size, environments.action_size
        agent, _ = load_agent(folder, job, *sizes)
        visited = play(agent, job.seeds, environments, device).observation.cpu()
        environments.close()
        bare = cast(DiffusionAgent[Any], agent.bare)
        found.append(Trained(job.agent_name, job.seeds, bare, device, visited))
    return found


def pick_states(visited: Mapping[Run, Tensor], trainers: Sequence[str], count: int) -> Tensor:
    """``count`` states of each trainer, one trainer after the other: [count len(trainers), obs].

    ``visited`` are the states of each run's episode, [steps, obs]. The first is from the first
    seed and early in the episode, the next from the next seed and later, and so on.
    """
    states = []
    for trainer in trainers:
        episodes = [visited[run] for run in sorted(visited) if run[0] == trainer]
        for number in range(count):
            episode = episodes[number % len(episodes)]
            states.append(episode[(2 * number + 1) * len(episode) // (2 * count)])
    return torch.stack(states)


def gains(values: Tensor, uniform: Tensor, best: Tensor) -> Tensor:
    """Q in units that any two critics share: 0 is a uniform action, 1 the best that is known.

    The mean value of ``uniform`` [..., U] becomes 0, and ``best`` [...] becomes 1: [..., M] ->
    [..., M]. Adding to a critic, or scaling it, changes nothing. All gains are 0 where nothing is
    better than uniform actions are in the mean.
    """
    base = uniform.mean(dim=-1, keepdim=True)
    room = best.unsqueeze(-1) - base
    return torch.where(room > 0, (values - base) / room, 0.0)


def pulled_inward(actions: Tensor, gradient: Tensor) -> Tensor:
    """Which entries of actions lie on a bound although Q rises inward from there.

    A step of the sampler that goes too far leaves such entries. Where the bound is the best place,
    Q rises outward.
    """
    return (actions.abs() >= 1.0) & (gradient * actions.sign() < 0)


def look(
    trained: Sequence[Trained], trainers: tuple[str, str], seeds: Sequence[int]
) -> dict[Run, Actions]:
    """The actions of both trainers' runs of these seeds, at the states of ``pick_states``.

    Every seed of a job is one of the other trainer's, too.
    """
    visited = {
        (job.trainer, seed): job.visited[row]
        for job in trained
        for row, seed in enumerate(job.seeds)
        if seed in seeds
    }
    states = pick_states(visited, trainers, EACH)
    samples: dict[Run, Tensor] = {}
    for job in trained:
        drawn = _sample(job, states)
        samples |= {(job.trainer, seed): drawn[row] for row, seed in enumerate(job.seeds)}
    gain: dict[tuple[str, str, int], Tensor] = {}
    pulled: dict[Run, Tensor] = {}
    for job in trained:
        policies = {t: torch.stack([samples[t, seed] for seed in job.seeds]) for t in trainers}
        found = _gains(job, states, policies)
        own = policies[job.trainer]
        inward = pulled_inward(own, _ask(job.agent.action_gradient, job, states, own))
        for row, seed in enumerate(job.seeds):
            pulled[job.trainer, seed] = inward[row]
            gain |= {(job.trainer, trainer, seed): found[trainer][row] for trainer in trainers}
    first, second = trainers
    return {
        (own, seed): Actions(
            samples[own, seed], gain[own, own, seed], gain[other, own, seed], pulled[own, seed]
        )
        for own, other in ((first, second), (second, first))
        for seed in seeds
    }


def _sample(job: Trained, states: Tensor) -> Tensor:
    """Samples of a job's policies at states [N, obs]: [S, N, SAMPLES, act]."""
    streams = SeedStreams(job.seeds, f"action map/{job.trainer}", job.device)
    everywhere = states.to(job.device).expand(len(job.seeds), -1, -1)
    return job.agent.sample_policy(everywhere, SAMPLES, streams).cpu()


def _gains(job: Trained, states: Tensor, policies: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gains of both trainers' actions [S, N, M, act] by a job's critics: [S, N, M]."""
    seeds, count, _, size = policies[job.trainer].shape
    stream = SeedStreams([0], "uniform actions", torch.device("cpu"))
    anything = stream.uniform(count, UNIFORM, size, low=-1.0).expand(seeds, -1, -1, -1)
    uniform, *values = (
        _ask(job.agent.action_value, job, states, actions)
        for actions in (anything, *policies.values())
    )
    best = torch.cat([uniform, *values], dim=-1).amax(dim=-1)
    return {t: gains(value, uniform, best) for t, value in zip(policies, values, strict=True)}


def _ask(
    critic: Callable[[Tensor, Tensor], Tensor], job: Trained, states: Tensor, actions: Tensor
) -> Tensor:
    """What a job's critics say to actions [S, N, M, act] at states [N, obs], state by state."""
    seeds, _, count, _ = actions.shape
    answers = []
    for state, tried in zip(states, actions.unbind(dim=1), strict=True):
        everywhere = state.to(job.device).expand(seeds, count, -1)
        answers.append(critic(everywhere, tried.to(job.device)).detach().cpu())
    return torch.stack(answers, dim=1)


def measure(found: Mapping[Run, Actions]) -> pd.DataFrame:
    """A row for each run and state. Columns: agent (the trainer), seed, state, the MEASURES."""
    rows = []
    for (trainer, seed), actions in found.items():
        for state, samples in enumerate(actions.samples):
            row = {"agent": trainer, "seed": seed, "state": state}
            rows.append(row | _measure(actions, state, samples[None, None]))
    return pd.DataFrame(rows)


def _measure(actions: Actions, state: int, samples: Tensor) -> dict[str, float]:
    """The MEASURES of one run at one state; ``samples`` are [1, 1, M, act]."""
    gain = actions.gain[state]
    members = mode_members(samples)[0, 0].to(gain.dtype)
    size = members.sum(dim=0)
    is_mode = size >= SMALLEST_MODE * len(members)
    height = (members * gain.unsqueeze(1)).sum(dim=0) / size.clamp(min=1)
    return {
        MODES: float((is_mode & (height >= HIGH)).sum()),
        ENTROPY: float(entropy(samples)),
        GAIN: float(gain.mean()),
        ALL_MODES: float(is_mode.sum()),
        HELD: float(size[is_mode].sum()) / len(members),
        AT_BOUND: float(clipped_share(samples)),
        PULLED: float(actions.pulled[state].float().mean()),
        OTHER_GAIN: float(actions.other_gain[state].mean()),
    }
