"""The parts every built-in trainer is made of: naming, state, and the critic's regression."""

from typing import Any, Protocol

import torch
from torch import Tensor

from agents.common.networks import TwinCritic
from agents.protocol import Batch, StateDict


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

    parts: tuple[str, ...]

    def _parts(self) -> dict[str, Stateful]:
        return {name: getattr(self, name) for name in self.parts}

    def state_dict(self) -> StateDict:
        """Everything a later ``load_state_dict`` needs to go on bit for bit."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what ``state_dict`` returned. Raises an error if it does not fit."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


class TwinCriticLearner(Learner):
    """A learner with twin critics that can be asked for the value of any action."""

    critic: TwinCritic

    @torch.no_grad()
    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Mean Q of the twin critics: [S, B, obs] and [S, B, act] -> [S, B]."""
        q: Tensor = self.critic(observation, action).mean(dim=0)
        return q


def critic_loss(q: Tensor, batch: Batch, next_value: Tensor) -> Tensor:
    """Mean squared error of the twin critics against y = R_n + g^n m V(s'), [2, S, B] -> [S].

    The losses of the two critics are added, so that each has the gradient it would have alone.
    ``next_value`` [S, B] must carry no gradient.
    """
    target = batch.reward + batch.discount * next_value
    return (q - target).square().mean(dim=-1).sum(dim=0)
