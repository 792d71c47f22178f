"""The actions that a noised action may come from: draws of a^0 given a^t.

    a^0_k = (a^t + sqrt(1 - abar_t) e_k) / sqrt(abar_t),   e_k ~ N(0, I)

Without a box that is the law of a^0 given a^t if all actions were equally likely. The action box
can be kept in two ways. ``truncated`` draws e_k from the normal law restricted to those whose a^0_k
lies in the box: the law of a^0 given a^t for uniform actions in the box. ``clipped`` clips a^0_k
and leaves e_k as it is, which puts mass on the bounds: the weights and the noise then belong to
different actions, so what is estimated from them is another target (Dong et al. 2025, MaxEntDP,
has the first; Ma et al. 2025, SDAC, the second).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from agents.common.diffusion import Schedule

Proposal = Literal["truncated", "clipped"]
LEAST_SHARE = 1e-37
"""A normal variable is below its quantile of this share, -12.7, as good as never."""


class Draws(NamedTuple):
    """K draws of the action behind each of B noised actions, [S, K, B, act] each."""

    clean: Tensor
    """The actions a^0_k, in [-1, 1]."""
    noise: Tensor
    """The e_k that lead from a^t to them: minus the noise in a^t, if a^0_k is the action."""


def draw_clean(
    schedule: Schedule, noisy: Tensor, t: Tensor, uniform: Tensor, proposal: Proposal
) -> Draws:
    """Draw K actions a^0 for each noised action a^t [S, B, act] at its time t, [S, B] int64.

    ``uniform`` [S, K, B, act], in [0, 1), is all the randomness.
    """
    noisy = noisy.unsqueeze(1)
    signal, deviation = (share(t).unsqueeze(1) for share in (schedule.signal, schedule.noise_std))
    if proposal == "truncated":
        noise = truncated_normal(
            uniform, (-signal - noisy) / deviation, (signal - noisy) / deviation
        )
    else:
        noise = torch.special.ndtri(uniform.clamp(min=LEAST_SHARE))
    clean = (noisy + deviation * noise) / signal
    return Draws(clean.clamp(-1.0, 1.0), noise)


def truncated_normal(uniform: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map uniform numbers in [0, 1) to standard normal ones restricted to [low, high].

    The inverse of the distribution function, on that side of zero where its values are small and
    so have all their digits: an interval far in either tail is as exact as one in the middle.
    """
    right = low + high > 0
    least, most = torch.where(right, -high, low), torch.where(right, -low, high)
    below = _normal_cdf(least)
    share = below + uniform * (_normal_cdf(most) - below)
    drawn = torch.special.ndtri(share.clamp(min=LEAST_SHARE))
    drawn = torch.minimum(torch.maximum(drawn, least), most)
    return torch.where(right, -drawn, drawn)


def _normal_cdf(x: Tensor) -> Tensor:
    # torch.special.ndtr has lost all digits in float32 from -6 on.
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))
