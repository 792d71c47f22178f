"""Twin delayed DDPG (Fujimoto et al. 2018, arXiv 1802.09477).

a'  = clip( pibar(s') + clip(0.2 z, -0.5, 0.5), -1, 1 )
y   = R_n + g^n m min_i Qbar_i(s', a'),   L_pi = -mean Q_1(s, pi(s)) every second update

Where the paper, the baseline in the code of Q-score matching's authors
(github.com/Alescontrela/score_matching_rl) and this differ, the default and what gives the other:

    actor's critic      the first as in the paper; the code: actor_critic=mean
    target critics      move with the actor as in the paper; the code, at every update:
                        delayed_targets=actor
    next action         clipped to the box as in the paper; the code: clip_next_action=false
    initial weights     uniform, torch's own; the code: initialization=xavier

The preset td3_reference has all of the code's.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from agents.common.learner import Count, TwinCriticLearner, critic_loss
from agents.common.networks import MLP
from agents.common.optimizer import Adam, polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import REFERENCE, AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class TD3Config(AgentConfig):
    """Settings of twin delayed DDPG."""

    exploration_noise: Annotated[
        float, Field(ge=0, description="Standard deviation of the noise added while training.")
    ] = 0.1
    target_noise: Annotated[
        float, Field(ge=0, description="Standard deviation of the target policy's smoothing noise.")
    ] = 0.2
    target_noise_clip: Annotated[
        float, Field(ge=0, description="Largest smoothing noise in either direction.")
    ] = 0.5
    policy_delay: Annotated[
        int, Field(gt=0, description="Critic updates per update of the actor and of the targets.")
    ] = 2
    delayed_targets: Annotated[
        Literal["both", "actor"],
        Field(
            description="Target networks that move with the actor only: both, or the actor's, and "
            "the critics' move at every update."
        ),
    ] = "both"
    actor_critic: Annotated[
        Literal["first", "mean"],
        Field(description="Value the actor climbs: the first critic's, or the mean of both."),
    ] = "first"
    clip_next_action: Annotated[
        bool,
        Field(
            description="Clip the smoothed next action to the action box in the critic's target."
        ),
    ] = True

    @property
    def without_effect(self) -> Mapping[str, str]:
        unused = {"candidates_evaluate": "the policy has one action for each observation"}
        if self.policy_delay == 1:
            unused["delayed_targets"] = "it needs policy_delay of 2 or more"
        if self.target_noise == 0:
            smoothing = ("target_noise_clip", "clip_next_action")
            unused |= dict.fromkeys(smoothing, "it needs target_noise above 0")
        return unused


class TD3(TwinCriticLearner[TD3Config]):
    """Twin delayed DDPG."""

    name = "td3"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = TD3Config
    presets: ClassVar[NamedSettings] = {
        "td3_reference": {
            **REFERENCE,
            "hidden_sizes": (256, 256),
            "exploration_noise": 0.1,
            "target_noise": 0.2,
            "target_noise_clip": 0.5,
            "policy_delay": 2,
            "delayed_targets": "actor",
            "actor_critic": "mean",
            "clip_next_action": False,
        },
    }
    parts: tuple[str, ...] = (
        *TwinCriticLearner.parts,
        "actor",
        "target_actor",
        "actor_optimizer",
        "updates",
    )

    def __init__(
        self,
        config: TD3Config,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        self.actor = MLP(
            (observation_size, *config.hidden_sizes, action_size),
            self.stream("actor weights"),
            config.networks,
        )
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.actor_optimizer = Adam(self.actor.parameters(), config.actor_step_size)
        self.updates = Count()

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Return the policy's action, with noise while training: [S, N, obs] -> [S, N, act]."""
        action: Tensor = self.actor(observation).tanh()
        if explore:
            noise = self.explore_stream.normal(*action.shape[1:])
            action = (action + self.config.exploration_noise * noise).clamp(-1.0, 1.0)
        return action

    @torch.no_grad()
    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Return the policy's one action at each state: [S, N, obs] -> [S, N, 1, act]."""
        action: Tensor = self.actor(observation).tanh()
        return action.unsqueeze(2)

    def draw_inputs(self, batch_size: int) -> tuple[Tensor, bool]:
        """Draw the noise of the next actions, and count: every ``policy_delay``-th moves all."""
        self.updates.value += 1
        noise = self.update_stream.normal(batch_size, self.action_size)
        return noise, self.updates.value % self.config.policy_delay == 0

    def pure_update(self, batch: Batch, noise: Tensor, moves_actor: bool) -> dict[str, Tensor]:
        """Make one critic update and, if ``moves_actor``, one of actor and targets, too.

        ``noise`` [S, B, act] is that of the next actions.
        """
        limit = self.config.target_noise_clip
        with torch.no_grad():
            smoothing = (self.config.target_noise * noise).clamp(-limit, limit)
            next_action = self.target_actor(batch.next_observation).tanh() + smoothing
            if self.config.clip_next_action:
                next_action = next_action.clamp(-1.0, 1.0)
            next_q = self.target_critic(batch.next_observation, next_action).amin(dim=0)
        q = self.critic(batch.observation, batch.action)
        loss = critic_loss(q, batch, next_q)
        self.critic_optimizer.descend(loss)

        metrics = {"critic_loss": loss.detach(), "q": q.detach().mean(dim=(0, 2))}
        if moves_actor:
            action = self.actor(batch.observation).tanh()
            actor_loss = -self.climbed_value(batch.observation, action).mean(dim=-1)
            metrics["actor_gradient_norm"] = self.actor_optimizer.minimize(actor_loss)
            metrics["actor_loss"] = actor_loss.detach()
            polyak_update(self.target_actor, self.actor, self.config.polyak)
        if moves_actor or self.config.delayed_targets == "actor":
            polyak_update(self.target_critic, self.critic, self.config.polyak)
        return metrics

    def climbed_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return what the actor climbs: [S, B, obs] and [S, B, act] -> [S, B]."""
        twins = 1 if self.config.actor_critic == "first" else None
        return self.critic.at_observation(observation, twins)(action).mean(dim=0)

    @classmethod
    def effective_temperature(cls, config: TD3Config, metrics: Mapping[str, float]) -> float | None:
        """Return 0: the actor climbs Q."""
        return 0.0
