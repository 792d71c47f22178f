"""Langevin dynamics on the critic: a trainer without an actor. Samples climb Q, with noise.

    a   ~ U(-1, 1)^A;   a <- clip( a + eta grad_a Q(s, a) + sqrt(2 eta lambda) z, -1, 1 ),  20 times
    y   = R_n + g^n m min_i Qbar_i(s', a')

This is eq. 19 of Q-score matching (arXiv 2312.11752) with alpha = 1 / lambda, taken literally:
without a network that predicts grad_a Q. Written with h = eta lambda, a step is
a + h grad_a Q / lambda + sqrt(2 h) z, and away from the bounds the samples tend to the density
exp(Q / lambda) as h -> 0 and their number grows. With lambda = 0 this is gradient ascent from many
starts. Executed and evaluated actions, and the a' of the target, are its samples, of the online
critics; their own spread explores.

On Q = -k (a - a*)^2 a step contracts the distance to a* by 1 - 2 eta k. So it is stable only if
eta k < 1, whatever lambda is; and where it is, the deviation tends to

    sqrt( lambda / (2 k) ) / sqrt( 1 - eta k ),

where exp(Q / lambda) has the first factor alone. If eta k is small, 20 steps do not get there:
the share |1 - 2 eta k|^20 of the distance from a* is left.

The defaults follow from this and are not tuned. lambda = 0.02 is 1 / alpha of qsm's default, the
temperature of its eq. 19 and of its denoiser next to pure noise (at t = 1 that has 0.0089). Where Q
falls by one reward of 1 from the middle of the box to a bound, k = 1; from bound to bound, k = 1/4.
eta = 1/4 is stable to k = 4. A step's noise, sqrt(2 eta lambda) = 0.1, is then what the other
trainers here add to explore. With 20 steps, on a* = 0.3 and one action, the samples have:

    k                        0.1      0.3      1        2        3        5
    mean                     0.188    0.288    0.300    0.300    0.300    -0.13
    deviation                0.353    0.191    0.115    0.100    0.116    0.84 (36 % at a bound)
    that of exp(Q / lambda)  0.316    0.183    0.100    0.071    0.058    0.045

An update costs 4.2 of qsm's: each step is a call of both critics, forward and back to the action.

Noise-conditioned Langevin Q-learning (NC-LQL; github.com/ku-dmlab/NCLQL) is to be had by settings:
L noise levels, sigma_l from 0.1 down to 0.001, and critics Q(s, a, l), here with l as a one-hot
code beside the state. The last level learns from y; a second step of the same optimizer teaches the
others,

    L_2 = mean of ( Q_i(s, a + sigma_l z, l) - mean_j Q_j(s, a, L) )^2,   l ~ U{1..L-1}

Samples take some steps at each level, from the first to the last, with eta_l = eta (sigma_l /
sigma_L)^2, along grad_a Q / |grad_a Q|. The preset langevin_reference has its values: 10 levels of
2 steps. eta_l is then how far a step moves: 250, 90, 32, 12, 4.2, 1.5, 0.54, 0.19, 0.07 and 0.025.
So at the first six levels a sample of one action jumps from bound to bound, and the last four
decide. On a parabola around 0.3 the result is 0.300 with the deviation 0.022, whatever k is, and
half the samples lie at each of two equal modes. It has no temperature: as the gradient's length is
divided out, what is left of Q is where it rises.

What differs from that code: it has five environments and one update for a step of all, mish in the
critics, a learned code of l, and rewards times 0.2, which no sample depends on. None of these is to
be had. flow-rl's version of it takes the target critics' mean in L_2.

Not to be had either: steps that get shorter within a level, and the best of many samples in the
target and while training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from agents.common.learner import TwinCriticLearner, critic_loss
from agents.common.networks import TwinCritic
from agents.common.optimizer import polyak_update
from agents.common.streams import SeedStreams
from agents.protocol import REFERENCE, AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class LangevinConfig(AgentConfig):
    """Settings of Langevin dynamics on the critic."""

    temperature: Annotated[
        float,
        Field(ge=0, description="Temperature lambda of the noise; 0: samples climb without noise."),
    ] = 0.02
    step_size: Annotated[
        float,
        Field(
            gt=0,
            description="Step eta = h / lambda along grad_a Q, at the last noise level. It is "
            "stable if eta k < 1, where Q is -k (a - a*)^2.",
        ),
    ] = 0.25
    langevin_steps: Annotated[
        int, Field(gt=0, description="Steps of a sample at each noise level.")
    ] = 20
    gradient_of: Annotated[
        Literal["mean", "min"],
        Field(description="Which of the twin critics' values is climbed."),
    ] = "mean"
    normalize_gradient: Annotated[
        bool, Field(description="Divide grad_a Q by its norm: then eta is the length of a step.")
    ] = False
    noise_levels: Annotated[
        int, Field(gt=0, description="Noise levels L of the critics (NC-LQL). 1: none.")
    ] = 1
    largest_noise: Annotated[
        float, Field(gt=0, description="Deviation sigma_l at the first of several noise levels.")
    ] = 0.1
    smallest_noise: Annotated[
        float, Field(gt=0, description="Deviation sigma_l at the last of several noise levels.")
    ] = 0.001

    @property
    def without_effect(self) -> Mapping[str, str]:
        unused = {"actor_learning_rate": "no actor is learned"}
        if self.noise_levels == 1:
            levels = ("largest_noise", "smallest_noise")
            unused |= dict.fromkeys(levels, "it needs noise_levels of 2 or more")
        return unused

    @property
    def noise_stds(self) -> list[float]:
        """The deviations sigma_l of all levels, equally far apart in their logarithms."""
        last = max(self.noise_levels - 1, 1)
        ratio = self.smallest_noise / self.largest_noise
        return [self.largest_noise * ratio ** (level / last) for level in range(self.noise_levels)]

    @property
    def step_sizes(self) -> list[float]:
        """The steps eta_l of all levels."""
        *_, last = stds = self.noise_stds
        return [self.step_size * (std / last) ** 2 for std in stds]


class ChainNoise(NamedTuple):
    """The random numbers of K actions for each of B observations."""

    start: Tensor
    """Where the samples start, [S, K B, act]."""
    steps: Tensor
    """The noise of their steps, [S, steps, K B, act]."""


class Noise(NamedTuple):
    """All random numbers of one update."""

    next_action: ChainNoise
    """Those of the next actions."""
    level: Tensor
    """The noise levels of the second loss, [S, B] int64 in 0..L-2; [S, 0] with one level."""
    perturbation: Tensor
    """What it moves the actions by, before it is scaled: [S, B, act], or [S, 0, act]."""


class Langevin(TwinCriticLearner[LangevinConfig]):
    """Langevin dynamics on the critic, without an actor."""

    name = "langevin"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = LangevinConfig
    presets: ClassVar[NamedSettings] = {
        "langevin_reference": {
            **REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "learning_rate": 1e-4,
            "temperature": 0.002,
            "step_size": 0.025,
            "langevin_steps": 2,
            "gradient_of": "mean",
            "normalize_gradient": True,
            "noise_levels": 10,
            "largest_noise": 0.1,
            "smallest_noise": 0.001,
        },
    }
    # The bandit's reward has k = 4, where the default is at the edge of what is stable. The linear
    # task's Q has k = 0.1, which takes longer steps, and less noise for the same spread.
    small_task_settings: ClassVar[NamedSettings] = {
        "bimodal-bandit": {"step_size": 0.1},
        "linear-quadratic": {"step_size": 1.0, "temperature": 0.005},
    }
    parts: tuple[str, ...] = (*TwinCriticLearner.parts, "sample_stream")

    def __init__(
        self,
        config: LangevinConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        code = config.noise_levels if config.noise_levels > 1 else 0
        super().__init__(config, observation_size + code, action_size, seeds, device)
        self.noise_stds = torch.tensor(config.noise_stds, dtype=torch.float64, device=device)
        self.sample_stream = self.stream("sample")

    def at_level(self, observation: Tensor, level: int | Tensor) -> Tensor:
        """Put the code of a noise level 0..L-1 beside the state: [S, B, obs] -> [S, B, obs + L].

        ``level`` is one for the whole batch, negative ones count from the last, or [S, B] int64.
        With one level there is no code.
        """
        count = self.config.noise_levels
        if count == 1:
            return observation
        if isinstance(level, int):
            level = torch.full_like(observation[..., 0], level % count, dtype=torch.int64)
        return torch.cat([observation, functional.one_hot(level, count).to(observation)], dim=-1)

    def draw_chain(self, count: int, streams: SeedStreams) -> ChainNoise:
        """Draw the random numbers of so many actions of each seed."""
        steps = self.config.noise_levels * self.config.langevin_steps
        return ChainNoise(
            start=streams.uniform(count, self.action_size, low=-1.0),
            steps=streams.normal(steps, count, self.action_size),
        )

    @torch.no_grad()
    def sample(self, observation: Tensor, noise: ChainNoise) -> Tensor:
        """Sample K actions for each observation: [S, B, obs] -> [S, K B, act].

        Action k of observation b is in row k B + b.
        """
        action, rows = noise.start, iter(noise.steps.unbind(dim=1))
        states = observation.repeat(1, action.shape[1] // observation.shape[1], 1)
        for level, step_size in enumerate(self.config.step_sizes):
            critic = self.critic.at_observation(self.at_level(states, level))
            for _ in range(self.config.langevin_steps):
                action = self.step(critic, action, step_size, next(rows))
        return action

    def step(
        self, critic: Callable[[Tensor], Tensor], action: Tensor, size: float, noise: Tensor
    ) -> Tensor:
        """Take one step of Langevin dynamics, in the box, from actions [S, B, act].

        ``critic`` is what ``TwinCritic.at_observation`` returns.
        """
        _, gradient = self.value_and_gradient(critic, action)
        if self.config.normalize_gradient:
            gradient = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        spread = math.sqrt(2 * size * self.config.temperature)
        return (action + size * gradient + spread * noise).clamp(-1.0, 1.0)

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Combine the twin critics' values to what is climbed: [2, S, B] -> [S, B]."""
        return q.mean(dim=0) if self.config.gradient_of == "mean" else q.amin(dim=0)

    @torch.no_grad()
    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Sample actions, which explore by themselves; [S, N, obs] -> [S, N, act]."""
        if explore:
            noise = self.draw_chain(observation.shape[1], self.explore_stream)
            return self.pure_training_action(observation, noise)
        count = self.config.candidates_evaluate * observation.shape[1]
        noise = self.draw_chain(count, self.sample_stream)
        return self.pure_evaluation_action(observation, noise)

    def pure_training_action(self, observation: Tensor, noise: ChainNoise) -> Tensor:
        """Return the action to take while training, of its noise: [S, N, obs] -> [S, N, act]."""
        return self.sample(observation, noise)

    def pure_evaluation_action(self, observation: Tensor, noise: ChainNoise) -> Tensor:
        """Return the best of the candidates that the noise is for: [S, N, obs] -> [S, N, act]."""
        return self.best_action(observation, self.sample(observation, noise))

    @torch.no_grad()
    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample ``count`` actions at each state: [S, N, obs] -> [S, N, count, act]."""
        states = observation.repeat_interleave(count, dim=1)
        action = self.sample(states, self.draw_chain(states.shape[1], streams))
        return action.view(*observation.shape[:2], count, self.action_size)

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the mean Q of the last level: [S, B, obs] and [S, B, act] -> [S, B]."""
        return super().action_value(self.at_level(observation, -1), action)

    def candidate_values(
        self, observation: Tensor, candidates: Tensor, critic: TwinCritic | None = None
    ) -> Tensor:
        """Return the last level's values of K candidates: [S, K B, act] -> [S, K, B]."""
        return super().candidate_values(self.at_level(observation, -1), candidates, critic)

    def draw_inputs(self, batch_size: int) -> tuple[Noise]:
        """Draw all the random numbers of an update."""
        streams, others = self.update_stream, self.config.noise_levels - 1
        rows = batch_size if others else 0
        noise = Noise(
            next_action=self.draw_chain(batch_size, streams),
            level=streams.integers(rows, high=max(others, 1)),
            perturbation=streams.normal(rows, self.action_size),
        )
        return (noise,)

    def pure_update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Make one update of the critics and of their targets; metrics are [S]."""
        with torch.no_grad():
            next_action = self.sample(batch.next_observation, noise.next_action)
            next_state = self.at_level(batch.next_observation, -1)
            next_value = self.target_critic(next_state, next_action).amin(dim=0)
        q = self.critic(self.at_level(batch.observation, -1), batch.action)
        loss = critic_loss(q, batch, next_value)
        self.critic_optimizer.descend(loss)
        metrics = {"critic_loss": loss.detach(), "q": q.detach().mean(dim=(0, 2))}
        if self.config.noise_levels > 1:
            noised_loss = self.noised_loss(batch, q.detach().mean(dim=0), noise)
            self.critic_optimizer.descend(noised_loss)
            metrics["noised_loss"] = noised_loss.detach()
        polyak_update(self.target_critic, self.critic, self.config.polyak)
        return metrics

    def noised_loss(self, batch: Batch, wanted: Tensor, noise: Noise) -> Tensor:
        """Return the loss [S] of the critics' noise levels against ``wanted``, [S, B]."""
        std = self.noise_stds[noise.level].unsqueeze(-1).to(batch.action)
        moved = batch.action + std * noise.perturbation
        q = self.critic(self.at_level(batch.observation, noise.level), moved)
        loss: Tensor = (q - wanted).square().mean(dim=-1).sum(dim=0)
        return loss

    @classmethod
    def effective_temperature(
        cls, config: LangevinConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return lambda, if Q's own gradient is climbed: see the top of this file."""
        return None if config.normalize_gradient else config.temperature
