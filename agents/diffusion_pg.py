"""The diffusion policy gradient (Psenka et al., arXiv 2312.11752; eq. 7-9, Theorem B.1).

The T reverse steps are the policy's internal actions, so the likelihood-ratio gradient sums over
them:

    grad J = E[ Q(s, a^0) sum_{t=1..T} grad log pi_theta(a^{t-1} | a^t, s) ]             (eq. 9)

The chain that is graded is the one that is executed while training, drawn by the same sampler:

    t = T..2    a^{t-1} = clip(u),  u ~ N(mu_theta(a^t, s, t), beta_t I)
    t = 1       a^0     = clip(u),  u ~ N(clip(mu_theta(a^1, s, 1)), sigma^2 I)

The last step has no noise in the sampler; there the exploration noise (sigma) is its density. Each
factor of eq. 9 is the density of u, the sample before its clip, held constant: clipping it is part
of what follows, as the task is. The sampler clips the last mean before noise is added, so an entry
of that mean outside the action box has no gradient in the last factor: moving it changes no action.

The authors' code (github.com/Alescontrela/score_matching_rl) measures each step's distance from a^t
instead of from mu_theta and lets the gradient run through the sample, so that on Q = a its gradient
has the wrong sign. No setting gives that; all else is as in eq. 9, or a setting. Initial weights
are uniform, torch's own; that code has initialization=xavier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from agents.common.diffusion_agent import ActionNoise, DiffusionAgent, DiffusionConfig
from agents.protocol import AgentConfig, Batch, NamedSettings


@dataclass(frozen=True)
class DiffusionPGConfig(DiffusionConfig):
    """Settings of the diffusion policy gradient."""

    chains: Annotated[
        int, Field(gt=0, description="Sampled chains K of each replayed state in an update.")
    ] = 4
    baseline: Annotated[
        Literal["leave_one_out", "none"],
        Field(
            description="Subtracted from each chain's Q: the mean Q of the state's other chains, "
            "or nothing (eq. 9 as written). Both leave the gradient unbiased."
        ),
    ] = "leave_one_out"
    scale_advantage: Annotated[
        bool,
        Field(description="Divide the advantage by its standard deviation in the batch."),
    ] = True

    def __post_init__(self) -> None:
        """Raise ValueError for a baseline that has no other chain to be the mean of."""
        if self.baseline == "leave_one_out" and self.chains < 2:
            raise ValueError("baseline leave_one_out needs chains >= 2; use baseline=none")
        if self.exploration_noise == 0:
            raise ValueError("exploration_noise must be above 0: it is the last step's density")


class DiffusionPG(DiffusionAgent[DiffusionPGConfig]):
    """Likelihood-ratio policy gradient over the sampler's steps (eq. 9)."""

    name = "diffusion_pg"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DiffusionPGConfig
    presets: ClassVar[NamedSettings] = {
        "diffusion_pg_literal": {"chains": 1, "baseline": "none", "scale_advantage": False},
    }
    # With a step size as large as the critic's, the actor saturates at a bound, where clipped means
    # have no gradient, before the critic has learned anything.
    small_task_settings: ClassVar[NamedSettings] = {
        "*": {"actor_learning_rate": 1e-4},
    }

    def draw_actor_noise(self, batch_size: int) -> Tensor:
        """Draw the noise of K chains a state, [S, T + 1, K B, act]: a^T, then z of t = T..1."""
        chains = self.config.chains * batch_size
        return self.update_stream.normal(self.config.diffusion_steps + 1, chains, self.action_size)

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chains = self.config.chains
        action, log_density = self.sampled_chains(batch.observation, noise)
        observation = batch.observation.repeat(1, chains, 1)
        q = self.critic(observation, action).detach().amin(dim=0)
        advantage = self.advantage(q.unflatten(1, (chains, -1))).flatten(1)
        return -(advantage * log_density).mean(dim=-1), {}

    def sampled_chains(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Run K chains per state: executed actions [S, K B, act] and log-densities [S, K B].

        The log-density is that of the chain's internal actions given a^T, up to a constant; its
        gradient runs through the means alone, never through a sample.
        """
        log_densities: list[Tensor] = []

        def draw(mean: Tensor, std: float, noise: Tensor) -> Tensor:
            drawn = (mean + std * noise).detach()
            log_densities.append(-((drawn - mean) / std).square().sum(dim=-1) / 2)
            return drawn

        of_chains = ActionNoise(chain=noise[:, :-1], exploration=noise[:, -1])
        action = self.exploring_action(self.policy, observation, of_chains, draw)
        return action, torch.stack(log_densities).sum(dim=0)

    def advantage(self, q: Tensor) -> Tensor:
        """Turn the chains' Q into the weights of their log-densities: [S, K, B] -> [S, K, B]."""
        if self.config.baseline == "leave_one_out":
            chains = self.config.chains
            q = (q - q.mean(dim=1, keepdim=True)) * (chains / (chains - 1))
        if self.config.scale_advantage:
            q = q / q.std(dim=(1, 2), keepdim=True).clamp(min=1e-8)
        return q

    @classmethod
    def effective_temperature(
        cls, config: DiffusionPGConfig, metrics: Mapping[str, float]
    ) -> float | None:
        """Return 0: the gradient is that of E[Q]."""
        return 0.0
