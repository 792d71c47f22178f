"""Critics that predict a Gaussian law of the return, and the loss of DSAC-T (Duan et al. 2023).

Critic i predicts the mean mu_i and the standard deviation sd_i. With the target y, a return y_z
drawn from its law, and the running mean s_i of sd_i over batches,

    d_i = clip( y_z - mu_i, -3 s_i, 3 s_i )
    L_i = - (s_i^2 + c) mean[ mu_i sg(y - mu_i) / (sg(sd_i)^2 + c)
                              + sd_i sg(d_i^2 - sd_i^2) / (sg(sd_i)^3 + c) ]

where sg holds its argument constant and c = 0.1. These are the gradients of the Gaussian's
log-likelihood but for three changes (DSAC-T; arXiv 2310.05858): the mean's target has no noise of
y_z, distances are clipped, and s_i^2 makes up for the division by variances. So mu_i tends to the
mean of y, and sd_i to the root of the mean of d_i^2.

``unit`` u is a reward that counts as 1 in it. The networks' outputs are in units of u, and c is
0.1 u^2 beside squares and 0.1 u^3 beside cubes. So a critic of rewards r in the unit u is u times
that of r / u in the unit 1, throughout training. What is returned is in the task's own reward.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from agents.common.networks import TwinCritic
from agents.common.streams import SeedStreams
from agents.protocol import PLAIN, NetworkOptions

FLOOR = 0.1
"""c, what keeps divisors from 0."""
CLIP = 3.0
"""The farthest draw from a Gaussian that counts, in its standard deviations."""


class GaussianTwinCritic(TwinCritic):
    """Two networks per seed of a Gaussian law of the return; called, it gives the means alone.

    ([S, B, obs], [S, B, act]) -> [2, S, B].
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        streams: SeedStreams,
        options: NetworkOptions = PLAIN,
        *,
        unit: float = 1.0,
    ) -> None:
        super().__init__(observation_size, action_size, hidden_sizes, streams, options, outputs=2)
        self.unit = unit

    def value(self, outputs: Tensor) -> Tensor:
        """Return the mean, the first of a network's two outputs: [..., 2] -> [...]."""
        return self.unit * outputs[..., 0]

    def distribution(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and standard deviations of the return, [2, S, B] each."""
        mean, deviation = self.all_outputs(observation, action).unbind(dim=-1)
        return self.unit * mean, self.unit * functional.softplus(deviation)


def less_favorable(mean: Tensor, deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and draw of the one of two Gaussians that has the smaller mean, [S, B] each.

    ``mean`` and ``deviation`` are [2, S, B] and ``noise`` [S, B]; it is clipped.
    """
    first = mean[0] < mean[1]
    smaller = torch.where(first, mean[0], mean[1])
    its_deviation = torch.where(first, deviation[0], deviation[1])
    return smaller, smaller + its_deviation * noise.clamp(-CLIP, CLIP)


def gaussian_critic_loss(
    mean: Tensor,
    deviation: Tensor,
    target: Tensor,
    drawn_target: Tensor,
    spread: Tensor,
    unit: float = 1.0,
) -> Tensor:
    """Return the sum of both critics' losses L_i, [S].

    ``mean`` and ``deviation`` are [2, S, B], what the critics predict; ``target`` is y and
    ``drawn_target`` y_z, [S, B]; ``spread`` is s_i, [2, S, 1]. The last three carry no gradient.
    """
    held, scale = mean.detach(), deviation.detach()
    of_square, of_cube = FLOOR * unit**2, FLOOR * unit**3
    distance = torch.clamp(drawn_target - held, -CLIP * spread, CLIP * spread)
    for_mean = (target - held) / (scale.square() + of_square)
    for_deviation = (distance.square() - scale.square()) / (scale**3 + of_cube)
    gained = (mean * for_mean + deviation * for_deviation).mean(dim=-1, keepdim=True)
    return -((spread.square() + of_square) * gained).sum(dim=(0, 2))
