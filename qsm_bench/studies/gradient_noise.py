"""How noisy a trainer's actor gradient is: one policy, one critic, many independent draws.

For the study of trainers; nothing is trained. A draw g is the gradient of the actor's loss by all
parameters of the denoiser, of a fresh batch and fresh noise. Over draws it has the mean E g and the
covariance C. The signal-to-noise ratio |E g|^2 / tr C does not depend on the gradient's scale, so
trainers can be compared by it, although their losses, and what their mean gradients climb, differ.

A policy and a critic belong to a seed: the draws of S seeds are S independent measurements.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from agents.common.diffusion_agent import DiffusionAgent
from agents.common.networks import TwinCritic
from agents.common.streams import SeedStreams
from agents.protocol import Batch
from agents.qsm import QSM, ActorNoise

Value = Callable[[Tensor], Tensor]
"""Q(a) in every state: [S, B, act] -> [S, B]."""


@dataclass(frozen=True)
class Moments:
    """Estimates from the draws of each seed; both are unbiased."""

    square: Tensor
    """|E g|^2: [S]. It can come out below zero where the mean is lost in the noise."""
    variance: Tensor
    """tr C: [S]."""

    @property
    def ratio(self) -> Tensor:
        """The signal-to-noise ratio |E g|^2 / tr C, [S]."""
        return self.square / self.variance


def moments(draws: Iterable[Tensor]) -> Moments:
    """The moments of two draws or more, each [S, P].

    With the sums s = sum g_i and q = sum |g_i|^2 of N draws, (|s|^2 - q) / (N (N - 1)) is the mean
    of g_i g_j over all pairs of different draws, so its expectation is |E g|^2; and q / N less that
    has the expectation E |g|^2 - |E g|^2 = tr C.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for draw in draws:
        draw = draw.double()
        count, total, squares = count + 1, total + draw, squares + draw.square().sum(dim=-1)
    square = (total.square().sum(dim=-1) - squares) / (count * (count - 1))
    return Moments(square, squares / count - square)


def actor_gradient(agent: DiffusionAgent[Any], batch: Batch) -> Tensor:
    """The gradient of the actor's loss with fresh noise, all parameters in one row: [S, P]."""
    noise = agent.draw_actor_noise(batch.action.shape[1])
    loss, _ = agent.actor_loss(batch, noise)
    gradients = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)


def draw_batches(
    agent: DiffusionAgent[Any], observation_size: int, seeds: Sequence[int], size: int, count: int
) -> Iterator[Batch]:
    """Batches of normal observations and the actions that the policy takes there in training.

    Policies with the same weights get the same batches.
    """
    streams = SeedStreams(seeds, "gradient noise", torch.device("cpu"))
    nothing = torch.zeros(len(seeds), size)
    for _ in range(count):
        state = streams.normal(size, observation_size)
        with torch.no_grad():
            noise = agent.draw_action_noise(size, streams, agent.config.candidates_act)
            action = agent.pure_training_action(state, noise)
        yield Batch(state, action, nothing, nothing, state)


class KnownTwins(nn.Module):
    """Twin critics that are the same known function of the action."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """([S, B, obs], [S, B, act]) -> [2, S, B]."""
        return self.value(action).expand(2, -1, -1)

    def at_observation(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(self, observation)


def give_critic(agent: DiffusionAgent[Any], value: Value) -> None:
    """Make a known function the agent's critic, for good."""
    agent.critic = agent.target_critic = cast(TwinCritic, KnownTwins(value))


class CriticsPart(QSM):
    """QSM with what of its loss depends on the critic alone.

    |e + alpha g|^2 = |e|^2 + 2 alpha e g + alpha^2 |g|^2, with g = grad_a Q. The gradient of the
    first term takes away what the network predicts, whatever Q is; that of the last is 0.
    """

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        noisy_action = self.schedule.add_noise(batch.action, noise.t, noise.noise)
        target = self.noise_target(self.action_gradient(batch.observation, noisy_action), noise.t)
        predicted = self.denoiser(batch.observation, noisy_action, noise.t)
        return -2 * (predicted * target).mean(dim=(1, 2)), {}


def asked_actions(agent: DiffusionAgent[Any], size: int) -> int:
    """The number of state-action pairs at which an actor's loss of ``size`` states asks Q."""
    return int(size * getattr(agent.config, "chains", 1))


def measure_noise(
    agents: Mapping[str, DiffusionAgent[Any]],
    observation_size: int,
    seeds: Sequence[int],
    size: int,
    count: int,
) -> pd.DataFrame:
    """Measure agents that have the same weights and critic, on the same ``count`` batches.

    Columns: agent, seed, square and variance (see ``Moments``), ratio (of the two), samples (see
    ``asked_actions``), sample_variance (variance x samples: that of one sample, if an update were
    the mean of independent ones), sample_ratio (ratio / samples).
    """
    tables = []
    for name, agent in agents.items():
        batches = draw_batches(agent, observation_size, seeds, size, count)
        found = moments(actor_gradient(agent, batch) for batch in batches)
        samples = asked_actions(agent, size)
        table = pd.DataFrame(
            {
                "agent": name,
                "seed": list(seeds),
                "square": found.square.numpy(),
                "variance": found.variance.numpy(),
                "ratio": found.ratio.numpy(),
                "samples": samples,
            }
        )
        tables.append(
            table.assign(
                sample_variance=table["variance"] * samples, sample_ratio=table["ratio"] / samples
            )
        )
    return pd.concat(tables, ignore_index=True)
