"""A trainer of your own in one file: the policy imitates the best of N actions near its own.

    y    = R_n + g^n m min_i Qbar_i(s', pi(s'))
    a*   = the a_k with the largest mean Q(s, a_k) among a_k = clip( pi(s) + spread z_k, -1, 1 )
    L_pi = | pi(s) - a* |^2

No gradient of the critic is taken. In this folder the agent is ``best_of_n:BestOfN``:

    python -m qsm_bench run --agents best_of_n:BestOfN,sac --tasks Pendulum-v1 --steps 20000
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from qsm_bench import (
    MLP,
    Adam,
    Agent,
    AgentConfig,
    Batch,
    Learner,
    SeedStreams,
    TwinCritic,
    critic_loss,
    polyak_update,
)


@dataclass(frozen=True)
class BestOfNConfig(AgentConfig):
    """Settings of the imitation of the best of N actions."""

    candidates: Annotated[
        int, Field(gt=1, description="Actions N of which the best is imitated.")
    ] = 16
    spread: Annotated[
        float, Field(gt=0, description="Standard deviation of the candidates and of exploration.")
    ] = 0.3

    @property
    def without_effect(self) -> Mapping[str, str]:
        return {"candidates_evaluate": "the policy has one action for each observation"}


class BestOfN(Learner, Agent):
    """Off-policy actor-critic whose actor imitates the best of N actions near its own."""

    name = "best_of_n"
    config_class = BestOfNConfig
    presets = {}
    task_settings = {}
    parts = ("critic", "target_critic", "actor", "critic_optimizer", "actor_optimizer", "stream")
    """What a checkpoint holds; ``Learner`` saves and restores it."""

    def __init__(
        self,
        config: BestOfNConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.config = config
        weights = SeedStreams(seeds, "weights", device)
        self.critic = TwinCritic(
            observation_size, action_size, config.hidden_sizes, weights, config.networks
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        sizes = observation_size, *config.hidden_sizes, action_size
        self.actor = MLP(sizes, weights, config.networks)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
        self.actor_optimizer = Adam(self.actor.parameters(), config.actor_step_size)
        self.stream = SeedStreams(seeds, "noise", device)

    def policy(self, observation: Tensor) -> Tensor:
        """Return the policy's one action at each state: [S, B, obs] -> [S, B, act]."""
        action: Tensor = self.actor(observation).tanh()
        return action

    def near(self, action: Tensor, count: int) -> Tensor:
        """Draw actions around given ones: [S, B, act] -> [S, B, count, act]."""
        noise = self.stream.normal(action.shape[1], count, action.shape[2])
        return (action.unsqueeze(2) + self.config.spread * noise).clamp(-1.0, 1.0)

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Return the policy's action, with noise while training: [S, N, obs] -> [S, N, act]."""
        action = self.policy(observation)
        return self.near(action, 1).squeeze(2) if explore else action

    @torch.no_grad()
    def best_candidate(self, observation: Tensor) -> Tensor:
        """Draw N actions near the policy's and return the best: [S, B, obs] -> [S, B, act]."""
        count = self.config.candidates
        candidates = self.near(self.policy(observation), count)
        states = observation.repeat_interleave(count, dim=1)
        q = self.critic(states, candidates.flatten(1, 2)).mean(dim=0).view(candidates.shape[:3])
        best = q.argmax(dim=2, keepdim=True).unsqueeze(-1)
        return candidates.take_along_dim(best, dim=2).squeeze(2)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update of the critics and one of the actor, for every seed."""
        with torch.no_grad():
            next_action = self.policy(batch.next_observation)
            next_value = self.target_critic(batch.next_observation, next_action).amin(dim=0)
        loss = critic_loss(self.critic(batch.observation, batch.action), batch, next_value)
        self.critic_optimizer.minimize(loss)
        polyak_update(self.target_critic, self.critic, self.config.polyak)

        best = self.best_candidate(batch.observation)
        actor_loss = (self.policy(batch.observation) - best).square().mean(dim=(1, 2))
        self.actor_optimizer.minimize(actor_loss)
        return {"critic_loss": loss.detach(), "actor_loss": actor_loss.detach()}
