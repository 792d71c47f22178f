"""A compiled update of one agent, and many of them in a row.

Around its kernels a compiled function looks at its inputs, collects the agent's tensors, and puts
its results in order, all in Python. An update leaves nothing of Python in a core's cache, so that
takes 0.5 ms of SAC's 8. Of several updates in a row only the first is called like that: it is
recorded which tensors the kernels were given. For the others they are called directly, with other
batches and noise in their places.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.speed.program import Call, Kernels, Program

Metrics = dict[str, Tensor]


class CompiledUpdate:
    """A pure update of one agent that is a compiled program."""

    def __init__(self, program: Program, agent: Any) -> None:
        self.program = program
        self.agent = agent
        self.direct: dict[tuple[Any, ...], DirectUpdate | None] = {}
        """By the kind of its inputs, the update as a call of its kernels; None if it is more."""

    def __call__(self, *inputs: Any) -> Metrics:
        metrics: Metrics = self.program(self.agent, *inputs)
        return metrics

    def several(self, inputs: Sequence[tuple[Any, ...]]) -> list[Metrics]:
        """Make an update with each of ``inputs``, in order; return the metrics of each."""
        if not self.program.recorded:
            return [self(*each) for each in inputs]
        flat = [pytree.tree_leaves(each) for each in inputs]
        kinds = [tuple(map(_kind, leaves)) for leaves in flat]
        direct = [one for one in map(self.direct.get, kinds) if one]
        if len(direct) < len(inputs):
            return [self._alone(*each) for each in zip(inputs, flat, kinds, strict=True)]
        # Between the calls is as little as can be.
        arguments = [one.arguments_of(leaves) for one, leaves in zip(direct, flat, strict=True)]
        with torch.no_grad():
            results = [one.kernels(given) for one, given in zip(direct, arguments, strict=True)]
        return [one.metrics_of(found) for one, found in zip(direct, results, strict=True)]

    def _alone(self, inputs: tuple[Any, ...], leaves: list[Any], kind: tuple[Any, ...]) -> Metrics:
        """Make an update as the program does it; record the first of its kind."""
        metrics: Metrics
        if kind in self.direct:
            return self(*inputs)
        metrics, calls = self.program.record(self.agent, *inputs)
        self.direct[kind] = DirectUpdate.of(calls, leaves, metrics)
        return metrics


class DirectUpdate(NamedTuple):
    """An update as a call of its kernels."""

    kernels: Kernels
    arguments: list[Tensor]
    """What they are called with: the agent's tensors, and those of the inputs in their places."""
    places: dict[int, int]
    """The place among the arguments of each input that the kernels read."""
    results: dict[str, int]
    """The place of each metric among the results."""

    def arguments_of(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return the arguments with other inputs."""
        arguments = list(self.arguments)
        for place, number in self.places.items():
            arguments[place] = inputs[number]
        return arguments

    def metrics_of(self, results: Sequence[Any]) -> Metrics:
        """Return the metrics among the results."""
        return {name: results[number] for name, number in self.results.items()}

    @classmethod
    def of(
        cls, calls: Sequence[Call], inputs: Sequence[Any], metrics: Metrics
    ) -> "DirectUpdate | None":
        """Return the update that was recorded; None if it is more than one call of its kernels.

        It is no more if each tensor of the inputs is given to them as it is or not at all, each
        metric is one of their results, and every other result lies in a tensor that they were
        given: they have changed it in place.
        """
        if len(calls) != 1 or not all(isinstance(x, Tensor) for x in calls[0].arguments):
            return None
        kernels, arguments, results = calls[0]
        numbers = {id(x): number for number, x in enumerate(inputs) if isinstance(x, Tensor)}
        places = {p: numbers[id(x)] for p, x in enumerate(arguments) if id(x) in numbers}
        others = [x for place, x in enumerate(arguments) if place not in places]
        if _memory(inputs) & _memory(others):
            return None
        found = {id(x): number for number, x in enumerate(results)}
        if not all(id(x) in found for x in metrics.values()):
            return None
        named = {name: found[id(x)] for name, x in metrics.items()}
        rest = [x for number, x in enumerate(results) if number not in named.values()]
        if not _memory(rest) <= _memory(others):
            return None
        return cls(kernels, arguments, places, named)


def _kind(leaf: Any) -> Any:
    """What a program is compiled for, of one of its inputs."""
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _memory(values: Sequence[Any]) -> set[int]:
    """Where the tensors among these values lie."""
    return {x.untyped_storage().data_ptr() for x in values if isinstance(x, Tensor)}
