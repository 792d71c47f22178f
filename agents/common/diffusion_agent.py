"""What the diffusion trainers share: policy, critic, acting, and the order of one update.

A trainer states its actor's loss. These methods are hooks, which it may state anew as well:

    make_critic             the twin critics
    critic_loss             the critic's loss
    next_action             the next action in the critic's target
    next_value              its value there
    differentiated_value    which of the critics' values grad_a Q is of
    best_action             which of several candidates is taken
    exploring_action        how a sample becomes the action that is taken
    actor_loss              the actor's loss
    after_update            what comes after an update, such as moving an average
    draw_inputs             which updates move the actor
    update                  work that is no part of a pure update
    pure_training_action    the action while training
    pure_evaluation_action  the action while being evaluated

Every random number of an update is drawn before it: ``draw_critic_noise`` and ``draw_actor_noise``
draw what the two losses are given, so a loss with more or other noise comes with its own.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from agents.common import learner
from agents.common.diffusion import (
    Denoiser,
    DiffusionPolicy,
    Draw,
    Sampler,
    Schedule,
    ScheduleKind,
    Variance,
    reparameterized,
)
from agents.common.learner import TwinCriticLearner
from agents.common.networks import TwinCritic
from agents.common.optimizer import Adam, polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import REFERENCE, AgentConfig, Batch


@dataclass(frozen=True)
class DiffusionConfig(AgentConfig):
    """The settings that every diffusion policy has."""

    diffusion_steps: Annotated[
        int, Field(gt=0, description="Denoising steps T of the policy (paper: section 5).")
    ] = 5
    exploration_noise: Annotated[
        float,
        Field(
            ge=0,
            description="Standard deviation of the noise added to a sampled action while training "
            "and in the critic's target.",
        ),
    ] = 0.1
    actor_decay_updates: Annotated[
        int,
        Field(
            ge=0,
            description="Updates over which the actor's step size falls to 0 along a half cosine; "
            "0: constant.",
        ),
    ] = 2_000_000
    schedule: Annotated[
        ScheduleKind,
        Field(
            description="Noise of the T steps. vp: variance preserving (QSM). cosine: abar_t along "
            "a squared cosine. linear: beta_t = 0.8 (0.0001 .. 0.999)."
        ),
    ] = "vp"
    sampler: Annotated[
        Sampler,
        Field(
            description="What a reverse step clips to the action box. eps_clip: its result. "
            "x0_clip: the action a^0 that it predicts."
        ),
    ] = "eps_clip"
    variance: Annotated[
        Variance,
        Field(
            description="Variance of a reverse step: beta_t, or that of the forward process given "
            "a^0, beta_t (1 - abar_{t-1}) / (1 - abar_t)."
        ),
    ] = "beta"
    ema_target: Annotated[
        bool,
        Field(
            description="Draw the critic target's next action from a Polyak average of the actor."
        ),
    ] = False
    ema_acts: Annotated[
        bool,
        Field(description="Act by that average, while training and while being evaluated."),
    ] = False
    candidates_target: Annotated[
        int,
        Field(gt=0, description="Samples of which the best is the critic target's next action."),
    ] = 1
    candidates_act: Annotated[
        int,
        Field(gt=0, description="Samples of which the best is executed while training."),
    ] = 1

    def make_schedule(self, device: torch.device) -> Schedule:
        """Return the noise schedule and reverse process that these settings ask for."""
        return Schedule(self.diffusion_steps, device, self.schedule, self.sampler, self.variance)


DIFFUSION_REFERENCE = {
    **REFERENCE,
    "hidden_sizes": (512, 512),
    "diffusion_steps": 5,
    "exploration_noise": 0.1,
    "actor_decay_updates": 2_000_000,
    "schedule": "vp",
    "sampler": "eps_clip",
    "variance": "beta",
    "ema_target": False,
    "ema_acts": False,
    "candidates_target": 1,
    "candidates_act": 1,
}
"""The settings that the diffusion trainers in the code of QSM's authors have in common."""


class ActionNoise(NamedTuple):
    """The random numbers of one action with exploration noise for each of B observations."""

    chain: Tensor
    """The sampler's noise, [S, T, K B, act] for K candidates."""
    exploration: Tensor
    """What is added to the chosen actions, before it is scaled: [S, B, act]."""


class Noise(NamedTuple):
    """All random numbers of one update."""

    critic: Any
    """What ``draw_critic_noise`` drew: a tensor or a tuple of tensors."""
    actor: Any
    """What ``draw_actor_noise`` drew: a tensor or a tuple of tensors."""


ConfigT = TypeVar("ConfigT", bound=DiffusionConfig)


class DiffusionAgent(TwinCriticLearner[ConfigT], ABC, Generic[ConfigT]):
    """Off-policy actor-critic with a diffusion policy."""

    parts: tuple[str, ...] = (
        *TwinCriticLearner.parts,
        "denoiser",
        "actor_optimizer",
        "sample_stream",
    )

    def __init__(
        self,
        config: ConfigT,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        self.schedule = config.make_schedule(device)
        self.denoiser = Denoiser(
            observation_size,
            action_size,
            config.hidden_sizes,
            config.diffusion_steps,
            self.stream("actor weights"),
            config.networks,
        )
        self.policy = DiffusionPolicy(self.denoiser, self.schedule)
        self.target_denoiser = self.denoiser
        if config.ema_target or config.ema_acts:
            self.target_denoiser = copy.deepcopy(self.denoiser).requires_grad_(False)
            self.parts = (*self.parts, "target_denoiser")
        average = DiffusionPolicy(self.target_denoiser, self.schedule)
        self.target_policy = average if config.ema_target else self.policy
        self.acting_policy = average if config.ema_acts else self.policy
        self.actor_optimizer = Adam(
            self.denoiser.parameters(), config.actor_step_size, config.actor_decay_updates
        )
        self.sample_stream = self.stream("sample")

    def draw_critic_noise(self, batch_size: int) -> Any:
        """Draw what ``critic_loss`` needs for a batch of that size, from ``update_stream``."""
        return self.draw_action_noise(batch_size, self.update_stream, self.config.candidates_target)

    @abstractmethod
    def draw_actor_noise(self, batch_size: int) -> Any:
        """Draw what ``actor_loss`` needs for a batch of that size, from ``update_stream``."""

    def critic_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [S] whose gradient moves the critic, and metrics of shape [S]."""
        with torch.no_grad():
            next_action = self.next_action(batch.next_observation, noise)
            next_value = self.next_value(batch.next_observation, next_action, noise)
        q = self.critic(batch.observation, batch.action)
        loss = learner.critic_loss(q, batch, next_value)
        return loss, {"q": q.detach().mean(dim=(0, 2))}

    def next_action(self, observation: Tensor, noise: Any) -> Tensor:
        """Return the next action in the critic's target: [S, B, obs] -> [S, B, act].

        Of several candidates it is the best by the target critics.
        """
        return self.exploring_action(
            self.target_policy, observation, noise, critic=self.target_critic
        )

    def next_value(self, observation: Tensor, action: Tensor, noise: Any) -> Tensor:
        """Return the value of the next action in the critic's target: [S, B, act] -> [S, B]."""
        value: Tensor = self.target_critic(observation, action).amin(dim=0)
        return value

    @abstractmethod
    def actor_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [S] whose gradient moves the denoiser, and metrics of shape [S]."""

    def after_update(self, metrics: dict[str, Tensor]) -> None:
        """Change what else changes at the end of an update, without drawing random numbers.

        ``metrics`` are those of ``actor_loss``.
        """

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Sample actions, with exploration noise while training; [S, N, obs] -> [S, N, act]."""
        count, config = observation.shape[1], self.config
        if explore:
            noise = self.draw_action_noise(count, self.explore_stream, config.candidates_act)
            return self.pure_training_action(observation, noise)
        chain = self.sample_stream.normal(
            config.diffusion_steps, config.candidates_evaluate * count, self.action_size
        )
        return self.pure_evaluation_action(observation, chain)

    def pure_training_action(self, observation: Tensor, noise: ActionNoise) -> Tensor:
        """Return the action to take while training, of its noise: [S, N, obs] -> [S, N, act]."""
        return self.exploring_action(self.acting_policy, observation, noise)

    def pure_evaluation_action(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Return the action to take while being evaluated: [S, N, obs] -> [S, N, act].

        ``noise`` is the sampler's, [S, T, K N, act] for K candidates.
        """
        return self.best_action(observation, self.acting_policy.sample(observation, noise))

    def draw_inputs(self, batch_size: int) -> tuple[Any, ...]:
        """Draw all the random numbers of an update."""
        critic = self.draw_critic_noise(batch_size)
        return (Noise(critic, self.draw_actor_noise(batch_size)),)

    def pure_update(
        self, batch: Batch, noise: Noise, moves_actor: bool = True
    ) -> dict[str, Tensor]:
        """Make one update of critic, target and actor; metrics are [S].

        An update that does not move the actor moves no target either: only the critic.
        """
        critic_loss, critic_metrics = self.critic_loss(batch, noise.critic)
        self.critic_optimizer.descend(critic_loss)
        if not moves_actor:
            return {"critic_loss": critic_loss.detach(), **critic_metrics}
        polyak_update(self.target_critic, self.critic, self.config.polyak)

        actor_loss, actor_metrics = self.actor_loss(batch, noise.actor)
        gradient_norm = self.actor_optimizer.minimize(actor_loss)
        if self.target_denoiser is not self.denoiser:
            polyak_update(self.target_denoiser, self.denoiser, self.config.polyak)
        self.after_update(actor_metrics)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "actor_gradient_norm": gradient_norm,
            **critic_metrics,
            **actor_metrics,
        }

    def draw_action_noise(
        self, size: int, streams: SeedStreams, candidates: int = 1
    ) -> ActionNoise:
        """Draw what ``exploring_action`` needs to choose among so many, ``size`` times."""
        steps = self.config.diffusion_steps
        return ActionNoise(
            chain=streams.normal(steps, candidates * size, self.action_size),
            exploration=streams.normal(size, self.action_size),
        )

    def exploring_action(
        self,
        policy: DiffusionPolicy,
        observation: Tensor,
        noise: ActionNoise,
        draw: Draw = reparameterized,
        critic: TwinCritic | None = None,
    ) -> Tensor:
        """Sample the policy, choose the best candidate, and add exploration noise, in the box.

        [S, B, obs] -> [S, B, act], where the noise is that of K B samples: see
        ``DiffusionPolicy.sample`` and ``best_action``, which ``critic`` is for. With exploration
        noise for all K B of them nothing is chosen: [S, B, obs] -> [S, K B, act].
        """
        action = policy.sample(observation, noise.chain, draw)
        if noise.exploration.shape[1] < action.shape[1]:
            action = self.best_action(observation, action, critic)
        return draw(action, self.config.exploration_noise, noise.exploration).clamp(-1.0, 1.0)

    def score_and_gradient(
        self, observation: Tensor, action: Tensor, streams: SeedStreams
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's score and grad_a Q, both [S, B, act], at actions noised to t = 1.

        The score is Psi(s, a^t, t) = -eps_theta(s, a^t, t) / sqrt(1 - abar_t). At t = 1 it is
        closest to that of the action that is executed (Theorem 4.1 and 4.3).
        """
        t = torch.ones(action.shape[:2], dtype=torch.int64, device=action.device)
        noisy_action = self.schedule.add_noise(action, t, streams.normal(*action.shape[1:]))
        with torch.no_grad():
            predicted = self.denoiser(observation, noisy_action, t)
        score = -predicted / self.schedule.noise_std(t)
        return score, self.action_gradient(observation, noisy_action)

    @torch.no_grad()
    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample the policy ``count`` times at each state: [S, N, obs] -> [S, N, count, act]."""
        states = observation.repeat_interleave(count, dim=1)
        noise = streams.normal(self.config.diffusion_steps, states.shape[1], self.action_size)
        action = self.acting_policy.sample(states, noise)
        return action.view(*observation.shape[:2], count, self.action_size)
