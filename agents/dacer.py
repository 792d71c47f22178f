"""DACER: diffusion actor-critic with entropy regulator (Wang et al.; NeurIPS 2024; 2405.15177).

The actor climbs the smaller of two Gaussian critics through the whole sampler, as Diffusion-QL's
does. Its actions have noise whose size alpha follows an estimate of the policy's entropy:

    a     = clip( a_theta(s) + c alpha z, -1, 1 )    executed, in the critic's target, in the loss
    L_pi  = -mean min_i mu_i(s, a)                   every second update; the targets move then, too
    L     = log alpha (H + 0.9 A)                    one Adam step every 10,000 updates

The critics are those of DSAC-T, with its loss: see ``agents.common.gaussian_critic``. Their target
is that of the critic j with the smaller target mean at the next action:

    y = R_n + g^n m mubar_j,    y_z = R_n + g^n m ( mubar_j + sdbar_j clip(z, -3, 3) )

So sd_i is the deviation of the return's noise: that of the reward in a task of one step, and 0 in a
deterministic one, where each backup shrinks it to g times what it was. No loss of the actor has it.

H is the mean over the batch's states of the entropy of 200 actions with their noise, by a mixture
of three Gaussians: see ``agents.common.mixture_entropy``. What it does can be said without
training. The actor climbs Q, so at one state its samples collapse to a point. Then H would be
A log(c alpha sqrt(2 pi e)), and alpha would come to rest at
c alpha = e^-0.9 / sqrt(2 pi e) = 0.0984, for any A. Until there Adam's path does not depend on the
policy: with c = 0.1 the noise is 0.30 at first, 0.22 after 100,000 updates, 0.15 after 250,000 and
0.10 after 500,000. In a shorter run DACER is Diffusion-QL with more noise and other critics. The
fit to 200 samples errs, and moves the point where c alpha rests:

    actions A                               1        2        6        21
    error of H of one Gaussian, nats        0.57     0.56     0.05     -2.4
    policy collapsed inside the box         0.057    0.074    0.098    0.110
    policy collapsed to a corner            none     1.0      0.25     0.20

The first two fits split the one Gaussian, for up to log 3 nats; the last has 67 samples for each
covariance of 231 entries. In a corner half of the noise is clipped away, and one of the three
Gaussians shrinks to what lies on the bounds, -5.5 nats a dimension. More noise makes up for it.
With a single action none does, so alpha grows without end. That is the method's own: the errors
of scikit-learn's fit, which the authors use, are within 0.1 nats of these.

An update costs 1.1 of qsm's, and one estimate 49, so 0.005 an update; in time it is 0.01. It takes
all 200 samples at every state of the batch, of a few states at a time, in an update's memory.

Where the authors' code (github.com/happy-yan/DACER-Diffusion-with-Online-RL) and this differ, the
default and the preset:

                        here                        dacer_reference
    diffusion           house's, T = 5              20 steps, a^0 clipped, posterior's variance
    hidden layers       256, 256                    256, 256, 256
    step sizes          0.0003                      0.0001, constant
    rewards             as they are                 times 0.2: reward_unit=5, the same thing

The default keeps T = 5: the authors of flow-rl report that more steps make DACER worse. c is 0.15
in the code for Humanoid and HalfCheetah: exploration_noise. Not to be had: the code has 20
environments and makes one update in 20 steps; its first step of alpha is at the first update, and
its actor moves at odd ones; an evaluated action is the same at every visit of a state. Its networks
all have mish, and their initial weights another law, of xavier's deviation.
DACERv2 is another trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.common.diffusion import DiffusionPolicy, Draw, reparameterized
from agents.common.diffusion_agent import (
    DIFFUSION_REFERENCE,
    ActionNoise,
    DiffusionAgent,
    DiffusionConfig,
    Noise,
)
from agents.common.gaussian_critic import (
    GaussianTwinCritic,
    gaussian_critic_loss,
    less_favorable,
)
from agents.common.learner import Count
from agents.common.mixture_entropy import estimate_entropy
from agents.common.networks import TwinCritic
from agents.common.optimizer import Adam
from agents.protocol import AgentConfig, Batch, NamedSettings

AT_ONCE = 8
"""States whose entropies are estimated at a time: with more it takes more memory than an update."""


@dataclass(frozen=True)
class DACERConfig(DiffusionConfig):
    """Settings of diffusion actor-critic with entropy regulator."""

    exploration_noise: Annotated[
        float,
        Field(
            gt=0,
            description="Standard deviation c of the noise added to a sampled action while "
            "training, in the critic's target and in the actor's loss, if alpha is 1.",
        ),
    ] = 0.1
    policy_delay: Annotated[
        int, Field(gt=0, description="Critic updates per update of the actor and of the targets.")
    ] = 2
    initial_alpha: Annotated[
        float, Field(gt=0, description="Factor alpha of the noise at the start.")
    ] = 3.0
    alpha_learning_rate: Annotated[
        float, Field(gt=0, description="Adam's step size for log alpha.")
    ] = 0.03
    alpha_delay: Annotated[
        int, Field(gt=0, description="Updates per estimate of the entropy and step of log alpha.")
    ] = 10_000
    entropy_per_action: Annotated[
        float, Field(description="Target entropy divided by the number of action dimensions.")
    ] = -0.9
    entropy_samples: Annotated[
        int, Field(ge=3, description="Actions at each state that its entropy is estimated from.")
    ] = 200
    reward_unit: Annotated[
        float,
        Field(
            gt=0,
            description="Reward that the critics' outputs and their loss have as unit. u is the "
            "same as rewards divided by u, but that values stay in the task's own reward.",
        ),
    ] = 1.0


class CriticNoise(NamedTuple):
    """The random numbers of one critic update."""

    chain: Tensor
    """As in ``ActionNoise``."""
    exploration: Tensor
    """As in ``ActionNoise``."""
    value: Tensor
    """What the target's return is drawn with, [S, B]."""


class DACER(DiffusionAgent[DACERConfig]):
    """Value climbed through the sampler, Gaussian critics, noise that follows the entropy."""

    name = "dacer"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DACERConfig
    presets: ClassVar[NamedSettings] = {
        "dacer_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "learning_rate": 1e-4,
            "diffusion_steps": 20,
            "sampler": "x0_clip",
            "variance": "posterior",
            "exploration_noise": 0.1,
            "actor_decay_updates": 0,
            "policy_delay": 2,
            "initial_alpha": 3.0,
            "alpha_learning_rate": 0.03,
            "alpha_delay": 10_000,
            "entropy_per_action": -0.9,
            "entropy_samples": 200,
            "reward_unit": 5.0,
        },
    }
    # Diffusion-QL's, which saturates with larger steps, at half as many actor updates; and alpha
    # takes its whole path within the few updates that there are.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"actor_learning_rate": 2e-4, "alpha_delay": 50, "entropy_samples": 50},
    }
    parts: tuple[str, ...] = (
        *DiffusionAgent.parts,
        "critic_spread",
        "alpha",
        "alpha_optimizer",
        "updates",
    )
    critic: GaussianTwinCritic
    target_critic: GaussianTwinCritic

    def __init__(
        self,
        config: DACERConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        # No gradient moves it; as a parameter it is divided by seeds like one.
        spread = nn.Parameter(torch.zeros(2 * len(seeds), 1, device=device), requires_grad=False)
        self.critic_spread = nn.ParameterDict({"mean": spread})
        start = torch.full((len(seeds), 1), config.initial_alpha, device=device).log()
        self.alpha = nn.ParameterDict({"log": start})
        self.alpha_optimizer = Adam(self.alpha.parameters(), config.alpha_learning_rate)
        self.updates = Count()

    def make_critic(self, observation_size: int) -> TwinCritic:
        return GaussianTwinCritic(
            observation_size,
            self.action_size,
            self.config.hidden_sizes,
            self.stream("critic weights"),
            self.config.networks,
            unit=self.config.reward_unit,
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one critic update, and what else is due after so many; metrics are [S]."""
        metrics = {"alpha": self.noise_scale(), **super().update(batch)}
        if self.updates.value % self.config.alpha_delay == 0:
            metrics["entropy"] = self.entropy(batch.observation)
            self.move_alpha(metrics["entropy"])
        return metrics

    def draw_inputs(self, batch_size: int) -> tuple[Noise, bool]:
        """Draw an update's random numbers, and count: every ``policy_delay``-th moves all."""
        self.updates.value += 1
        (noise,) = super().draw_inputs(batch_size)
        return noise, self.updates.value % self.config.policy_delay == 0

    def draw_critic_noise(self, batch_size: int) -> CriticNoise:
        action: ActionNoise = super().draw_critic_noise(batch_size)
        return CriticNoise(*action, self.update_stream.normal(batch_size))

    def draw_actor_noise(self, batch_size: int) -> ActionNoise:
        return self.draw_action_noise(batch_size, self.update_stream)

    def critic_loss(self, batch: Batch, noise: CriticNoise) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            action = self.next_action(batch.next_observation, noise)
            law = self.target_critic.distribution(batch.next_observation, action)
            target, drawn_target = (
                batch.reward + batch.discount * value for value in less_favorable(*law, noise.value)
            )
        mean, deviation = self.critic.distribution(batch.observation, batch.action)
        spread = self.moved_spread(deviation)
        loss = gaussian_critic_loss(
            mean, deviation, target, drawn_target, spread, self.config.reward_unit
        )
        return loss, {
            "q": mean.detach().mean(dim=(0, 2)),
            "q_deviation": deviation.detach().mean(dim=(0, 2)),
        }

    @torch.no_grad()
    def moved_spread(self, deviation: Tensor) -> Tensor:
        """Move the running mean of the critics' deviations [2, S, B], and return it: [2, S, 1]."""
        now = deviation.mean(dim=-1, keepdim=True)
        spread: Tensor = self.critic_spread["mean"].view_as(now)
        # It is 0 before there is any.
        spread.copy_(torch.where(spread > 0, torch.lerp(spread, now, self.config.polyak), now))
        return spread.clone()

    def actor_loss(self, batch: Batch, noise: ActionNoise) -> tuple[Tensor, dict[str, Tensor]]:
        action = self.exploring_action(self.policy, batch.observation, noise)
        value = self.critic.at_observation(batch.observation)(action).amin(dim=0)
        return -value.mean(dim=-1), {}

    def exploring_action(
        self,
        policy: DiffusionPolicy,
        observation: Tensor,
        noise: ActionNoise | CriticNoise,
        draw: Draw = reparameterized,
        critic: TwinCritic | None = None,
    ) -> Tensor:
        """Sample the policy, and add noise that is alpha times as large."""
        scaled = self.noise_scale().view(-1, 1, 1) * noise.exploration
        return super().exploring_action(
            policy, observation, ActionNoise(noise.chain, scaled), draw, critic
        )

    def noise_scale(self) -> Tensor:
        """Return alpha, held constant: [S]."""
        log: Tensor = self.alpha["log"].detach()
        return log.exp().squeeze(-1)

    @torch.no_grad()
    def entropy(self, observation: Tensor) -> Tensor:
        """Estimate the entropy of actions with their noise, mean over states: [S, B, obs] -> [S].

        The samples' random numbers come from ``update_stream``.
        """
        count = self.config.entropy_samples
        estimates = []
        for states in observation.split(AT_ONCE, dim=1):
            noise = self.draw_action_noise(count * states.shape[1], self.update_stream)
            action = self.exploring_action(self.policy, states, noise)
            samples = action.unflatten(1, (count, -1)).transpose(1, 2)
            estimates.append(estimate_entropy(samples))
        return torch.cat(estimates, dim=1).mean(dim=1)

    def move_alpha(self, entropy: Tensor) -> None:
        """Make one Adam step on log alpha, down if the entropy [S] is above its target."""
        surplus = entropy - self.config.entropy_per_action * self.action_size
        self.alpha_optimizer.minimize(self.alpha["log"].squeeze(-1) * surplus)

    @classmethod
    def effective_temperature(
        cls, config: DACERConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0: the loss climbs Q. The noise has a size that no value decides."""
        return 0.0
