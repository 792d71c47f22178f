"""The sampler of Q-score matching with an exact score on a parabola: how far it overshoots.

Q(a) = -k (a - m)^2, so that a denoiser that has learned eq. 10 predicts eps = 2 alpha k (a - m).
The distance d from the maximum m then goes through affine steps: without the clip,

    d_{t-1} = f_t d_t + m (1 / sqrt(alpha_t) - 1) + [t > 1] sqrt(beta_t) z_t
    f_t     = (1 - 2 alpha k beta_t / sqrt(1 - abar_t)) / sqrt(alpha_t)

(alpha without an index is QSM's, alpha_t the schedule's), so a^0 is normal, with exact sums for its
mean and variance. The last step overshoots the maximum where f_1 < 0, and leaves a sample farther
from it than it was where f_1 < -1. k is half the curvature -Q''. "alpha k" stands for the product.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from agents.common.diffusion import Denoiser, DiffusionPolicy, Schedule
from envs import linear_quadratic as lq
from qsm_bench.statistics.selection import FloatArray


@dataclass(frozen=True)
class Steps:
    """The steps of the sampler, arrays over t = 1..T; each is the entry t - 1."""

    alpha: FloatArray
    share: FloatArray
    """What of the predicted noise a step subtracts: beta_t / sqrt(1 - abar_t)."""

    @classmethod
    def of(cls, steps: int) -> "Steps":
        """Those of T steps."""
        schedule = Schedule(steps, torch.device("cpu"))
        alpha = schedule.alpha.numpy().astype(float)[1:]
        return cls(alpha, (1 - alpha) / np.sqrt(1 - alpha.cumprod()))

    def factors(self, product: float) -> FloatArray:
        """f_t, where alpha k is ``product``."""
        factors: FloatArray = (1 - 2 * product * self.share) / np.sqrt(self.alpha)
        return factors

    @property
    def exact(self) -> float:
        """The alpha k at which the last step forgets where it came from: f_1 = 0.

        With a larger one it overshoots. There all samples are m / sqrt(alpha_1).
        """
        return float(1 / (2 * self.share[0]))

    @property
    def growing(self) -> float:
        """The alpha k from which the last step leads away from the maximum: f_1 = -1."""
        return float((1 + np.sqrt(self.alpha[0])) / (2 * self.share[0]))


def normal(product: float, maximum: float, steps: int) -> tuple[float, float]:
    """The mean and variance of a^0 if nothing is clipped, where alpha k is ``product``."""
    sampler = Steps.of(steps)
    # gain[t] is the factor between a change of a^t and that of a^0.
    gain = np.concatenate([[1.0], sampler.factors(product).cumprod()])
    drift = (1 / np.sqrt(sampler.alpha) - 1) @ gain[:-1]
    variance = gain[-1] ** 2 + (gain[1:-1] ** 2) @ (1 - sampler.alpha[1:])
    return float(maximum * (1 + drift - gain[-1])), float(variance)


@dataclass(frozen=True)
class ExactDenoiser:
    """The denoiser that QSM's loss asks for on the parabola, at every t."""

    product: float
    maximum: float

    def at_observation(self, observation: Tensor, copies: int = 1) -> "ExactDenoiser":
        return self

    def __call__(self, action: Tensor, t: int) -> Tensor:
        return 2 * self.product * (action - self.maximum)


def sample(product: float, maximum: float, steps: int, noise: Tensor) -> Tensor:
    """Run the policy's own sampler, clip included: noise [1, T, N, 1] -> actions [N]."""
    denoiser = cast(Denoiser, ExactDenoiser(product, maximum))
    policy = DiffusionPolicy(denoiser, Schedule(steps, torch.device("cpu")))
    return policy.sample(torch.zeros(1, 1, 1), noise).flatten()


def share_at_bounds(product: float, maximum: float, steps: int, samples: int = 4_000) -> float:
    """The share of the samples at a bound, with the clip; always of the same noise."""
    noise = torch.randn(1, steps, samples, 1, generator=torch.Generator().manual_seed(0))
    return float((sample(product, maximum, steps, noise).abs() >= 1.0).double().mean())


def linear_quadratic_k(discount: float, steps: int = 1_000) -> float:
    """k of the best controller's Q on the linear-quadratic task, where ``steps`` are left.

    A time limit is no end to the critic, so that its Q is that of very many steps. A discount g is
    no discount with sqrt(g) A and sqrt(g) B in the place of A and B.
    """
    a, b = np.sqrt(discount) * lq.A, np.sqrt(discount) * lq.B
    now = lq.TIME_STEP * lq.ACTION_COST
    cost = np.zeros((2, 2))
    for _ in range(steps - 1):
        gain = np.linalg.solve(now + b.T @ cost @ b, b.T @ cost @ a)
        cost = lq.TIME_STEP * lq.STATE_COST + gain.T @ now @ gain + _between(a - b @ gain, cost)
    return float((now + _between(b, cost)).item())


def _between(matrix: FloatArray, cost: FloatArray) -> FloatArray:
    out: FloatArray = matrix.T @ cost @ matrix
    return out
