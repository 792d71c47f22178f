"""A trainer of your own that another code calls "QSM": a network for grad_a Q, and Langevin steps.

    L     = mean | psi(s, a) - grad_a min_i Q_i(s, a) / tau |^2 at replayed actions a
    a_0   ~ N(0, I);   a_i+1 = clip( a_i + d_i psi(s, a_i) / 2 + sqrt(d_i) z, -1, 1 )
    d_i   = 1 - i / 20
    y     = R_n + g^n m min_i Qbar_i(s', a'),   a' the best of 32 samples

It is not the paper's Q-score matching: there are no noised actions, and the network knows no time.
The code (github.com/mahaitongdae/diffusion_policy_online_rl) has tau = 1 and multiplies rewards by
0.2, which is tau = 5 in units of the reward. It acts and is evaluated by the best of 32, too; here,
for a fair comparison, a sample is evaluated unless candidates_evaluate says otherwise.

Where psi is exact and Q = -k (a - a*)^2, a step is stable if d_i k / tau < 2. At tau = 1 the
samples' deviation is 0.35 with k = 5 and 0.22 with k = 20, where exp(Q) has 0.32 and 0.16, and with
k = 50 nearly half of the samples lie at the bounds. In this folder the agent is
``langevin_score:LangevinScore``:

    python -m qsm_bench run --agents langevin_score:LangevinScore,qsm --tasks Pendulum-v1
"""

from collections.abc import Sequence
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
    SeedStreams,
    TwinCriticLearner,
    critic_loss,
    mish,
    polyak_update,
)


@dataclass(frozen=True)
class LangevinScoreConfig(AgentConfig):
    """Settings of Langevin dynamics along a learned score."""

    temperature: Annotated[
        float,
        Field(gt=0, description="Temperature tau of the policy exp(Q / tau) that is sampled."),
    ] = 5.0
    langevin_steps: Annotated[int, Field(gt=0, description="Langevin steps of a sample.")] = 20
    candidates: Annotated[
        int, Field(gt=0, description="Samples of which the best is executed, and the next action.")
    ] = 32


class LangevinScore(TwinCriticLearner[LangevinScoreConfig], Agent):
    """Off-policy actor-critic whose samples follow a network that was taught grad_a Q."""

    name = "langevin_score"
    config_class = LangevinScoreConfig
    presets = {}
    task_settings = {}
    parts = (*TwinCriticLearner.parts, "score", "score_optimizer", "sample_stream")
    """What a checkpoint holds; ``TwinCriticLearner`` saves and restores it."""

    def __init__(
        self,
        config: LangevinScoreConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        sizes = (observation_size + action_size, *config.hidden_sizes, action_size)
        self.score = MLP(sizes, self.stream("score weights"), config.networks, activation=mish)
        self.score_optimizer = Adam(self.score.parameters(), config.actor_step_size)
        self.sample_stream = self.stream("sample")

    def psi(self, observation: Tensor, action: Tensor) -> Tensor:
        """Predict grad_a Q / tau at actions [S, B, act]."""
        out: Tensor = self.score(torch.cat([observation, action], dim=-1))
        return out

    @torch.no_grad()
    def sample(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample actions: [S, B, obs] -> [S, count B, act]; that of b and k is in row k B + b."""
        steps = self.config.langevin_steps
        states = observation.repeat(1, count, 1)
        start, *noise = streams.normal(1 + steps, states.shape[1], self.action_size).unbind(dim=1)
        action = start
        for i, z in enumerate(noise):
            d = 1 - i / steps
            action = action + d / 2 * self.psi(states, action) + d**0.5 * z
            action = action.clamp(-1.0, 1.0)
        return action

    def best_sample(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample ``count`` actions a state and return the best: [S, B, obs] -> [S, B, act]."""
        return self.best_action(observation, self.sample(observation, count, streams))

    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Return the best of some samples: [S, N, obs] -> [S, N, act]."""
        if explore:
            return self.best_sample(observation, self.config.candidates, self.explore_stream)
        return self.best_sample(observation, self.config.candidates_evaluate, self.sample_stream)

    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample ``count`` actions at each state, for reports: -> [S, N, count, act]."""
        samples: Tensor = self.sample(observation, count, streams).unflatten(1, (count, -1))
        return samples.transpose(1, 2)

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Let ``action_gradient`` be that of the smaller critic: [2, S, B] -> [S, B]."""
        return q.amin(dim=0)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update of the critics and one of the score, for every seed."""
        next_action = self.best_sample(
            batch.next_observation, self.config.candidates, self.update_stream
        )
        with torch.no_grad():
            next_value = self.target_critic(batch.next_observation, next_action).amin(dim=0)
        loss = critic_loss(self.critic(batch.observation, batch.action), batch, next_value)
        self.critic_optimizer.minimize(loss)
        polyak_update(self.target_critic, self.critic, self.config.polyak)

        wanted = self.action_gradient(batch.observation, batch.action) / self.config.temperature
        error = self.psi(batch.observation, batch.action) - wanted
        score_loss = error.square().mean(dim=(1, 2))
        self.score_optimizer.minimize(score_loss)
        return {"critic_loss": loss.detach(), "score_loss": score_loss.detach()}
