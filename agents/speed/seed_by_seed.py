"""An update of S seeds as S updates of one seed each, of the same agent.

That is how a CPU best runs a compiled update of large networks: one seed's numbers come through the
core's cache once, where every layer of all seeds together would push the one before it out.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agents.common.action_memory import ActionMemory
from agents.common.learner import Count, Learner
from agents.common.optimizer import Adam
from agents.common.streams import SeedStreams
from agents.protocol import Agent

LARGE = 2_000_000
"""The number of parameters of all seeds together from which updating them in turn is faster.

For SAC with hidden layers of 256, 256 it is slower with 2 seeds, as fast with 4 (1.5 million
parameters) and faster with 8.
"""

PureUpdate = Callable[..., dict[str, Tensor]]
"""A function of (agent, *inputs) that returns metrics."""


class SeedBySeed:
    """A pure update of S seeds that calls ``update`` once for each of them."""

    def __init__(self, agent: Learner, seeds: int, update: PureUpdate) -> None:
        self.agents = [_of_one_seed(agent, seed, seeds) for seed in range(seeds)]
        self.update = update
        # All seeds have made the same number of updates, so there is one count of them.
        self.counts = [part.updates for part in _parts(agent) if isinstance(part, Adam)]

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        before = [count.clone() for count in self.counts]
        leaves, structure = pytree.tree_flatten(inputs)
        metrics = []
        for seed, agent in enumerate(self.agents):
            torch._foreach_copy_(self.counts, before)
            own = [x[seed : seed + 1] if isinstance(x, Tensor) else x for x in leaves]
            metrics.append(self.update(agent, *pytree.tree_unflatten(own, structure)))
        return {name: torch.cat([each[name] for each in metrics]) for name in metrics[0]}


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
