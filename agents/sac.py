"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905).

A squashed Gaussian policy with a learned temperature:

    y   = R_n + g^n m ( min_i Qbar_i(s', a') - tau log pi(a' | s') )
    L_pi = mean( tau log pi(a | s) - Q(s, a) ),   L_tau = -log tau * mean( log pi(a | s) + H )

with temperature tau and target entropy H.

Where the paper, the baseline in the code of Q-score matching's authors
(github.com/Alescontrela/score_matching_rl) and this differ, the default and what gives the other:

    actor's critic      the smaller of both as in the paper; the code: actor_critic=mean
    target entropy      -1 per action dimension as in the paper; the code: entropy_per_action=-0.5
    log deviation       at least -5; the code: log_std_min=-20
    L_tau               in log tau; the code's in tau: temperature_loss=tau
    evaluation          a sample, as for every trainer here; the code: evaluation=mean
    initial weights     uniform, torch's own; the code: initialization=xavier

The preset sac_reference has all of the code's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from agents.common.learner import TwinCriticLearner, critic_loss
from agents.common.networks import MLP
from agents.common.optimizer import Adam, polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import REFERENCE, AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class SACConfig(AgentConfig):
    """Settings of soft actor-critic."""

    entropy_per_action: Annotated[
        float, Field(description="Target entropy divided by the number of action dimensions.")
    ] = -1.0
    initial_temperature: Annotated[
        float, Field(gt=0, description="Temperature tau at the start; learned from there.")
    ] = 1.0
    log_std_min: Annotated[
        float, Field(description="Lower clip of the Gaussian's log standard deviation.")
    ] = -5.0
    log_std_max: Annotated[
        float, Field(description="Upper clip of the Gaussian's log standard deviation.")
    ] = 2.0
    actor_critic: Annotated[
        Literal["min", "mean"],
        Field(description="Which of the twin critics' values the actor climbs."),
    ] = "min"
    temperature_loss: Annotated[
        Literal["log_tau", "tau"],
        Field(
            description="What the entropy's distance from its target multiplies in L_tau: log tau, "
            "or tau."
        ),
    ] = "log_tau"
    evaluation: Annotated[
        Literal["sample", "mean"],
        Field(description="Action when evaluated: a sample of the policy, or its squashed mean."),
    ] = "sample"

    def __post_init__(self) -> None:
        """Raise ValueError for log standard deviations without a range, or candidates all alike."""
        if self.log_std_min > self.log_std_max:
            raise ValueError("log_std_min must not be above log_std_max")
        if self.evaluation == "mean" and self.candidates_evaluate > 1:
            raise ValueError("candidates_evaluate above 1 needs evaluation=sample")


class Noise(NamedTuple):
    """All random numbers of one update, those of two actions: [S, B, act] each."""

    next_action: Tensor
    action: Tensor


class SAC(TwinCriticLearner[SACConfig]):
    """Soft actor-critic."""

    name = "sac"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = SACConfig
    presets: ClassVar[NamedSettings] = {
        "sac_reference": {
            **REFERENCE,
            "hidden_sizes": (256, 256),
            "entropy_per_action": -0.5,
            "initial_temperature": 1.0,
            "log_std_min": -20.0,
            "log_std_max": 2.0,
            "actor_critic": "mean",
            "temperature_loss": "tau",
            "evaluation": "mean",
        },
    }
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"initial_temperature": 0.1},
    }
    parts: tuple[str, ...] = (
        *TwinCriticLearner.parts,
        "actor",
        "temperature",
        "actor_optimizer",
        "temperature_optimizer",
        "sample_stream",
    )

    def __init__(
        self,
        config: SACConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        self.actor = MLP(
            (observation_size, *config.hidden_sizes, 2 * action_size),
            self.stream("actor weights"),
            config.networks,
            heads=2,
        )
        start = torch.full((len(seeds), 1), math.log(config.initial_temperature), device=device)
        self.temperature = nn.ParameterDict({"log": start})
        self.actor_optimizer = Adam(self.actor.parameters(), config.actor_step_size)
        self.temperature_optimizer = Adam(self.temperature.parameters(), config.learning_rate)
        self.sample_stream = self.stream("sample")

    def policy(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample a = tanh(u), u Gaussian, with its log-density: [S, B, act] and [S, B]."""
        mean, log_std = self.actor(observation).chunk(2, dim=-1)
        log_std = log_std.clamp(self.config.log_std_min, self.config.log_std_max)
        u = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), in a form that stays exact for large |u|.
        log_slope = 2 * (math.log(2) - u - functional.softplus(-2 * u))
        return u.tanh(), (log_normal - log_slope).sum(dim=-1)

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Sample the policy, which is its own exploration; [S, N, obs] -> [S, N, act]."""
        if not explore and self.config.evaluation == "mean":
            return self.policy(observation, torch.zeros(()).to(observation))[0]
        stream = self.explore_stream if explore else self.sample_stream
        count = 1 if explore else self.config.candidates_evaluate
        states = observation.repeat(1, count, 1)
        action, _ = self.policy(states, stream.normal(states.shape[1], self.action_size))
        return self.best_action(observation, action)

    @torch.no_grad()
    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample the policy ``count`` times at each state: [S, N, obs] -> [S, N, count, act]."""
        states = observation.repeat_interleave(count, dim=1)
        noise = streams.normal(states.shape[1], self.action_size)
        return self.policy(states, noise)[0].view(*observation.shape[:2], count, -1)

    def draw_inputs(self, batch_size: int) -> tuple[Noise]:
        """Draw all the random numbers of an update."""
        shape = batch_size, self.action_size
        return (Noise(self.update_stream.normal(*shape), self.update_stream.normal(*shape)),)

    def pure_update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Make one update of critic, actor, temperature and target; metrics are [S]."""
        log_temperature = self.temperature["log"]
        temperature = log_temperature.detach().exp()

        with torch.no_grad():
            next_action, next_log_density = self.policy(batch.next_observation, noise.next_action)
            next_q = self.target_critic(batch.next_observation, next_action).amin(dim=0)
        q = self.critic(batch.observation, batch.action)
        loss = critic_loss(q, batch, next_q - temperature * next_log_density)
        self.critic_optimizer.descend(loss)

        action, log_density = self.policy(batch.observation, noise.action)
        q_action = self.critic.at_observation(batch.observation)(action)
        value = q_action.amin(dim=0) if self.config.actor_critic == "min" else q_action.mean(dim=0)
        actor_loss = (temperature * log_density - value).mean(dim=-1)
        gradient_norm = self.actor_optimizer.minimize(actor_loss)

        entropy = -log_density.detach().mean(dim=-1)
        target_entropy = self.config.entropy_per_action * self.action_size
        in_log = self.config.temperature_loss == "log_tau"
        multiplier = log_temperature if in_log else log_temperature.exp()
        self.temperature_optimizer.descend(multiplier.squeeze(-1) * (entropy - target_entropy))

        polyak_update(self.target_critic, self.critic, self.config.polyak)
        return {
            "critic_loss": loss.detach(),
            "actor_loss": actor_loss.detach(),
            "actor_gradient_norm": gradient_norm,
            "q": q.detach().mean(dim=(0, 2)),
            "entropy": entropy,
            "temperature": temperature.squeeze(-1),
        }

    @classmethod
    def effective_temperature(cls, config: SACConfig, metrics: Mapping[str, float]) -> float | None:
        """Return the learned temperature: the best squashed policy has the density exp(Q / tau)."""
        return metrics.get("temperature")
