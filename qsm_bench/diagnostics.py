"""What can be seen of a policy and its critic as they learn, measured alike for all agents.

An agent is measured by what it shows: see ``ShowsActionValue``, ``ShowsPolicy`` and ``ShowsScore``
in ``agents.protocol``. All measures are taken at the same states at every evaluation. Their random
numbers are the harness's own and depend on seed and step alone, so looking changes nothing that is
learned.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.common.streams import SeedStreams
from qsm_bench.contract import Checked
from qsm_bench.replay import ReplayBuffer

STATES = 32
"""States of the warm-up, the same ever after, at which an agent is measured."""
SLICED_STATES = 4
"""How many of them the critic is drawn at along an action axis."""
SAMPLES = 64
"""Sampled actions of each state."""
NEIGHBOR = 3
"""Which nearest neighbor the entropy estimate measures the distance to."""
RESOLUTION = 1e-3
"""Distances below this count as this: samples clipped onto a bound coincide exactly."""
BANDWIDTH = 0.2
"""Width of the kernels whose density's modes are counted, in roots of the action dimensions."""
SMALLEST_MODE = 0.05
"""A mode holds at least this share of the samples."""
SHIFTS = 30
"""Steps of the mean shift that finds the modes."""
SLICE_CELLS = 40
"""Cells that an action axis is divided into."""

Row = dict[str, Any]


def spread_states(replay: ReplayBuffer) -> Tensor:
    """States that lie evenly spread over those in the buffer, [S, STATES, obs]."""
    first = replay.added - replay.size
    numbers = np.linspace(first, replay.added - 1, STATES).astype(int).tolist()
    return torch.stack([replay.record(number)[0] for number in numbers], dim=1)


def measure(
    agent: Checked, states: Tensor, seeds: Sequence[int], step: int, critic_bias: NDArray[Any]
) -> list[Row]:
    """Rows of diagnostics.csv, one a seed, of an agent at the states [S, N, obs].

    There are none of an agent that shows nothing. ``critic_bias`` [S] is that of the evaluation.
    """
    streams = SeedStreams(seeds, f"diagnostics/{step}", states.device)
    measures: dict[str, list[Any]] = {}
    samples = agent.sample_policy(states, SAMPLES, streams)
    if samples is not None:
        action = samples.flatten(1, 2)
        near = agent.score_and_gradient(
            states.repeat_interleave(samples.shape[2], dim=1), action, streams
        )
        if near is not None:
            measures["score_gradient_cosine"] = cosine(*near).tolist()
        measures["clipped_share"] = clipped_share(samples).tolist()
        if samples.shape[2] > 1:  # a deterministic policy has no density
            measures["action_entropy"] = entropy(samples).tolist()
            measures["action_modes"] = modes(samples).tolist()
    if agent.shows_action_value:
        measures["critic_bias"] = ["" if math.isnan(bias) else bias for bias in critic_bias]
    return [
        {"seed": seed, "step": step, **{name: values[row] for name, values in measures.items()}}
        for row, seed in enumerate(seeds)
        if measures
    ]


def slice_critic(agent: Checked, states: Tensor, seeds: Sequence[int], step: int) -> list[Row]:
    """Rows of slices.csv: the critic along the first action dimension, and the policy there.

    The other dimensions are at the samples' mean. There are no rows of an agent that does not show
    both its critic and its policy.
    """
    states = states[:, :SLICED_STATES]
    streams = SeedStreams(seeds, f"slices/{step}", states.device)
    samples = agent.sample_policy(states, SAMPLES, streams)
    if samples is None:
        return []
    actions, centers = slice_actions(samples)
    value = agent.action_value(states.repeat_interleave(SLICE_CELLS, dim=1), actions.flatten(1, 2))
    if value is None:
        return []
    value, share = value.view(actions.shape[:3]), slice_shares(samples)
    return [
        {
            "seed": seed,
            "step": step,
            "state": state,
            "action": round(action, 4),
            "q": float(value[row, state, cell]),
            "share": float(share[row, state, cell]),
        }
        for row, seed in enumerate(seeds)
        for state in range(SLICED_STATES)
        for cell, action in enumerate(centers.tolist())
    ]


def cosine(score: Tensor, gradient: Tensor) -> Tensor:
    """Mean cosine of the angle between two vector fields, [S, B, act] each -> [S]."""
    return torch.nn.functional.cosine_similarity(score, gradient, dim=-1).mean(dim=-1)


def clipped_share(samples: Tensor) -> Tensor:
    """Share of the entries of actions [S, N, M, act] that lie on a bound of [-1, 1]: [S]."""
    return (samples.abs() >= 1.0).float().mean(dim=(1, 2, 3))


def entropy(samples: Tensor) -> Tensor:
    """Differential entropy in nats of M samples a state, averaged: [S, N, M, act] -> [S].

    The nearest-neighbor estimate of Kozachenko and Leonenko (1987) with k = NEIGHBOR. Mass on a
    bound has no density: RESOLUTION keeps the estimate finite there. Where samples crowd near a
    bound it is too high, for a squashed normal of deviation 1 by 0.3 nats a dimension. So compare
    agents by it, and do not take it for the entropy in SAC's loss.
    """
    *_, count, size = samples.shape
    distance = torch.cdist(samples, samples, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.kthvalue(NEIGHBOR + 1, dim=-1).values.clamp(min=RESOLUTION)
    log_ball = size / 2 * math.log(math.pi) - math.lgamma(size / 2 + 1)
    digamma = torch.tensor([float(count), float(NEIGHBOR)]).digamma()
    return (
        float(digamma[0] - digamma[1]) + log_ball + size * nearest.log().mean(dim=-1).mean(dim=-1)
    )


def modes(samples: Tensor) -> Tensor:
    """Number of modes of the samples' density, averaged over states: [S, N, M, act] -> [S]."""
    members = mode_members(samples).sum(dim=2)
    return (members >= SMALLEST_MODE * samples.shape[2]).sum(dim=-1).float().mean(dim=-1)


def mode_members(samples: Tensor) -> Tensor:
    """Which samples belong to which mode of their density: [S, N, M, act] -> [S, N, M, M], 0 or 1.

    Each sample climbs a Gaussian kernel density by mean shift (Comaniciu and Meer 2002); samples
    that arrive at one place belong to one mode. A row has a 1 at its mode, which is named by the
    first sample that arrived there.
    """
    count, size = samples.shape[2:]
    width = BANDWIDTH * math.sqrt(size)
    place = samples
    for _ in range(SHIFTS):
        weight = torch.softmax(-_squared_distance(place, samples) / (2 * width**2), dim=-1)
        place = weight @ samples
    together = _squared_distance(place, place) < width**2
    mode = together.float().argmax(dim=-1)
    return torch.nn.functional.one_hot(mode, count)


def slice_actions(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Actions [S, N, C, act] along the first dimension, and the cells' centers [C]."""
    edges = torch.linspace(-1.0, 1.0, SLICE_CELLS + 1, device=samples.device)
    centers = (edges[1:] + edges[:-1]) / 2
    actions = samples.mean(dim=2, keepdim=True).repeat(1, 1, SLICE_CELLS, 1)
    actions[..., 0] = centers
    return actions, centers


def slice_shares(samples: Tensor) -> Tensor:
    """Share of the samples [S, N, M, act] in each cell of the first dimension, [S, N, C]."""
    cell = ((samples[..., 0] + 1) / 2 * SLICE_CELLS).long().clamp(0, SLICE_CELLS - 1)
    return torch.nn.functional.one_hot(cell, SLICE_CELLS).float().mean(dim=2)


def _squared_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(dim=-1)
