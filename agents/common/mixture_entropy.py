"""The entropy of samples, by a mixture of Gaussians that is fitted to them.

With weights w_k and covariances C_k of the K components in A dimensions, the estimate is

    H = - sum_k w_k log w_k + sum_k w_k (A log(2 pi e) + log det C_k) / 2

in nats. It is the entropy of a sample together with the component it came from. So, of a mixture
that is known, H is at least the entropy, which it is where no components overlap, and at most
log K more, which it is where all components are the same.

The fit is expectation-maximization (Dempster, Laird, Rubin; 1977) with full covariances, of many
sets of samples at once. It draws no random numbers and makes the same number of rounds for every
set, so no set's estimate depends on another's. ``FLOOR`` is added to the variances, as usual, so
that samples which coincide have a finite entropy: -5.5 nats a dimension.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 1e-6
"""What is added to every variance."""
NEAREST_ROUNDS, EM_ROUNDS = 10, 30
"""Rounds of assigning samples to the nearest center, and of expectation-maximization after it."""


class Mixture(NamedTuple):
    """Mixtures of K Gaussians in A dimensions; ``...`` are the sets that they were fitted to."""

    weight: Tensor
    """The weights, [..., K], whose sum is 1."""
    mean: Tensor
    """The means, [..., K, A]."""
    covariance: Tensor
    """The covariances, [..., K, A, A]."""


def estimate_entropy(samples: Tensor, components: int = 3) -> Tensor:
    """Estimate the entropy in nats of each set of N samples: [..., N, A] -> [...]."""
    mixture = fit_mixture(samples.double(), components)
    return joint_entropy(mixture).to(samples.dtype)


def joint_entropy(mixture: Mixture) -> Tensor:
    """Return the entropy H of a sample together with its component, [...]."""
    size = mixture.mean.shape[-1]
    root = torch.linalg.cholesky_ex(mixture.covariance).L
    of_components = 0.5 * size * math.log(2 * math.pi * math.e) + _half_log_determinant(root)
    out: Tensor = (torch.special.entr(mixture.weight) + mixture.weight * of_components).sum(dim=-1)
    return out


def fit_mixture(samples: Tensor, components: int) -> Mixture:
    """Fit a mixture of K Gaussians to each set of N samples, [..., N, A]."""
    samples = samples.mT.contiguous()
    mixture = maximize(samples, nearest_center(samples, components))
    for _ in range(EM_ROUNDS):
        mixture = maximize(samples, expect(samples, mixture))
    return mixture


def nearest_center(samples: Tensor, components: int) -> Tensor:
    """Divide each set in K parts, by the nearest of K centers: [..., A, N] -> [..., K, N].

    The result is 1 for the part that a sample belongs to, and 0 for the others. The centers start
    as samples far apart, the first far from the mean, and move to the means of their parts.
    """
    centers = samples.mean(dim=-1).unsqueeze(-2)
    for _ in range(components):
        distance = _apart(samples, centers).square().sum(dim=-2).amin(dim=-2)
        farthest = distance.argmax(dim=-1, keepdim=True).unsqueeze(-1)
        centers = torch.cat([centers, samples.mT.take_along_dim(farthest, dim=-2)], dim=-2)
    centers = centers[..., 1:, :]
    for _ in range(NEAREST_ROUNDS):
        nearest = _apart(samples, centers).square().sum(dim=-2).argmin(dim=-2)
        belongs = functional.one_hot(nearest, components).mT.to(samples.dtype)
        moved = (belongs @ samples.mT) / _count(belongs)
        # A center without samples stays.
        centers = torch.where(belongs.any(dim=-1, keepdim=True), moved, centers)
    return belongs


def expect(samples: Tensor, mixture: Mixture) -> Tensor:
    """Return each component's probability to have drawn a sample: [..., A, N] -> [..., K, N]."""
    root = torch.linalg.cholesky_ex(mixture.covariance).L
    inverse = torch.linalg.solve_triangular(root, _identity(samples), upper=False)
    square = (inverse @ _apart(samples, mixture.mean)).square().sum(dim=-2)
    scale = mixture.weight.log() - _half_log_determinant(root)
    share: Tensor = (scale.unsqueeze(-1) - 0.5 * square).softmax(dim=-2)
    return share


def maximize(samples: Tensor, share: Tensor) -> Mixture:
    """Return the likeliest mixture if its components have these shares in the samples.

    ``samples`` are [..., A, N] and the shares [..., K, N].
    """
    count = _count(share)
    mean = (share @ samples.mT) / count
    apart = _apart(samples, mean)
    covariance = (share.unsqueeze(-2) * apart) @ apart.mT / count.unsqueeze(-1)
    weight = count.squeeze(-1) / count.sum(dim=-2)
    return Mixture(weight, mean, covariance + FLOOR * _identity(samples))


def _count(share: Tensor) -> Tensor:
    """Return how many samples each component has, [..., K, 1], never none."""
    return share.sum(dim=-1, keepdim=True) + 1e-12


def _apart(samples: Tensor, centers: Tensor) -> Tensor:
    """Return samples less centers: [..., A, N] and [..., K, A] -> [..., K, A, N]."""
    return samples.unsqueeze(-3) - centers.unsqueeze(-1)


def _identity(samples: Tensor) -> Tensor:
    return torch.eye(samples.shape[-2], dtype=samples.dtype, device=samples.device)


def _half_log_determinant(root: Tensor) -> Tensor:
    """Return log det C / 2 of C = L L^T, given L: [..., A, A] -> [...]."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
