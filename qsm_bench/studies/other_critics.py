"""QSM with another number of critics, or critics of another width, than its actor's.

The shared settings have one width for every network, and every trainer here has twin critics; what
that choice costs is asked of QSM alone, so it is an agent of its own, outside of the built-in ones.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from agents.common.networks import TwinCritic
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


class QSMWithOtherCritics(QSM):
    """QSM; of all critics together where QSM has the mean or the smaller of its twins."""

    name = "qsm_other_critics"
    config_class: ClassVar[type[AgentConfig]] = OtherCriticsConfig
    presets: ClassVar[NamedSettings] = {}
    config: OtherCriticsConfig

    def make_critic(self, observation_size: int) -> TwinCritic:
        """Return the critics as they begin."""
        return TwinCritic(
            observation_size,
            self.action_size,
            self.config.critic_hidden_sizes,
            self.stream("critic weights"),
            self.config.networks,
            twins=self.config.critics,
        )
