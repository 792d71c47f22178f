"""Diffusion policy for model-free online RL (Yang et al.; 2023; arXiv 2305.13122): DIPO.

Replayed actions are improved by climbing Q, and the denoiser imitates the improved ones:

    a_hat <- clip( a_hat + Adam( grad_a min_i Q_i(s, a_hat) ) ),  20 times, with fresh moments
    L      = mean || eps - eps_theta(s, a^t, t) ||^2,  where a^t is a_hat, noised

Before each of the 20 steps the gradient of the whole batch is clipped to the norm 0.1 A, with A the
entries of an action. With ``write_back`` what comes out is remembered in the place of the
transition's action, and the next burst that meets it goes on from there; the critic goes on
learning from the executed action.

The paper writes back, and so does ``dipo``. The authors' code (github.com/BellmanTimeHut/DIPO) does
not: it writes into the copy that NumPy makes of the rows it picks. What was trained for the paper
is thus write_back=false, as ``dipo_reference`` has it: each replayed action, moved by one burst.

Adam divides by the gradient's size, so a burst is as long whatever Q's scale is. On
Q = -k (a - 0.9)^2 it moves a batch of 256 actions from -0.9 by 0.599, or by 0.586 without the clip,
for every k from 0.1 to 100. It moves no action by more than 0.6353, whatever Q is. From 0.25 it
ends within 0.007 of an optimum at 0.3. So with write_back=false a_hat stays that near the replayed
action. With write_back=true it gets from -0.9 to 0.9 in three visits, and starts the next from
where older critics have led it. Every action climbs the hill that it is on: a policy that covers
two modes keeps both. Nothing explores but the policy's own spread and the noise added.

L is least where eps_theta(s, a^t, t) = (a^t - sqrt(abar_t) a_hat) / sqrt(1 - abar_t) if a state has
one a_hat; it is 0 there. An update costs 4.6 of qsm's, for 20 gradients of both critics instead of
one; with 100 diffusion steps it is 9 in equal networks. With write_back the memory has 4 A + 1
bytes for every step of each seed, in checkpoints, too.

Where the authors' code and this differ, the default and the preset:

                        here                        dipo_reference
    written back        yes                         no
    diffusion           house's, T = 5              100 steps, cosine, a^0 clipped, variance of
                                                    the posterior
    executed            one sample, noise 0.1       one sample, no noise added
    critic's target     the same                    one sample of the averaged actor, no noise
    evaluated           one sample                  the chain's means, from a random a^T
    hidden layers       256, 256                    256, 256, 256 (its README: 256, 256)
    step sizes          0.0003, actor decaying      0.0003, constant

For some tasks the code has other numbers: 40 steps on HalfCheetah, and the norm 0.3 on Hopper and
0.08 on Walker2d and HalfCheetah: action_steps, action_norm. Not to be had, and the same in the
preset: networks' gradients clipped to the norm 2, 1e-5 in their Adam's denominator, mish in
critics, normal initial weights of the deviation 1/(2 sqrt(i)), a batch of its own for the actor,
and the average that follows every second update on HalfCheetah. The code takes the end of an
episode by its time limit for a termination, which is a defect on tasks without one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from agents.common.action_memory import ActionMemory
from agents.common.diffusion_agent import DIFFUSION_REFERENCE, DiffusionAgent, DiffusionConfig
from agents.common.optimizer import FIRST_DECAY, SECOND_DECAY
from agents.protocol import AgentConfig, Batch, NamedSettings

EPSILON = 1e-5
"""What Adam adds to its denominator where it improves actions."""


@dataclass(frozen=True)
class DIPOConfig(DiffusionConfig):
    """Settings of DIPO."""

    write_back: Annotated[
        bool,
        Field(
            description="Whether improved actions are remembered and improved further the next "
            "time. true: the paper's. false: what the authors' code does."
        ),
    ] = True
    action_steps: Annotated[
        int, Field(gt=0, description="Adam's steps in which a batch's actions are improved.")
    ] = 20
    action_step_size: Annotated[float, Field(gt=0, description="Adam's step size there.")] = 0.03
    action_norm: Annotated[
        float,
        Field(
            ge=0,
            description="Norm that the gradient of a batch of actions is clipped to, for each "
            "entry of an action; 0: it is not clipped.",
        ),
    ] = 0.1
    evaluation: Annotated[
        Literal["sample", "means"],
        Field(
            description="Action when evaluated: a sample of the policy, or what the chain leads to "
            "from a random a^T without further noise."
        ),
    ] = "sample"


class ActorNoise(NamedTuple):
    """The random numbers of one actor update, and the actions that it improves."""

    t: Tensor
    """The diffusion time of each sample, [S, B] int64 in 1..T."""
    noise: Tensor
    """What the improved actions are noised with, [S, B, act]."""
    start: Tensor | None = None
    """The actions to improve, [S, B, act]; None: the replayed ones."""


class DIPO(DiffusionAgent[DIPOConfig]):
    """Imitation of replayed actions that have climbed Q."""

    name = "dipo"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DIPOConfig
    presets: ClassVar[NamedSettings] = {
        "dipo_reference": {
            **DIFFUSION_REFERENCE,
            "hidden_sizes": (256, 256, 256),
            "initialization": "uniform",
            "diffusion_steps": 100,
            "schedule": "cosine",
            "sampler": "x0_clip",
            "variance": "posterior",
            "exploration_noise": 0.0,
            "actor_decay_updates": 0,
            "ema_target": True,
            "write_back": False,
            "action_steps": 20,
            "action_step_size": 0.03,
            "action_norm": 0.1,
            "evaluation": "means",
        },
    }
    # As long a burst in fewer steps keeps the regression short. With T = 5 the sampler's last step
    # goes to the mean of what is noised by 0.44, between the modes.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"action_steps": 6, "action_step_size": 0.1},
        "bimodal-bandit": {"diffusion_steps": 20, "actor_learning_rate": 0.003},
    }

    def __init__(
        self,
        config: DIPOConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        if config.write_back:
            self.memory = ActionMemory(len(seeds), action_size, device)
            self.parts = (*self.parts, "memory")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update of critic, target and actor; metrics are [S].

        Raises ValueError if actions are written back, and the batch does not say whose they are.
        """
        if not self.config.write_back:
            return super().update(batch)
        number = batch.number
        if number is None:
            raise ValueError("write_back needs a batch with the numbers of its transitions")
        batch, noise = self.with_inputs(batch)
        start = self.memory.recall(number, batch.action)
        noise = noise._replace(actor=noise.actor._replace(start=start))
        metrics = self.pure_update(batch, noise)
        self.memory.remember(number, metrics.pop("improved"))
        return metrics

    def draw_actor_noise(self, batch_size: int) -> ActorNoise:
        return ActorNoise(
            t=1 + self.update_stream.integers(batch_size, high=self.config.diffusion_steps),
            noise=self.update_stream.normal(batch_size, self.action_size),
        )

    def actor_loss(self, batch: Batch, noise: ActorNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [S], and metrics of shape [S].

        With ``write_back`` the improved actions [S, B, act] are among the metrics, for ``update``
        to take out: a pure update has no other way to return them.
        """
        start = batch.action if noise.start is None else noise.start
        improved = self.improve(batch.observation, start)
        noisy = self.schedule.add_noise(improved, noise.t, noise.noise)
        predicted = self.denoiser(batch.observation, noisy, noise.t)
        loss = (predicted - noise.noise).square().mean(dim=(1, 2))
        metrics = {"moved": (improved - batch.action).abs().mean(dim=(1, 2))}
        if self.config.write_back:
            metrics["improved"] = improved
        return loss, metrics

    def improve(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the actions [S, B, act] after a burst of Adam up the smaller Q, in the box."""
        c = self.config
        limit = c.action_norm * self.action_size
        critic = self.critic.at_observation(observation)
        first = second = torch.zeros_like(action)
        for step in range(1, c.action_steps + 1):
            _, gradient = self.value_and_gradient(critic, action)
            if limit:
                norm = gradient.square().sum(dim=(1, 2), keepdim=True).sqrt()
                gradient = gradient * (limit / (norm + 1e-6)).clamp(max=1.0)
            first = first.lerp(gradient, 1 - FIRST_DECAY)
            second = second.lerp(gradient.square(), 1 - SECOND_DECAY)
            size = (second / (1 - SECOND_DECAY**step)).sqrt() + EPSILON
            move = first / (1 - FIRST_DECAY**step) / size
            action = (action + c.action_step_size * move).clamp(-1.0, 1.0)
        return action

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Return the smaller of the twin critics' values: [2, S, B] -> [S, B]."""
        return q.amin(dim=0)

    def pure_evaluation_action(self, observation: Tensor, noise: Tensor) -> Tensor:
        if self.config.evaluation == "sample":
            return super().pure_evaluation_action(observation, noise)
        action = self.acting_policy.sample(observation, noise, lambda mean, std, noise: mean)
        return self.best_action(observation, action)

    @classmethod
    def effective_temperature(
        cls, config: DIPOConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0: what is imitated has climbed Q."""
        return 0.0
