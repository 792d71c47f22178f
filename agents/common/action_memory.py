"""What an agent remembers of replayed transitions: one action for each, by the number it has."""

import torch
from torch import Tensor

BLOCK = 1024
"""A memory has a multiple of so many places."""


class ActionMemory:
    """One action for each transition of each of S seeds, found by ``Batch.number``.

    It has a place for every number up to the highest that it was asked for: 4 act + 1 bytes for
    each step of a run, and about a fourth more. What it holds of transitions that the replay buffer
    has overwritten stays, and is never asked for again.
    """

    def __init__(self, seeds: int, action_size: int, device: torch.device) -> None:
        self.actions = torch.zeros(seeds, 0, action_size, device=device)
        self.known = torch.zeros(seeds, 0, dtype=torch.bool, device=device)

    def recall(self, number: Tensor, otherwise: Tensor) -> Tensor:
        """Return what is remembered of transitions, ``otherwise`` where nothing is: [S, B, act].

        ``number`` is [S, B] int64. The memory grows, where it must, to have a place for each.
        """
        self._reach(int(number.max()))
        places = number.unsqueeze(-1)
        known = self.known.unsqueeze(-1).take_along_dim(places, dim=1)
        return torch.where(known, self.actions.take_along_dim(places, dim=1), otherwise)

    def remember(self, number: Tensor, action: Tensor) -> None:
        """Remember the actions [S, B, act] of transitions ``number`` [S, B] that were recalled.

        If a transition is there more than once, the largest entries are kept. Its rows are equal
        but for rounding, and a GPU writes them in no fixed order.
        """
        places = number.unsqueeze(-1).expand_as(action)
        self.actions.scatter_reduce_(1, places, action, "amax", include_self=False)
        self.known.scatter_(1, number, True)

    def _reach(self, number: int) -> None:
        """Have a place for transition ``number``: where there is none, a fourth more are made."""
        if number >= self.known.shape[1]:
            places = BLOCK * (1 + (number + number // 4) // BLOCK)
            self.actions = _longer(self.actions, places)
            self.known = _longer(self.known, places)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the actions, and which transitions have one."""
        return {"actions": self.actions, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what ``state_dict`` returned. Raises ValueError if it has other shapes."""
        actions, known = state["actions"], state["known"]
        seeds, places, size = self.actions.shape
        if actions.shape != (*known.shape, size) or len(known) != seeds:
            raise ValueError(f"actions of {tuple(actions.shape)}, not ({seeds}, any, {size})")
        if known.shape[1] != places:
            self.actions = self.actions.new_zeros(actions.shape)
            self.known = self.known.new_zeros(known.shape)
        self.actions.copy_(actions)
        self.known.copy_(known)


def _longer(places: Tensor, count: int) -> Tensor:
    """Return so many places, [S, count, ...]; those after the given ones are zeros."""
    longer = places.new_zeros(len(places), count, *places.shape[2:])
    longer[:, : places.shape[1]] = places
    return longer
