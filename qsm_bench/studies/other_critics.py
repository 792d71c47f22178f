"""QSM with another number of critics, or critics of another width, than its actor's.

The shared settings have one width for every network, and every trainer here has twin critics; what
that choice costs is asked of QSM alone, so it is an agent of its own, outside of the built-in ones.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.common.networks import MLP
from agents.common.optimizer import Adam
from agents.common.streams import SeedStreams
from agents.protocol import AgentConfig, NamedSettings
from agents.qsm import QSM, QSMConfig


@dataclass(frozen=True)
class OtherCriticsConfig(QSMConfig):
    """Settings of QSM whose critics are chosen apart from the actor."""

    critics: Annotated[
        int, Field(gt=0, description="Number of critics; the target is the smallest value.")
    ] = 1
    critic_hidden_sizes: Annotated[
        tuple[Annotated[int, Field(gt=0)], ...],
        Field(min_length=1, description="Widths of the hidden layers of each critic."),
    ] = (512, 512)


class Critics(nn.Module):
    """Some Q networks per seed: ([S, B, obs], [S, B, act]) -> [critics, S, B]."""

    def __init__(
        self, config: OtherCriticsConfig, inputs: int, outputs: int, streams: SeedStreams
    ) -> None:
        super().__init__()
        self.critics = config.critics
        sizes = (inputs + outputs, *config.critic_hidden_sizes, 1)
        self.mlp = MLP(sizes, streams, config.networks, twins=config.critics)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([observation, action], dim=-1).repeat(self.critics, 1, 1)
        out: Tensor = self.mlp(x).view(self.critics, *action.shape[:2])
        return out


class QSMWithOtherCritics(QSM):
    """QSM; of all critics together where QSM has the mean or the smaller of its twins."""

    name = "qsm_other_critics"
    config_class: ClassVar[type[AgentConfig]] = OtherCriticsConfig
    presets: ClassVar[NamedSettings] = {}

    def __init__(
        self,
        config: OtherCriticsConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__(config, observation_size, action_size, seeds, device)
        weights = self.stream("critic weights")
        self.critic = Critics(config, observation_size, action_size, weights)  # type: ignore[assignment]
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
