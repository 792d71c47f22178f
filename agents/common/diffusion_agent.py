"""What the diffusion trainers share: policy, critic, acting, and the order of one update.

They differ in the actor's loss alone, which each agent's own file states.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from agents.common import diffusion
from agents.common.diffusion import ConditionedDenoiser, Denoiser, Draw, Schedule, reparameterized
from agents.common.learner import TwinCriticLearner, critic_loss
from agents.common.networks import TwinCritic
from agents.common.optimizer import Adam, polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import AgentConfig, Batch


@dataclass(frozen=True)
class DiffusionConfig(AgentConfig):
    """Settings of every diffusion policy."""

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


class Noise(NamedTuple):
    """All random numbers of one update."""

    chain: Tensor
    """[S, T, B, act]: the sampler's, for the next actions."""
    exploration: Tensor
    """[S, B, act]: added to the next actions."""
    actor: Any
    """Whatever the agent's actor loss draws: a tensor or a tuple of tensors."""


ConfigT = TypeVar("ConfigT", bound=DiffusionConfig)


class DiffusionAgent(TwinCriticLearner, ABC, Generic[ConfigT]):
    """Off-policy actor-critic with a diffusion policy."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    task_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    parts: tuple[str, ...] = (
        "critic",
        "target_critic",
        "denoiser",
        "critic_optimizer",
        "actor_optimizer",
        "update_stream",
        "explore_stream",
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
        def stream(purpose: str) -> SeedStreams:
            return SeedStreams(seeds, purpose, device)

        self.config = config
        self.action_size = action_size
        self.schedule = Schedule(config.diffusion_steps, device)
        # What it is added to can be differentiated by. So can what requires_grad_() is called on,
        # but torch 2.11 does not compile that.
        self.zero = torch.zeros((), device=device, requires_grad=True)
        self.denoiser = Denoiser(
            observation_size,
            action_size,
            config.hidden_sizes,
            config.diffusion_steps,
            stream("actor weights"),
            config.initialization,
        )
        self.critic = TwinCritic(
            observation_size,
            action_size,
            config.hidden_sizes,
            stream("critic weights"),
            config.initialization,
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
        self.actor_optimizer = Adam(
            self.denoiser.parameters(), config.actor_step_size, config.actor_decay_updates
        )
        self.update_stream = stream("update")
        self.explore_stream = stream("explore")
        self.sample_stream = stream("sample")

    @abstractmethod
    def draw_actor_noise(self, batch_size: int) -> Any:
        """Draw what ``actor_loss`` needs for a batch of that size, from ``update_stream``."""

    @abstractmethod
    def actor_loss(self, batch: Batch, noise: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [S] whose gradient moves the denoiser, and metrics of shape [S]."""

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Sample actions, with exploration noise while training; [S, N, obs] -> [S, N, act]."""
        stream = self.explore_stream if explore else self.sample_stream
        shape = (observation.shape[1], self.action_size)
        chain = stream.normal(self.config.diffusion_steps, *shape)
        if not explore:
            return self.sample(observation, chain)
        return self.executed(self.denoiser.given(observation), chain, stream.normal(*shape))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update of critic, target and actor; metrics are [S]."""
        size, stream = batch.action.shape[1], self.update_stream
        noise = Noise(
            chain=stream.normal(self.config.diffusion_steps, size, self.action_size),
            exploration=stream.normal(size, self.action_size),
            actor=self.draw_actor_noise(size),
        )
        return self.step(batch, noise)

    def step(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The update as a function of (parameters, batch, noise): it draws nothing itself."""
        with torch.no_grad():
            denoise = self.next_denoiser().given(batch.next_observation)
            next_action = self.executed(denoise, noise.chain, noise.exploration)
            next_q = self.target_critic(batch.next_observation, next_action)
        q = self.critic(batch.observation, batch.action)
        loss = critic_loss(q, batch, next_q.amin(dim=0))
        self.critic_optimizer.minimize(loss)
        polyak_update(self.target_critic, self.critic, self.config.polyak)

        actor_loss, metrics = self.actor_loss(batch, noise.actor)
        gradient_norm = self.actor_optimizer.minimize(actor_loss)
        return {
            "critic_loss": loss.detach(),
            "actor_loss": actor_loss.detach(),
            "actor_gradient_norm": gradient_norm,
            "q": q.detach().mean(dim=(0, 2)),
            **metrics,
        }

    def next_denoiser(self) -> Denoiser:
        """The policy that the critic's target takes its next action from."""
        return self.denoiser

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """One action per observation: [S, B, obs] and noise [S, T, B, act] to [S, B, act]."""
        return diffusion.sample(self.denoiser.given(observation), self.schedule, noise)

    def executed(
        self,
        denoise: ConditionedDenoiser,
        chain: Tensor,
        exploration: Tensor,
        draw: Draw = reparameterized,
    ) -> Tensor:
        """The actions executed while training: the sampler's, with exploration noise on top.

        Noise [S, T, B, act] of the chain and [S, B, act] of the exploration -> [S, B, act].
        """
        action = diffusion.sample(denoise, self.schedule, chain, draw)
        return diffusion.explore(action, self.config.exploration_noise, exploration, draw)

    def action_gradient(self, observation: Tensor, action: Tensor) -> Tensor:
        """grad_a Q(s, a) of the online critics, held constant: [S, B, act]."""
        action = action.detach() + self.zero
        value = self.differentiated_value(self.critic(observation, action))
        return torch.autograd.grad(value.sum(), action)[0]

    def differentiated_value(self, q: Tensor) -> Tensor:
        """What grad_a Q is the gradient of, from the twin critics' values [2, S, B]: [S, B]."""
        return q.mean(dim=0)

    def score(self, observation: Tensor, action: Tensor, t: Tensor) -> Tensor:
        """The policy's score Psi(s, a^t, t) = -eps_theta(s, a^t, t) / sqrt(1 - abar_t).

        [S, B, obs], [S, B, act] and [S, B] int64 in 1..T -> [S, B, act].
        """
        out: Tensor = -self.denoiser.given(observation)(action, t) / self.schedule.noise_std(t)
        return out

    def score_and_gradient(
        self, observation: Tensor, action: Tensor, streams: SeedStreams
    ) -> tuple[Tensor, Tensor]:
        """The policy's score and grad_a Q at actions [S, B, act] noised to t = 1, [S, B, act].

        There the score is closest to that of the action that is executed (Theorem 4.1 and 4.3).
        """
        t = torch.ones(action.shape[:2], dtype=torch.int64, device=action.device)
        noisy_action = self.schedule.add_noise(action, t, streams.normal(*action.shape[1:]))
        with torch.no_grad():
            score = self.score(observation, noisy_action, t)
        return score, self.action_gradient(observation, noisy_action)

    @torch.no_grad()
    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Samples of the policy at each state: [S, N, obs] -> [S, N, count, act]."""
        states = observation.repeat_interleave(count, dim=1)
        noise = streams.normal(self.config.diffusion_steps, states.shape[1], self.action_size)
        return self.sample(states, noise).view(*observation.shape[:2], count, -1)
