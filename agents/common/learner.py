"""What every built-in trainer is: the sum of its saved parts, with twin critics and their loss."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from agents.common.networks import TwinCritic
from agents.common.optimizer import Adam
from agents.common.streams import SeedStreams
from agents.protocol import AgentConfig, Batch, NamedSettings, StateDict

PureUpdate = Callable[..., dict[str, Tensor]]
"""A function of (batch, *inputs) that makes an update and returns metrics."""


def each_in_turn(update: PureUpdate, inputs: Sequence[tuple[Any, ...]]) -> list[dict[str, Tensor]]:
    """Make an update with each of ``inputs``, at once if ``update`` has a way; return metrics."""
    if several := getattr(update, "several", None):
        metrics: list[dict[str, Tensor]] = several(inputs)
        return metrics
    return [update(*each) for each in inputs]


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
    """Makes updates, and saves and restores an agent as the sum of its parts.

    ``parts`` names the attributes that hold state; whatever is not named there is derived.

    An update is two methods: ``draw_inputs``, and ``pure_update(batch, *inputs)``, which returns
    metrics [S]. See ``agents.speed.acceleration`` for what pure means.
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
    pure_update: PureUpdate

    def draw_inputs(self, batch_size: int) -> tuple[Any, ...]:
        """Return what ``pure_update`` takes beside a batch of that size: noise and switches.

        All random numbers of an update are drawn here, from ``update_stream``, and updates are
        counted here. What learns is not looked at: the inputs of several updates are drawn at once.
        """
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update; metrics are [S]."""
        return self.pure_update(*self.with_inputs(batch))

    def update_several(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Make an update with each batch, in order; return the metrics of each.

        It is what so many calls of ``update`` are, but all random numbers are drawn first. That
        takes a class which promises a pure update, and adds nothing to it in ``update``.
        """
        own = vars(type(self)).get("promises_pure_update")
        if not own or type(self).update is not Learner.update:
            return [self.update(batch) for batch in batches]
        return each_in_turn(self.pure_update, [self.with_inputs(batch) for batch in batches])

    def with_inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Return all that ``pure_update`` takes: the batch without its numbers, and new inputs."""
        return batch._replace(number=None), *self.draw_inputs(batch.action.shape[1])

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
        # What it is added to can be differentiated by. So can what requires_grad_() is called on,
        # but torch 2.11 does not compile that.
        self.zero = torch.zeros((), device=device, requires_grad=True)
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

    def action_gradient(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return grad_a Q(s, a) of the online critics, held constant: [S, B, act]."""
        return self.value_and_gradient(self.critic.at_observation(observation), action)[1]

    def value_and_gradient(
        self, critic: Callable[[Tensor], Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return Q(s, a) and grad_a Q(s, a), both held constant: [S, B] and [S, B, act].

        ``critic`` is what ``TwinCritic.at_observation`` returns.
        """
        with torch.enable_grad():
            action = action.detach() + self.zero
            value = self.differentiated_value(critic(action))
            return value.detach(), torch.autograd.grad(value.sum(), action)[0]

    def differentiated_value(self, q: Tensor) -> Tensor:
        """Combine the twin critics' values to what grad_a Q is taken of: [2, S, B] -> [S, B]."""
        return q.mean(dim=0)


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
