"""What can be seen of a diffusion policy and its critic: measures that make trainers comparable.

All are taken on the same states at every occasion, from many samples of the policy at each state,
and from a random stream of their own, so that looking never changes what is learned.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

SAMPLES = 64
"""Sampled actions of each state."""
NEIGHBOR = 3
"""Which nearest neighbor the entropy estimate measures the distance to."""
RESOLUTION = 1e-3
"""Distances below this count as this: samples clipped onto a bound coincide exactly."""
BANDWIDTH = 0.2
"""Of the density whose modes are counted, times the root of the number of action dimensions."""
SMALLEST_MODE = 0.05
"""A mode holds at least this share of the samples."""
SHIFTS = 30
SLICE_CELLS = 40


@dataclass(frozen=True)
class ActionSlices:
    """The critic along the first action dimension, beside the policy's samples there."""

    action: Tensor
    """[C]: centers of C equal cells of [-1, 1]."""
    value: Tensor
    """[S, N, C]: mean Q of the twin critics; the other dimensions are at the samples' mean."""
    share: Tensor
    """[S, N, C]: share of the samples in each cell."""


@runtime_checkable
class Diagnosed(Protocol):
    """An agent that shows more of itself than the protocol asks; the harness logs what it shows."""

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Mean Q of the twin critics: [S, N, obs] and [S, N, act] -> [S, N]."""
        ...

    def diagnose(self, observation: Tensor, occasion: int) -> dict[str, Tensor]:
        """Measures of shape [S] at the states [S, N, obs]; ``occasion`` decides the randomness."""
        ...

    def action_slices(self, observation: Tensor, occasion: int) -> ActionSlices:
        """The critic and the policy's samples along an action axis at the states [S, N, obs]."""
        ...


def cosine(score: Tensor, gradient: Tensor) -> Tensor:
    """Mean cosine of the angle between two vector fields, [S, B, act] each -> [S]."""
    return torch.nn.functional.cosine_similarity(score, gradient, dim=-1).mean(dim=-1)


def clipped_share(samples: Tensor) -> Tensor:
    """Share of the entries of actions [S, N, M, act] that lie on a bound of [-1, 1]: [S]."""
    return (samples.abs() >= 1.0).float().mean(dim=(1, 2, 3))


def entropy(samples: Tensor) -> Tensor:
    """Differential entropy in nats of M samples a state, averaged: [S, N, M, act] -> [S].

    The nearest-neighbor estimate of Kozachenko and Leonenko (1987) with k = NEIGHBOR. Mass on a
    bound has no density: RESOLUTION keeps the estimate finite there, so compare, do not add up.
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
    """Number of modes of the samples' density, averaged over states: [S, N, M, act] -> [S].

    Each sample climbs a Gaussian kernel density by mean shift (Comaniciu and Meer 2002); samples
    that arrive at one place belong to one mode.
    """
    count, size = samples.shape[2:]
    width = BANDWIDTH * math.sqrt(size)
    place = samples
    for _ in range(SHIFTS):
        weight = torch.softmax(-_squared_distance(place, samples) / (2 * width**2), dim=-1)
        place = weight @ samples
    together = _squared_distance(place, place) < width**2
    mode = together.float().argmax(dim=-1)  # of each sample: the first that arrived there
    members = torch.nn.functional.one_hot(mode, count).sum(dim=2)
    return (members >= SMALLEST_MODE * count).sum(dim=-1).float().mean(dim=-1)


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
