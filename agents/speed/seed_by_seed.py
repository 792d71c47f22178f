"""An update of S seeds as S updates of one seed each, of the same agent.

That is how a CPU best runs a compiled update of large networks: one seed's numbers come through the
core's cache once, where every layer of all seeds together would push the one before it out.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agents.common.action_memory import ActionMemory
from agents.common.learner import Count, Learner, PureUpdate, each_in_turn
from agents.common.optimizer import Adam
from agents.common.streams import SeedStreams
from agents.protocol import Agent

LARGE = 2_000_000
"""The number of parameters of all seeds together from which updating them in turn is faster.

For SAC with hidden layers of 256, 256 it is slower with 2 seeds, as fast with 4 (1.5 million
parameters) and faster with 8.
"""


class SeedBySeed:
    """A pure update of S seeds that makes the one of each of them, which ``update_of`` returns."""

    def __init__(
        self, agent: Learner, seeds: int, update_of: Callable[[Learner], PureUpdate]
    ) -> None:
        self.updates = [update_of(_of_one_seed(agent, seed, seeds)) for seed in range(seeds)]
        # All seeds have made the same number of updates, so there is one count of them.
        self.counts = [part.updates for part in _parts(agent) if isinstance(part, Adam)]

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self.several([inputs])[0]

    def several(self, inputs: Sequence[tuple[Any, ...]]) -> list[dict[str, Tensor]]:
        """Make an update with each of ``inputs``: all of the first seed, then of the next."""
        before = [count.clone() for count in self.counts]
        metrics = []
        for seed, update in enumerate(self.updates):
            torch._foreach_copy_(self.counts, before)
            metrics.append(each_in_turn(update, [_of_seed(each, seed) for each in inputs]))
        return [
            {name: torch.cat([one[name] for one in of_seeds]) for name in of_seeds[0]}
            for of_seeds in zip(*metrics, strict=True)
        ]


def _of_seed(inputs: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    """The part of the inputs of an update that is one seed's."""
    own: tuple[Any, ...] = pytree.tree_map_only(Tensor, lambda x: x[seed : seed + 1], inputs)
    return own


def is_large(agent: Agent) -> TypeGuard[Learner]:
    """Tell whether seed by seed is faster, and possible: every part can be split by seeds."""
    if not isinstance(agent, Learner):
        return False
    parts = _parts(agent)
    networks = [part for part in parts if isinstance(part, nn.Module)]
    size = sum(p.numel() for network in networks for p in network.parameters())
    return size >= LARGE and all(
        isinstance(part, nn.Module | Adam | SeedStreams | Count | ActionMemory) for part in parts
    )


def _parts(agent: Learner) -> list[Any]:
    return [getattr(agent, name) for name in agent.parts]


def _of_one_seed(agent: Learner, seed: int, seeds: int) -> Learner:
    """Copy the agent for one seed; its parameters and moments are views of those of all seeds."""

    def view(members: Tensor) -> Tensor:
        # Member m belongs to seed m mod S: see agents.common.networks.
        return members.detach().view(-1, seeds, *members.shape[1:])[:, seed]

    copies: dict[int, Any] = {}
    for part in _parts(agent):
        if isinstance(part, nn.Module):
            for p in part.parameters():
                copies[id(p)] = nn.Parameter(view(p), p.requires_grad)
        elif isinstance(part, Adam):
            for moment in (*part.first_moments, *part.second_moments):
                copies[id(moment)] = view(moment)
            copies[id(part.updates)] = part.updates
        else:  # a pure update uses no streams and no memory, and counts nothing on the host
            copies[id(part)] = part
    return copy.deepcopy(agent, copies)
