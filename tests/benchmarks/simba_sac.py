"""SimBa's SAC baseline (Lee et al. 2024), for the question why ours lies below it on two tasks.

    python -m qsm_bench run --tasks cheetah-run --steps 50000 --warmup-steps 5000 \
        --action-repeat 2 --updates-per-step 2 --eval-every 25000 --seeds 5 --seeds-per-job 1 \
        --agents "tests.benchmarks.simba_sac:SimbaSAC[evaluation=mean,temperature_loss=tau]" \
        --compile on

trains it as github.com/SonyResearch/simba does (configs/agent/sac.yaml, configs/base.yaml). With
``--agents "sac[evaluation=mean]"`` ours is trained in the same way. These are the differences:

- the log deviation is -4 + 6 tanh(x), which begins near -4: a deviation of 0.02, where ours is 1;
- weights begin orthogonal, times sqrt(2) before a rectifier, and biases at zero;
- L_tau is in tau.

Its order of updates within a step, the actor before the critic, is not copied.
"""

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.common.networks import MLP
from agents.protocol import NamedSettings
from agents.sac import SAC, SACConfig

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


class SimbaSAC(SAC):
    """SAC with a policy that begins nearly deterministic."""

    name = "simba_sac"
    promises_pure_update = True
    presets: ClassVar[NamedSettings] = {}

    def __init__(
        self,
        config: SACConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        begin_orthogonal(self.critic.mlp, draws)
        begin_orthogonal(self.actor, draws)
        self.target_critic.load_state_dict(copy.deepcopy(self.critic.state_dict()))

    def policy(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample a = tanh(u), u Gaussian, with its log-density: [S, B, act] and [S, B]."""
        mean, x = self.actor(observation).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) / 2 * (1 + x.tanh())
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - functional.softplus(-2 * u))
        return u.tanh(), (log_normal - log_slope).sum(dim=-1)


@torch.no_grad()
def begin_orthogonal(network: MLP, draws: Sequence[torch.Generator]) -> None:
    """Draw the weights of each member anew, from its seed's generator."""
    weights, biases = list(network.parameters())[::2], list(network.parameters())[1::2]
    for weight in weights:
        gain = 1.0 if weight is weights[-1] else math.sqrt(2)
        for member in range(len(weight)):
            nn.init.orthogonal_(weight[member], gain, generator=draws[member % len(draws)])
    for bias in biases:
        bias.zero_()
