"""Diffusion-QL's actor (Wang, Hunt, Zhou; ICLR 2023; arXiv 2208.06193), online.

The critic's value is climbed by backpropagation through the whole sampler:

    L = -mean Q(s, a_theta(s, noise)) + w L_BC

where a_theta is the reparameterized sample after T denoiser calls and L_BC the denoising loss on
replayed actions (w = 0 online). The clip inside each reverse step stays, as in the sampler: its
gradient is zero outside the action box.

Where the paper, the code that Q-score matching's authors compared with
(github.com/Alescontrela/score_matching_rl) and this differ, the default and what gives the other:

    climbed value       the smaller of both critics as in the code; the paper's: climbed=random
    climbed critics     the online ones as in the paper; the code's target critics, moved just
                        before: climbed_critics=target
    cloning             none online, as in the code; the paper's, offline: cloning_weight=w
    next action         of the actor as in the code; of its average as in the paper:
                        ema_target=true
    hidden layers       256, 256; the code has hidden_sizes=[512,512]
    initial weights     uniform, torch's own; the code has initialization=xavier

The preset diffusion_ql_reference is the code's shipped configuration, every choice spelled out.
As in the code, the denoiser, its sampler and the order of an update are Q-score matching's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from agents.common.diffusion_agent import DIFFUSION_REFERENCE, DiffusionAgent, DiffusionConfig
from agents.protocol import AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class DiffusionQLConfig(DiffusionConfig):
    """Settings of Diffusion-QL."""

    climbed: Annotated[
        Literal["min", "random"],
        Field(
            description="Value the actor climbs. min: the smaller of the twin critics'. random: "
            "one of them, picked anew each update, divided by the mean |Q| of the other (the "
            "original)."
        ),
    ] = "min"
    climbed_critics: Annotated[
        Literal["online", "target"],
        Field(
            description="Critics the actor climbs: the online ones, or the target critics, which "
            "have moved just before."
        ),
    ] = "online"
    cloning_weight: Annotated[
        float, Field(ge=0, description="Weight w of the behavior-cloning loss.")
    ] = 0.0


class ActorNoise(NamedTuple):
    """The random numbers of one actor update."""

    chain: Tensor
    """The sampler's noise, [S, T, B, act]."""
    pick: Tensor
    """The critic that climbed=random climbs, 0 or 1: [S]."""
    t: Tensor
    """The diffusion times of the cloning loss, [S, B] int64 in 1..T."""
    cloning: Tensor
    """The cloning loss's noise, [S, B, act]."""


class DiffusionQL(DiffusionAgent[DiffusionQLConfig]):
    """Backpropagation of the critic's value through the sampler (Diffusion-QL's actor)."""

    name = "diffusion_ql"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DiffusionQLConfig
    presets: ClassVar[NamedSettings] = {
        "diffusion_ql_reference": {
            **DIFFUSION_REFERENCE,
            "climbed": "min",
            "climbed_critics": "target",
            "cloning_weight": 0.0,
        },
    }
    # With a step size as large as the critic's, the actor saturates at a bound, where no gradient
    # reaches it through the sampler, before the critic has learned anything.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"actor_learning_rate": 1e-4},
    }

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        stream, steps = self.update_stream, self.config.diffusion_steps
        return ActorNoise(
            chain=stream.normal(steps, batch_size, self.action_size),
            pick=stream.integers(high=2),
            t=1 + stream.integers(batch_size, high=steps),
            cloning=stream.normal(batch_size, self.action_size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        action = self.policy.sample(batch.observation, noise.chain)
        critic = self.critic if self.config.climbed_critics == "online" else self.target_critic
        q = critic.at_observation(batch.observation)(action)
        loss = -self.climbed_value(q, noise.pick).mean(dim=-1)
        if self.config.cloning_weight:
            loss = loss + self.config.cloning_weight * self.cloning_loss(batch, noise)
        return loss, {}

    def climbed_value(self, q: Tensor, pick: Tensor) -> Tensor:
        """Combine the twin critics' values to what the actor climbs: [2, S, B] -> [S, B]."""
        if self.config.climbed == "min":
            return q.amin(dim=0)
        picked, other = torch.where(pick.view(1, -1, 1) == 0, q, q.flip(0))
        scale: Tensor = picked / other.detach().abs().mean(dim=-1, keepdim=True).clamp(min=1e-8)
        return scale

    def cloning_loss(self, batch: Batch, noise: ActorNoise) -> Tensor:
        """Return the mean squared error of the noise predicted in noised replayed actions, [S]."""
        noisy_action = self.schedule.add_noise(batch.action, noise.t, noise.cloning)
        predicted: Tensor = self.denoiser(batch.observation, noisy_action, noise.t)
        return (predicted - noise.cloning).square().mean(dim=(1, 2))

    @classmethod
    def effective_temperature(
        cls, config: DiffusionQLConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0: the loss climbs Q. With cloning there is no temperature."""
        return None if config.cloning_weight else 0.0
