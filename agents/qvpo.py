"""Q-weighted variational policy optimization (Ding et al.; NeurIPS 2024; arXiv 2405.16173).

The denoiser imitates the best of its own samples, where that is better than the others, and a few
uniformly random actions:

    a_i  ~ pi_theta(. | s),  i = 1..N;        a* = the a_i with the largest Q(s, a_i)
    w(s) = max(0, Q(s, a*) - mean_i Q(s, a_i))
    L    = mean of w(s) || eps - eps_theta(s, a^t, t) ||^2 over a* and, with the weight omega w(s)
           in the place of w(s), M actions u ~ U(-1, 1)^A

All rows of a state share w(s). So at one state the policy that the loss asks for does not depend on
w, and hence on Q's scale: it is the best of N, mixed with the share M omega / (1 + M omega) of
uniform actions. That is 16.7 % at omega = 0.02 and M = 10, and 2.0 % at omega = 0.002, where omega
ends. w only says which states are learned most. If Q does not depend on the action, nothing is.

Each refit narrows the policy: the best of N uniform actions lies E |a* - a_Q| = 1 / (N + 1) from an
optimum a_Q that is away from the bounds. Nothing but the uniform share widens it again. Of two
equally good modes each refit keeps the share of either on average, and no force restores it; of two
modes that differ a little the better one takes all. N is 32 here, and 64 in the authors' code: 1/33
in the place of 1/65, so a refit narrows half as much. An update costs 14 of qsm's; with 64 samples
of 20 steps it is about 75 in equal networks.

Where the authors' code (github.com/wadx2019/qvpo) and this differ, the default and the preset:

                        here                        qvpo_reference
    samples N           32                          64
    diffusion           house's, T = 5              20 steps, cosine, a^0 clipped, variance of
                                                    the posterior
    executed            best of 4, noise 0.1        best of 4, no noise added
    critic's target     best of 4, noise 0.1        best of 4 of the averaged actor, no noise
    evaluated           one sample                  best of 32
    hidden layers       256, 256                    256, 256, 256
    step sizes          0.0003                      0.0003, actor 0.0001, constant

The paper's number of executed candidates is another for some tasks: candidates_act. Not to be had,
and the same in the preset: the code clips gradients to the norm 2, has 1e-5 in Adam's denominator
and draws a batch of its own for the actor. It takes the end of an episode by its time limit for a
termination, which is a defect on tasks without one. Its critics have mish.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from agents.common.diffusion_agent import DIFFUSION_REFERENCE, DiffusionAgent, DiffusionConfig
from agents.common.learner import choose_best
from agents.protocol import AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class QVPOConfig(DiffusionConfig):
    """Settings of Q-weighted variational policy optimization."""

    candidates_target: Annotated[
        int,
        Field(gt=0, description="Samples of which the best is the critic target's next action."),
    ] = 4
    candidates_act: Annotated[
        int,
        Field(gt=0, description="Samples of which the best is executed while training."),
    ] = 4
    samples: Annotated[
        int, Field(gt=1, description="Samples N of the policy of which the best is imitated.")
    ] = 32
    uniform_samples: Annotated[
        int, Field(ge=0, description="Uniform actions M of each state that are imitated, too.")
    ] = 10
    uniform_weight: Annotated[
        float, Field(ge=0, description="Weight omega of a uniform action at the start.")
    ] = 0.02
    uniform_weight_end: Annotated[
        float, Field(ge=0, description="Weight below which omega does not fall.")
    ] = 0.002
    uniform_decay_updates: Annotated[
        int,
        Field(
            ge=0,
            description="Updates over which omega would fall to 0 along a line; 0: constant.",
        ),
    ] = 1_000_000

    @property
    def without_effect(self) -> Mapping[str, str]:
        start, end = "uniform_weight", "uniform_weight_end"
        decay = "uniform_decay_updates"
        if not self.uniform_samples:
            return dict.fromkeys((start, end, decay), "it needs uniform_samples of 1 or more")
        return {} if self.uniform_decay_updates else {end: f"it needs {decay} of 1 or more"}


class ActorNoise(NamedTuple):
    """The random numbers of one actor update. The rows of best and uniform actions are R."""

    chain: Tensor
    """The sampler's noise of N samples a state, [S, T, N B, act]."""
    uniform: Tensor
    """The uniform actions, [S, M B, act]: action k of observation b is in row k B + b."""
    t: Tensor
    """The diffusion times, [S, R] int64 in 1..T, where R = (1 + M) B."""
    noise: Tensor
    """What the actions are noised with, [S, R, act]."""


class QVPO(DiffusionAgent[QVPOConfig]):
    """Imitation of the best of the policy's own samples, weighted by its advantage."""

    name = "qvpo"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = QVPOConfig
    presets: ClassVar[NamedSettings] = {
        "qvpo_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "initialization": "uniform",
            "actor_learning_rate": 1e-4,
            "diffusion_steps": 20,
            "schedule": "cosine",
            "sampler": "x0_clip",
            "variance": "posterior",
            "exploration_noise": 0.0,
            "actor_decay_updates": 0,
            "ema_target": True,
            "candidates_target": 4,
            "candidates_act": 4,
            "candidates_evaluate": 32,
            "samples": 64,
            "uniform_samples": 10,
            "uniform_weight": 0.02,
            "uniform_weight_end": 0.002,
            "uniform_decay_updates": 1_000_000,
        },
    }

    # Fewer samples keep the regression short. With T = 5 the sampler's last step goes to the mean
    # of what is noised by 0.44, between the modes.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"samples": 8},
        "bimodal-bandit": {"diffusion_steps": 20, "actor_learning_rate": 0.003},
    }

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        c, stream, size = self.config, self.update_stream, self.action_size
        rows = (1 + c.uniform_samples) * batch_size
        return ActorNoise(
            chain=stream.normal(c.diffusion_steps, c.samples * batch_size, size),
            uniform=stream.uniform(c.uniform_samples * batch_size, size, low=-1.0),
            t=1 + stream.integers(rows, high=c.diffusion_steps),
            noise=stream.normal(rows, size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        best, advantage = self.best_sample(batch.observation, noise.chain)
        action = torch.cat([best, noise.uniform], dim=1)
        weight = torch.cat(
            [advantage, self.uniform_weight() * advantage.repeat(1, self.config.uniform_samples)],
            dim=1,
        )
        noisy = self.schedule.add_noise(action, noise.t, noise.noise)
        copies = 1 + self.config.uniform_samples
        predicted = self.denoiser.at_observation(batch.observation, copies)(noisy, noise.t)
        error = (predicted - noise.noise).square().mean(dim=-1)
        return (weight * error).mean(dim=-1), {"advantage": advantage.mean(dim=-1)}

    @torch.no_grad()
    def best_sample(self, observation: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best of N samples and its advantage over them: [S, B, act] and [S, B]."""
        samples = self.policy.sample(observation, chain)
        q = self.candidate_values(observation, samples)
        return choose_best(q, samples), (q.amax(dim=1) - q.mean(dim=1)).clamp(min=0.0)

    def uniform_weight(self) -> Tensor:
        """Return the weight omega of uniform actions in this update, a number."""
        c, updates = self.config, self.actor_optimizer.updates
        weight = torch.full_like(updates, c.uniform_weight)
        if c.uniform_decay_updates:
            weight = weight * (1 - updates / c.uniform_decay_updates)
            weight = weight.clamp(min=c.uniform_weight_end)
        return weight.to(self.schedule.abar.dtype)

    @classmethod
    def effective_temperature(
        cls, config: QVPOConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0 without uniform actions: the best of N is imitated. With them there is none."""
        mixes = config.uniform_samples and config.uniform_weight
        return None if mixes else 0.0
