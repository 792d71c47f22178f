"""Soft diffusion actor-critic (Ma et al.; ICML 2025; arXiv 2502.00361): weighted draws of a^0.

MaxEntDP (Dong et al.; ICML 2025; arXiv 2502.11612) has the same actor and calls it Q-weighted noise
estimation. The denoiser is fitted to the score of the *noised* Boltzmann policy exp(Q / tau). With
K draws e_k ~ N(0, I), kept in the action box, at each noised replayed action a^t,

    a^0_k = (a^t + sqrt(1 - abar_t) e_k) / sqrt(abar_t)
    w_k   = softmax_k( Q(s, a^0_k) / tau )
    L     = mean || eps_theta(s, a^t, t) - eps* ||^2

the target eps* is a setting:

    estimator=noise       - sum_k w_k e_k: QNE of MaxEntDP, and SDAC
    estimator=gradient    - sqrt((1 - abar_t) / abar_t) sum_k w_k grad_a Q(s, a^0_k) / tau: iDEM
                          (Akhound-Sadegh et al.; ICML 2024)
    estimator=mixture     (1 - eta) times the first plus eta times the second; eta makes the
                          estimated variance of each entry least: the control variate of reverse
                          flow matching (ICML 2026), here in the noise of a diffusion

As K grows the first tends to the score of exp(Q / tau) on the box. The other two leave out what the
bounds of the box add: on Q = 5 a, tau = 1, a^t = 0.5 and T = 5 the noise to predict is -0.47, 0.20
and 0.44 at t = 1, 3 and 5, and the gradient gives -2.5, -12 and -62. Clipped draws have another
target, -1.03, -0.68 and -0.54. All three estimators agree on it, as draws at a bound have no
gradient. Where Q is a parabola, the mixture has no variance at all and is exact but for the bounds,
if draws are not clipped. The gradient's deviation grows with the noise: with K = 64 on the parabola
below it is 0.14, 0.84 and 4.8, where that of the first is 0.06, 0.016 and 0.003.

With one draw, at a^0 = a^t itself, the gradient's target is Q-score matching's of the critics'
minimum, with alpha = sqrt((1 - abar_t) / abar_t) / tau in the place of its constant.

K is 64 here, as in SDAC's code, and an update costs 7 of qsm's, or 13 with gradients; MaxEntDP's
500 draws cost some 50 of them, and with its entropy 100. On Q = -5 (a - 0.3)^2, tau = 1 and
a^t = 0.5, one action, the target at K = 64 has the standard deviation 0.06, 0.016 and 0.003 at
t = 1, 3 and 5; at K = 500 it is 2.8 times smaller. More of them do not help with many actions: at
tau = 0.2 and t = 3, 500 draws count as 131 independent ones with one action, as 2 with six, and as
1.1 with 38. The metric effective_samples is that number.

The house's T = 5 is coarse for a Boltzmann policy: the last step goes to the mean of all a^0 that
a^1, noised by 0.44, may come from, which lies between modes that are close. With the exact score of
tau = 0.1 the samples earn 0.82 on the bimodal bandit, where exp(Q / tau) earns 0.95; with T = 20
they earn 0.94.

Where the two papers' codes differ, the default and what gives the other:

                        here              SDAC's (preset)           MaxEntDP's (preset)
    noised action       replayed          noised_actions=policy     replayed
    critics in w_k      online            online                    weight_critics=target
    box                 truncated draws   proposal=clipped          truncated draws
    critic's target     plain             plain, best of 32         minus tau log pi: entropy_draws
    executed            one sample        best of 32, of the        one sample
                                          averaged actor
    evaluated           one sample        best of 32                best of 10, by target critics
    temperature         0.02              0.98 at the end           0.01 to 0.2 by task; 0.1 here
    diffusion           house's, T = 5    20 steps, linear          20 steps, cosine

The temperature 0.02 is 1 / alpha of qsm's default, its temperature next to pure noise. That of
SDAC's code, and its exploration noise, follow an open loop that never sees the policy: they fall
from 5 times the end's value within some 200,000 updates and stay. sdac_reference has the end's
values, in units of the unscaled reward (the code multiplies rewards by 0.2).

Not to be had: SDAC's one update in five steps, the actor at every second, the step size that falls
to a tenth, and half the deviation of a^T; MaxEntDP's continuous times, with log-SNR for the time
code (its cosine schedule is ours at 20 times), and iDEM with Q divided by its gradient's mean size.
Both codes draw initial weights from other laws; xavier has the deviation of theirs.

With entropy_draws J, the next action's value is Q - tau log pi, where (MaxEntDP)

    log pi(a) = - A/2 log(2 pi e) + sum_t (abar_{t-1} - abar_t) / (2 abar_t (1 - abar_t))
                                      ( A abar_t - E || e - eps_theta(s, a^t, t) ||^2 )

with J draws of e at each t, and eps_theta recomputed from the a^0 that it predicts, clipped to the
box. Without the box it is exact for a normal policy of unit deviation. It never exceeds
A ( - log(2 pi e) / 2 + sum_t (abar_{t-1} - abar_t) / (2 (1 - abar_t)) ), which is 0.93 nats an
action with the 20 cosine times and -0.35 with the house's T = 5, where a policy of the deviation
0.1 has 0.88: the entropy in the target hardly tells narrow policies apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from agents.common.diffusion_agent import (
    DIFFUSION_REFERENCE,
    ActionNoise,
    DiffusionAgent,
    DiffusionConfig,
)
from agents.common.networks import TwinCritic
from agents.common.reverse_posterior import Draws, Proposal, draw_clean
from agents.protocol import AgentConfig, Batch, NamedSettings

AT_ONCE = 64
"""Draws a state whose values are computed at a time: more would take memory and save nothing."""


@dataclass(frozen=True)
class SDACConfig(DiffusionConfig):
    """Settings of soft diffusion actor-critic."""

    temperature: Annotated[
        float, Field(gt=0, description="Temperature tau of the policy exp(Q / tau) that is fitted.")
    ] = 0.02
    samples: Annotated[
        int, Field(gt=0, description="Draws K of the action a^0 behind each noised action.")
    ] = 64
    estimator: Annotated[
        Literal["noise", "gradient", "mixture"],
        Field(
            description="What the draws' weights average to the denoiser's target. noise: their "
            "noise (QNE). gradient: grad_a Q (iDEM). mixture: both, for the least variance (RFM)."
        ),
    ] = "noise"
    proposal: Annotated[
        Proposal,
        Field(
            description="How the draws are kept in the action box. truncated: they are drawn from "
            "the normal law within it. clipped: they are clipped to it, another target."
        ),
    ] = "truncated"
    noised_actions: Annotated[
        Literal["replayed", "policy"],
        Field(
            description="Actions that are noised to a^t: the replayed ones, or the policy's own, "
            "the best of candidates_target."
        ),
    ] = "replayed"
    weight_critics: Annotated[
        Literal["online", "target"],
        Field(description="Critics whose smaller value weighs draws and, evaluated, candidates."),
    ] = "online"
    entropy_draws: Annotated[
        int,
        Field(
            ge=0,
            description="Draws J at each t of the next action's log-density in the critic's "
            "target, which is then soft (MaxEntDP). 0: the target is plain.",
        ),
    ] = 0


class SoftNoise(NamedTuple):
    """The random numbers of a next action and of its log-density."""

    chain: Tensor
    """As in ``ActionNoise``."""
    exploration: Tensor
    """As in ``ActionNoise``."""
    density: Tensor
    """What the next action is noised with, [S, T, J B, act]."""


class ActorNoise(NamedTuple):
    """The random numbers of one actor update."""

    t: Tensor
    """The diffusion time of each sample, [S, B] int64 in 1..T."""
    noise: Tensor
    """What the actions are noised with, [S, B, act]."""
    chain: Tensor
    """The sampler's noise of the actions to be noised, [S, T, N B, act]; N = 0 if replayed."""
    uniform: Tensor
    """What the draws of a^0 come from, [S, K, B, act] in [0, 1)."""


class SDAC(DiffusionAgent[SDACConfig]):
    """Soft diffusion actor-critic: the score of the noised Boltzmann policy, by weighted draws."""

    name = "sdac"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = SDACConfig
    presets: ClassVar[NamedSettings] = {
        "maxentdp": {"weight_critics": "target", "entropy_draws": 8},
        "idem": {"estimator": "gradient"},
        "sdac_mixture": {"estimator": "mixture"},
        "sdac_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "diffusion_steps": 20,
            "schedule": "linear",
            "sampler": "x0_clip",
            "variance": "posterior",
            "exploration_noise": 0.0984,
            "actor_decay_updates": 0,
            "ema_acts": True,
            "candidates_target": 32,
            "candidates_act": 32,
            "candidates_evaluate": 32,
            "temperature": 0.984,
            "samples": 64,
            "estimator": "noise",
            "proposal": "clipped",
            "noised_actions": "policy",
            "weight_critics": "online",
            "entropy_draws": 0,
        },
        "maxentdp_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256),
            "diffusion_steps": 20,
            "schedule": "cosine",
            "sampler": "x0_clip",
            "variance": "beta",
            "exploration_noise": 0.0,
            "candidates_evaluate": 10,
            "temperature": 0.1,
            "samples": 500,
            "estimator": "noise",
            "proposal": "truncated",
            "noised_actions": "replayed",
            "weight_critics": "target",
            "entropy_draws": 50,
        },
    }
    # Rewards of the small tasks differ by about one along an action. They have at most two entries
    # an action: an eighth of the draws does, and keeps the regression short.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"temperature": 0.1, "samples": 8},
        "bimodal-bandit": {"diffusion_steps": 20, "actor_learning_rate": 0.003},
    }

    @property
    def weighing_critic(self) -> TwinCritic:
        """The critics that weigh draws."""
        return self.critic if self.config.weight_critics == "online" else self.target_critic

    def draw_critic_noise(self, batch_size: int) -> ActionNoise | SoftNoise:
        action: ActionNoise = super().draw_critic_noise(batch_size)
        rows = self.config.entropy_draws * batch_size
        if not rows:
            return action
        steps = self.config.diffusion_steps
        return SoftNoise(*action, self.update_stream.normal(steps, rows, self.action_size))

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        stream, steps = self.update_stream, self.config.diffusion_steps
        own = self.config.noised_actions == "policy"
        candidates = self.config.candidates_target if own else 0
        return ActorNoise(
            t=1 + stream.integers(batch_size, high=steps),
            noise=stream.normal(batch_size, self.action_size),
            chain=stream.normal(steps, candidates * batch_size, self.action_size),
            uniform=stream.uniform(self.config.samples, batch_size, self.action_size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        action = self.action_to_noise(batch, noise.chain)
        noisy = self.schedule.add_noise(action, noise.t, noise.noise)
        draws = draw_clean(self.schedule, noisy, noise.t, noise.uniform, self.config.proposal)
        target, weight = self.noise_target(batch.observation, draws, noise.t)
        predicted = self.denoiser(batch.observation, noisy, noise.t)
        loss = (predicted - target).square().mean(dim=(1, 2))
        return loss, {"effective_samples": (1 / weight.square().sum(dim=1)).mean(dim=-1)}

    @torch.no_grad()
    def action_to_noise(self, batch: Batch, chain: Tensor) -> Tensor:
        """Return the actions that are noised to a^t, [S, B, act]."""
        if self.config.noised_actions == "replayed":
            return batch.action
        candidates = self.policy.sample(batch.observation, chain)
        return self.best_action(batch.observation, candidates)

    def noise_target(self, observation: Tensor, draws: Draws, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser is to predict, and the draws' weights: [S, B, act], [S, K, B].

        ``draws`` are K of the actions behind each noised one, at its time ``t`` [S, B].
        """
        value, gradient = self.values_and_gradients(observation, draws.clean)
        weight = (value / self.config.temperature).softmax(dim=1)
        share = weight.unsqueeze(-1)
        noise = -draws.noise
        if gradient is None:
            return (share * noise).sum(dim=1), weight
        if self.config.proposal == "clipped":
            # What is clipped to a bound does not move with a^t.
            gradient = gradient * (draws.clean.abs() < 1.0)
        odds = self.schedule.noise_std(t) / self.schedule.signal(t) / self.config.temperature
        climb = -odds.unsqueeze(1) * gradient
        if self.config.estimator == "gradient":
            return (share * climb).sum(dim=1), weight
        return mixed(share, noise, climb), weight

    def values_and_gradients(
        self, observation: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return Q [S, K, B] of draws [S, K, B, act] and, if it is asked for, grad_a Q."""
        values, gradients = [], []
        for part in action.split(AT_ONCE, dim=1):
            actions = part.flatten(1, 2)
            if self.config.estimator == "noise":
                value = self.candidate_values(observation, actions, self.weighing_critic)
            else:
                states = observation.repeat(1, part.shape[1], 1)
                critic = self.weighing_critic.at_observation(states)
                value, gradient = self.value_and_gradient(critic, actions)
                value = value.view(part.shape[:3])
                gradients.append(gradient.view(part.shape))
            values.append(value)
        return torch.cat(values, dim=1), torch.cat(gradients, dim=1) if gradients else None

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Return the smaller of the twin critics' values: [2, S, B] -> [S, B]."""
        return q.amin(dim=0)

    def best_action(
        self, observation: Tensor, candidates: Tensor, critic: TwinCritic | None = None
    ) -> Tensor:
        """Return the best of K candidates, by the critics that weigh draws."""
        return super().best_action(observation, candidates, self.weighing_critic)

    def next_value(self, observation: Tensor, action: Tensor, noise: Any) -> Tensor:
        value = super().next_value(observation, action, noise)
        if not self.config.entropy_draws:
            return value
        log_density = self.log_density(observation, action, noise.density)
        return value - self.config.temperature * log_density

    def log_density(self, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Estimate log pi(a | s) of the target's policy: [S, B, act] -> [S, B]; see the top.

        ``noise`` [S, T, J B, act] is what the actions are noised with at t = 1..T.
        """
        schedule, size = self.schedule, self.action_size
        copies = noise.shape[2] // action.shape[1]
        denoise = self.target_policy.denoiser.at_observation(observation, copies)
        action = action.repeat(1, copies, 1)
        total = torch.full_like(action[..., 0], -0.5 * size * math.log(2 * math.pi * math.e))
        for t in range(1, schedule.steps + 1):
            signal, deviation = schedule.abar[t].sqrt(), (1 - schedule.abar[t]).sqrt()
            noisy = signal * action + deviation * noise[:, t - 1]
            clean = schedule.predicted_clean(noisy, denoise(noisy, t), t)
            # e - eps_theta of the noisy action is this difference, in units of the noise.
            error = signal / deviation * (clean - action)
            gained = size * schedule.abar[t] - error.square().sum(dim=-1)
            step = schedule.abar[t - 1] - schedule.abar[t]
            total = total + step / (2 * signal.square() * deviation.square()) * gained
        log_density: Tensor = total.unflatten(1, (copies, -1)).mean(dim=1)
        return log_density

    @classmethod
    def effective_temperature(
        cls, config: SDACConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return the temperature: exp(Q / tau) is the policy whose noised score is fitted."""
        return config.temperature


def mixed(share: Tensor, noise: Tensor, climb: Tensor) -> Tensor:
    """Mix two estimates of one target, of K draws each, for the least variance: [S, B, act].

    ``share`` [S, K, B, 1] are the draws' weights; what they average is ``noise`` and ``climb``,
    [S, K, B, act]. The variance of a weighted mean is about sum w_k^2 (x_k - mean)^2; the mixture
    (1 - eta) noise + eta climb with the eta in [0, 1] that makes it least is returned.
    """
    apart = noise - climb
    mean, mean_apart = ((share * x).sum(dim=1, keepdim=True) for x in (noise, apart))
    around = share.square() * (apart - mean_apart)
    wanted = (around * (noise - mean)).sum(dim=1)
    eta = (wanted / (around * (apart - mean_apart)).sum(dim=1).clamp(min=1e-12)).clamp(0.0, 1.0)
    return mean.squeeze(1) - eta * mean_apart.squeeze(1)
