"""Diffusion policy mirror descent (Ma et al.; ICML 2025; arXiv 2502.00361): reweighted samples.

The denoiser imitates samples of a copy of itself, the better ones more. The copy is made anew at
every 1000th update:

    a_i = a sample of the copy + rho z_i,  i = 1..N;       q_i = the mean of both critics at a_i
    w_i = N softmax_i( q_i / lambda )
    L   = mean of w_i min( (eps - eps_theta(s, a_i^t, t))^2, 3 ) over i and the entries of a

At a fixed critic the policy that the loss asks for is pi exp(Q / lambda), up to a factor, where pi
is the copy's density widened by rho z: a step of mirror descent. lambda is learned, so that this
step has the length of KL = 2 nats,

    KL  = log N - entropy of w / N,        L_lambda = lambda (2 - KL)

which is dual ascent: lambda rises where KL is too large. For lambda -> infinity all w_i are 1, and
the policy imitates itself. Adam moves log lambda by about its step size an update, so from 1, where
it starts, to 0.05 are 10,000 updates at 0.0003.

Without rho, n copies ask for exp(n Q / lambda): the policy narrows without end, and there is no
temperature. On Q = -k (a - a*)^2 a copy of deviation s gets the precision
1 / s'^2 = 1 / (s^2 + rho^2) + 2 k / lambda. With k = 5, lambda = 1 and no rho, a normal policy of
deviation 0.5 has 0.267, 0.204 and 0.136 after 1, 2 and 5 copies; rho = 0.2 stops it at 0.215. With
the lambda that keeps KL at 2, what is left in the end depends on rho and on the number A of
actions alone: 0.016 with A = 1 and 0.11 with A = 6, if all actions matter alike.

N is 32 here, and 64 in the code; an update costs 16 of qsm's. KL cannot exceed log N, 3.5 nats and
4.2. At KL = 2, 32 samples weigh as much as N exp(-KL) = 4.3 equal ones, and 64 as 8.7. From
N(0, 0.5^2), with k = 5 and a* = 0.3, the estimated KL is 0.36, 1.33 and 2.45 at lambda = 1, 0.1 and
0.01, and with 64 samples 0.36, 1.33 and 2.48, where 0.36, 1.31 and 2.44 are exact; the refitted
policy's deviation is 0.270, 0.102 and 0.041, and with 64 samples 0.269, 0.100 and 0.034, where
0.267, 0.098 and 0.032 are exact.

Samples are not clipped to the box after rho z, so some of what is imitated lies outside, where the
critic was never taught. The limit of 3 leaves entries out whose error is larger; what the others
ask for is a mean between bounds, the same mean only where it is symmetric.

The code that this follows is flow-rl's (github.com/typoverflow/flow-rl). Where it and this differ,
the default and the preset:

                        here                        dpmd_reference
    samples N           32                          64
    diffusion           house's, T = 5              20 steps, cosine, a^0 clipped
    executed            one sample, noise 0.1       one sample, no noise added
    critic's target     one sample, noise 0.1       one sample, no noise added
    evaluated           one sample                  best of 10
    hidden layers       256, 256                    256, 256, 256
    step sizes          0.0003                      0.0003, actor 0.0001, constant

Its KL is 3 on Hopper and 1 on Ant: target_kl. Not to be had: continuous times, and critics of two
hidden layers beside a denoiser of three. Its copy is made after updates 1, 1001, 2001, ...

The paper's own code (github.com/mahaitongdae/diffusion_policy_online_rl) has another trainer of
this name. It keeps no copy and draws no samples: the critic target's next action, the best of 32
and noised, is imitated at the next state with the weight exp( clip(q - mean / deviation, -3, 3) /
alpha ) of running mean and deviation (without the brackets that would standardize q), and alpha
falls by sdac's open loop. So all states share one scale of Q there, and each has its own here. It
is not to be had.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.common.diffusion import DiffusionPolicy
from agents.common.diffusion_agent import DIFFUSION_REFERENCE, DiffusionAgent, DiffusionConfig
from agents.common.optimizer import Adam
from agents.protocol import AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class DPMDConfig(DiffusionConfig):
    """Settings of diffusion policy mirror descent."""

    samples: Annotated[
        int, Field(gt=1, description="Samples N of the copied policy that are reweighted.")
    ] = 32
    sample_noise: Annotated[
        float,
        Field(ge=0, description="Standard deviation rho of what widens the copied policy."),
    ] = 0.2
    copy_updates: Annotated[
        int, Field(gt=0, description="Updates from one copy of the policy to the next.")
    ] = 1000
    initial_temperature: Annotated[
        float, Field(gt=0, description="Temperature lambda at the start; learned from there.")
    ] = 1.0
    target_kl: Annotated[
        float,
        Field(
            gt=0,
            description="KL divergence of the reweighted policy from the copied one, in nats, that "
            "lambda is learned for; below log N.",
        ),
    ] = 2.0
    error_limit: Annotated[
        float | None,
        Field(gt=0, description="Squared error of an entry above which it teaches nothing."),
    ] = 3.0

    def __post_init__(self) -> None:
        """Raise ValueError for a divergence that N samples cannot have."""
        if self.target_kl >= math.log(self.samples):
            raise ValueError(f"target_kl must be below log(samples) = {math.log(self.samples):.3g}")


class ActorNoise(NamedTuple):
    """The random numbers of one actor update. Sample i of observation b is in row i B + b."""

    chain: Tensor
    """The sampler's noise of N samples a state, [S, T, N B, act]."""
    widening: Tensor
    """What is added to them, before it is scaled: [S, N B, act]."""
    t: Tensor
    """The diffusion times, [S, N B] int64 in 1..T."""
    noise: Tensor
    """What the samples are noised with, [S, N B, act]."""


class DPMD(DiffusionAgent[DPMDConfig]):
    """Mirror descent: imitation of a copied policy's samples, reweighted by exp(Q / lambda)."""

    name = "dpmd"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DPMDConfig
    presets: ClassVar[NamedSettings] = {
        "dpmd_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "actor_learning_rate": 1e-4,
            "diffusion_steps": 20,
            "schedule": "cosine",
            "sampler": "x0_clip",
            "variance": "beta",
            "exploration_noise": 0.0,
            "actor_decay_updates": 0,
            "candidates_evaluate": 10,
            "samples": 64,
            "sample_noise": 0.2,
            "copy_updates": 1000,
            "initial_temperature": 1.0,
            "target_kl": 2.0,
            "error_limit": 3.0,
        },
    }
    # Some 3,000 updates are made: 30 copies, and too few for lambda to fall from 1. Rewards differ
    # by about one along an action, so it starts at 0.1. 8 samples keep the regression short, and
    # can have a divergence of 2.08 nats at most. With T = 5 the sampler's last step goes to the
    # mean of what is noised by 0.44, between the modes.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"samples": 8, "target_kl": 1.0, "copy_updates": 100, "initial_temperature": 0.1},
        "bimodal-bandit": {"diffusion_steps": 20, "actor_learning_rate": 0.003},
    }
    parts: tuple[str, ...] = (
        *DiffusionAgent.parts,
        "copied_denoiser",
        "temperature",
        "temperature_optimizer",
    )

    def __init__(
        self,
        config: DPMDConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        self.copied_denoiser = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.copied_policy = DiffusionPolicy(self.copied_denoiser, self.schedule)
        start = torch.full((len(seeds), 1), math.log(config.initial_temperature), device=device)
        self.temperature = nn.ParameterDict({"log": start})
        self.temperature_optimizer = Adam(self.temperature.parameters(), config.learning_rate)

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        c, stream, size = self.config, self.update_stream, self.action_size
        rows = c.samples * batch_size
        return ActorNoise(
            chain=stream.normal(c.diffusion_steps, rows, size),
            widening=stream.normal(rows, size),
            t=1 + stream.integers(rows, high=c.diffusion_steps),
            noise=stream.normal(rows, size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        action, weight, divergence = self.weighted_samples(batch.observation, noise)
        noisy = self.schedule.add_noise(action, noise.t, noise.noise)
        denoise = self.denoiser.at_observation(batch.observation, self.config.samples)
        error = (denoise(noisy, noise.t) - noise.noise).square()
        if self.config.error_limit:
            error = error.clamp(max=self.config.error_limit)
        loss = (weight.flatten(1) * error.mean(dim=-1)).mean(dim=-1)
        temperature = self.temperature["log"].detach().exp().squeeze(-1)
        return loss, {"kl": divergence.mean(dim=-1), "temperature": temperature}

    @torch.no_grad()
    def weighted_samples(
        self, observation: Tensor, noise: ActorNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is imitated [S, N B, act], its weights [S, N, B] and KL [S, B]."""
        action = self.copied_policy.sample(observation, noise.chain)
        action = action + self.config.sample_noise * noise.widening
        value = self.action_value(observation.repeat(1, self.config.samples, 1), action)
        return action, *self.weights(value.unflatten(1, (self.config.samples, -1)))

    def weights(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of N samples of values [S, N, B], and their KL: [S, N, B], [S, B].

        The weights of a state sum to N. KL is that of the weights from equal ones, in nats.
        """
        temperature = self.temperature["log"].detach().exp().unsqueeze(-1)
        log_weight = (value / temperature).log_softmax(dim=1) + math.log(value.shape[1])
        weight = log_weight.exp()
        return weight, (weight * log_weight).mean(dim=1)

    def after_update(self, metrics: dict[str, Tensor]) -> None:
        """Move lambda by dual ascent, and copy the policy if it is time."""
        temperature = self.temperature["log"].exp().squeeze(-1)
        self.temperature_optimizer.descend(temperature * (self.config.target_kl - metrics["kl"]))
        self.copy_policy()

    @torch.no_grad()
    def copy_policy(self) -> None:
        """Copy the denoiser, at every ``copy_updates``-th update."""
        # The decision is a tensor, so that the update is one program.
        now = self.actor_optimizer.updates % self.config.copy_updates == 0
        copied: list[Tensor] = [*self.copied_denoiser.parameters()]
        pairs = zip(self.denoiser.parameters(), copied, strict=True)
        torch._foreach_copy_(copied, [torch.where(now, new, old) for new, old in pairs])

    @classmethod
    def effective_temperature(
        cls, config: DPMDConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0 without rho: copy by copy, exp(n Q / lambda). With it there is none."""
        return None if config.sample_noise else 0.0
