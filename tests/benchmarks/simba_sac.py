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

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.common.networks import MLP
from agents.protocol import NamedSettings
from agents.sac import SAC

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


class SimbaSAC(SAC):
    """SAC with a policy that begins nearly deterministic."""

    name = "simba_sac"
    promises_pure_update = True
    presets: ClassVar[NamedSettings] = {}

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        _, _, _, seeds, _ = given
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        begin_orthogonal(self.critic.mlp, draws)
        begin_orthogonal(self.actor, draws)
        self.target_critic.load_state_dict(self.critic.state_dict())

    def log_std(self, head: Tensor) -> Tensor:
        return LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) / 2 * (1 + head.tanh())


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
