"""What every built-in trainer is: the sum of its saved parts, with twin critics and their loss."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from agents.common.networks import TwinCritic
from agents.common.optimizer import Adam
from agents.common.streams import SeedStreams
from agents.protocol import AgentConfig, Batch, NamedSettings, StateDict


class Stateful(Protocol):
    """A part that can be saved: network, optimizer or random stream."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Count:
    """A number of updates that the host has to know, beside those that the device counts."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> int:
        return self.value

    def load_state_dict(self, state: int) -> None:
        self.value = int(state)


class Learner:
    """Saves and restores an agent as the sum of its parts.

    ``parts`` names the attributes that hold state; whatever is not named there is derived.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    promises_pure_update: ClassVar[bool] = False
    presets: ClassVar[NamedSettings] = {}
    task_settings: ClassVar[NamedSettings] = {}
    small_task_settings: ClassVar[NamedSettings] = {}
    """Settings with which ``regress`` trains on the small tasks: task name pattern -> settings.

    They come on top of those that it gives every trainer: small networks, a larger step size.
    """
    parts: tuple[str, ...]

    def _parts(self) -> dict[str, Stateful]:
        return {name: getattr(self, name) for name in self.parts}

    def state_dict(self) -> StateDict:
        """Return everything that a later ``load_state_dict`` needs to go on bit for bit."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what ``state_dict`` returned. Raises an error if it does not fit."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


ConfigT = TypeVar("ConfigT", bound=AgentConfig)


class TwinCriticLearner(Learner, Generic[ConfigT]):
    """A learner with twin critics, their targets and optimizer, and two random streams."""

    parts: tuple[str, ...] = (
        "critic",
        "target_critic",
        "critic_optimizer",
        "update_stream",
        "explore_stream",
    )

    def __init__(
        self,
        config: ConfigT,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.config = config
        self.action_size = action_size
        self.stream = partial(SeedStreams, seeds, device=device)
        """Call it with a purpose, such as "sample", to get new random streams for it."""
        self.critic = self.make_critic(observation_size)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
        self.update_stream = self.stream("update")
        self.explore_stream = self.stream("explore")

    def make_critic(self, observation_size: int) -> TwinCritic:
        """Return the twin critics as they begin, from the stream "critic weights"."""
        return TwinCritic(
            observation_size,
            self.action_size,
            self.config.hidden_sizes,
            self.stream("critic weights"),
            self.config.networks,
        )

    @torch.no_grad()
    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the mean Q of the twin critics: [S, B, obs] and [S, B, act] -> [S, B]."""
        q: Tensor = self.critic(observation, action).mean(dim=0)
        return q

    @torch.no_grad()
    def best_action(
        self, observation: Tensor, candidates: Tensor, critic: TwinCritic | None = None
    ) -> Tensor:
        """Return the best of K candidates for each observation: [S, K B, act] -> [S, B, act].

        Candidate k of observation b is in row k B + b. The best has the highest value, the smaller
        of both critics', of the online ones unless others are given. One candidate is the best
        without asking them.
        """
        if candidates.shape[1] == observation.shape[1]:
            return candidates
        return choose_best(self.candidate_values(observation, candidates, critic), candidates)

    @torch.no_grad()
    def candidate_values(
        self, observation: Tensor, candidates: Tensor, critic: TwinCritic | None = None
    ) -> Tensor:
        """Return the values of K candidates for each observation: [S, K B, act] -> [S, K, B].

        They are the smaller of both critics', of the online ones unless others are given.
        """
        size = observation.shape[1]
        states = observation.repeat(1, candidates.shape[1] // size, 1)
        q: Tensor = (critic or self.critic)(states, candidates).amin(dim=0)
        return q.view(len(q), -1, size)


def choose_best(value: Tensor, candidates: Tensor) -> Tensor:
    """Return the candidates of the highest values [S, K, B]: [S, K B, act] -> [S, B, act]."""
    best = value.argmax(dim=1, keepdim=True).unsqueeze(-1)
    out: Tensor = candidates.unflatten(1, value.shape[1:]).take_along_dim(best, dim=1)
    return out.squeeze(1)


def critic_loss(q: Tensor, batch: Batch, next_value: Tensor) -> Tensor:
    """Return the mean squared error of the twin critics against y = R_n + g^n m V(s'), [S].

    ``q`` [2, S, B] are the critics' values.

    The losses of the two critics are added, so that each has the gradient it would have alone.
    ``next_value`` [S, B] must carry no gradient.
    """
    target = batch.reward + batch.discount * next_value
    return (q - target).square().mean(dim=-1).sum(dim=0)
