"""Q-score matching (Psenka, Escontrela, Abbeel, Ma; ICML 2024; arXiv 2312.11752; Algorithm 1).

The policy's score is fitted to the critic's action gradient: at noised replayed actions a^t,

    L = mean || eps_theta(s, a^t, t) + alpha grad_a Q(s, a^t) ||^2            (eq. 10-11)

A noise prediction is minus a score, hence the plus. No gradient runs through the sampler, so
the actor's update costs the same for every number of diffusion steps T.

Where the paper's text and the authors' code (github.com/Alescontrela/score_matching_rl) differ, or
leave a choice, the default and what gives the other:

    hidden layers       256, 256 as in the text; the code has hidden_sizes=[512,512]
    return              one step as in the code; the text has N steps, N not stated: n_step=N
    actor's step size   falls along a cosine as in the code; constant: actor_decay_updates=0
    alpha               M_q = 50 as in the code's configuration; the text has none. A comment there
                        says that 120 "may perform better" on quadruped_walk and humanoid_walk:
                        it is the default on these two tasks, and not in qsm_reference
    grad_a Q            of the mean of both critics as in the code; of the smaller: gradient_of=min
    target              -alpha grad_a Q as in both; with the root that it lacks: target_scale=noised
    initial weights     uniform, torch's own; the code has initialization=xavier
    noised action       not clipped, as in both
    batch               drawn before the newest transition is stored, so that update and environment
                        can run at once; the code's may hold it, and no setting changes that

The preset qsm_reference is the code's shipped configuration, every choice spelled out.

The score of a^t is -eps_theta / sqrt(1 - abar_t). So a fitted denoiser has the score
grad_a Q / tau_t with the temperature tau_t = sqrt(1 - abar_t) / alpha, which differs from one t to
another: the target of eq. 10 lacks the factor sqrt(1 - abar_t). Equation 19 takes alpha grad_a Q
itself for the score: its temperature is 1 / alpha, nearly that at t = T. The effective temperature
that is reported is that at t = 1, next to the action. At every t alike it is 1 / alpha with
target_scale=noised, and temperature mean |grad_a Q| with target_scale=normalized.
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
class QSMConfig(DiffusionConfig):
    """Settings of Q-score matching."""

    alpha: Annotated[
        float,
        Field(
            gt=0,
            description="Weight of grad_a Q in the denoiser's target (eq. 10), an inverse "
            "temperature; the authors' code calls it M_q.",
        ),
    ] = 50.0
    gradient_of: Annotated[
        Literal["mean", "min"],
        Field(description="Which of the twin critics' values grad_a Q is taken of."),
    ] = "mean"
    target_scale: Annotated[
        Literal["alpha", "noised", "normalized"],
        Field(
            description="alpha: the target is -alpha grad_a Q (the paper). noised: it is "
            "-alpha sqrt(1 - abar_t) grad_a Q, of one temperature at every t. normalized: it is "
            "-sqrt(1 - abar_t) grad_a Q / (temperature mean |grad_a Q|), free of Q's scale."
        ),
    ] = "alpha"
    temperature: Annotated[
        float, Field(gt=0, description="Temperature of target_scale=normalized; unused else.")
    ] = 0.15

    @property
    def without_effect(self) -> Mapping[str, str]:
        if self.target_scale == "normalized":
            return {"alpha": "it needs target_scale=alpha or target_scale=noised"}
        return {"temperature": "it needs target_scale=normalized"}


class ActorNoise(NamedTuple):
    """The random numbers of one actor update."""

    t: Tensor
    """The diffusion time of each sample, [S, B] int64 in 1..T."""
    noise: Tensor
    """What the replayed actions are noised with, [S, B, act]."""


class QSM(DiffusionAgent[QSMConfig]):
    """Q-score matching."""

    name = "qsm"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = QSMConfig
    presets: ClassVar[NamedSettings] = {
        "qsm_normalized": {"target_scale": "normalized"},
        # The authors' shipped configuration and code, every choice spelled out.
        "qsm_reference": {
            **DIFFUSION_REFERENCE,
            "alpha": 50.0,
            "gradient_of": "mean",
            "target_scale": "alpha",
        },
    }
    # A comment in the authors' configuration, not what it sets, and for these two tasks only.
    task_settings: ClassVar[NamedSettings] = {
        "quadruped-walk": {"alpha": 120.0},
        "humanoid-walk": {"alpha": 120.0},
    }
    # The sampler's last step is one of about 0.49 alpha grad_a Q, so alpha fits the curvature k of
    # Q if alpha k is about 1; tests/benchmarks/ideal_qsm.py prints what an exact score would earn.
    small_task_settings: ClassVar[NamedSettings] = {
        # Between the modes the score jumps: smaller steps do not fit that in time.
        "bimodal-bandit": {"alpha": 0.3, "actor_learning_rate": 0.003},
        "four-goals": {"alpha": 8.0},
        "linear-quadratic": {"alpha": 8.0},
    }

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        return ActorNoise(
            t=1 + self.update_stream.integers(batch_size, high=self.config.diffusion_steps),
            noise=self.update_stream.normal(batch_size, self.action_size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        noisy_action = self.schedule.add_noise(batch.action, noise.t, noise.noise)
        gradient = self.action_gradient(batch.observation, noisy_action)
        predicted = self.denoiser(batch.observation, noisy_action, noise.t)
        loss = (predicted - self.noise_target(gradient, noise.t)).square().mean(dim=(1, 2))
        metrics = {"q_gradient": gradient.norm(dim=-1).mean(dim=-1)}
        if self.config.target_scale == "normalized":
            metrics["temperature"] = self.temperature(gradient).flatten()
        return loss, metrics

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Combine the twin critics' values to what grad_a Q is taken of: [2, S, B] -> [S, B]."""
        return q.mean(dim=0) if self.config.gradient_of == "mean" else q.amin(dim=0)

    def noise_target(self, gradient: Tensor, t: Tensor) -> Tensor:
        """Return what the denoiser is to predict, minus the wanted score: [S, B, act]."""
        if self.config.target_scale == "alpha":
            return -self.config.alpha * gradient
        if self.config.target_scale == "noised":
            return -self.config.alpha * self.schedule.noise_std(t) * gradient
        scale = self.temperature(gradient)
        return -self.schedule.noise_std(t) * gradient / scale.clamp(min=1e-12)

    def temperature(self, gradient: Tensor) -> Tensor:
        """Return what target_scale=normalized divides grad_a Q by: [S, B, act] -> [S, 1, 1]."""
        return self.config.temperature * gradient.abs().mean(dim=(1, 2), keepdim=True)

    @classmethod
    def effective_temperature(cls, config: QSMConfig, metrics: Mapping[str, float]) -> float | None:
        """Return the temperature at t = 1: see the top of this file."""
        if config.target_scale == "normalized":
            return metrics.get("temperature")
        if config.target_scale == "noised":
            return 1 / config.alpha
        schedule = config.make_schedule(torch.device("cpu"))
        return float((1 - schedule.abar[1]).sqrt()) / config.alpha
