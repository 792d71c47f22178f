"""A compiled function of one agent, called as directly as can be, once or many times in a row.

Around its kernels a compiled function looks at its inputs, collects the agent's tensors, and puts
its results in order, all in Python. An update leaves nothing of Python in a core's cache, so that
takes 0.5 ms of SAC's 8. On a CPU only the first two calls with inputs of a kind are made like that:
it is recorded which tensors the kernels were given. If those of the agent were the same both times,
later the kernels are called with them, and the new inputs in their places.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.speed.program import Call, Kernels, Program


class CompiledFunction:
    """A pure function of one agent that is a compiled program."""

    def __init__(self, program: Program, agent: Any) -> None:
        self.program = program
        self.agent = agent
        self.recorded: dict[tuple[Any, ...], DirectCall | None] = {}
        """By the kind of its inputs, the first call as one of its kernels; None if it is more."""
        self.direct: dict[tuple[Any, ...], DirectCall | None] = {}
        """The same of the second call; None if it differs from the first in more than inputs."""

    def __call__(self, *inputs: Any) -> Any:
        return self.several([inputs])[0]

    def several(self, inputs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call it with each of ``inputs``, in order; return each result."""
        flat = [pytree.tree_leaves(each) for each in inputs]
        kinds = [tuple(map(_kind, leaves)) for leaves in flat]
        direct = [one for one in map(self.direct.get, kinds) if one]
        if len(direct) < len(inputs):
            return [self._alone(*each) for each in zip(inputs, flat, kinds, strict=True)]
        # Between the calls is as little as can be.
        arguments = [one.arguments_of(leaves) for one, leaves in zip(direct, flat, strict=True)]
        with torch.no_grad():
            results = [one.kernels(given) for one, given in zip(direct, arguments, strict=True)]
        return [one.result_of(found) for one, found in zip(direct, results, strict=True)]

    def _alone(self, inputs: tuple[Any, ...], leaves: list[Any], kind: tuple[Any, ...]) -> Any:
        """Call it as the program does; record the first two calls of a kind."""
        if kind in self.direct or not self.program.can_be_recorded:
            return self.program(self.agent, *inputs)
        result, calls = self.program.record(self.agent, *inputs)
        found = DirectCall.of(calls, leaves, result)
        if kind in self.recorded:
            before = self.recorded.pop(kind)
            self.direct[kind] = found if found and before and found.repeats(before) else None
        else:
            self.recorded[kind] = found
        return result


class DirectCall(NamedTuple):
    """A compiled function as a call of its kernels."""

    kernels: Kernels
    arguments: list[Tensor]
    """What they are called with: the agent's tensors, and those of the inputs in their places."""
    places: dict[int, int]
    """The place among the arguments of each input that the kernels read."""
    results: list[int]
    """The place among what the kernels return of each tensor of the function's result."""
    structure: pytree.TreeSpec
    """How the result is made of its tensors."""

    def arguments_of(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return the arguments with other inputs."""
        arguments = list(self.arguments)
        for place, number in self.places.items():
            arguments[place] = inputs[number]
        return arguments

    def result_of(self, returned: Sequence[Any]) -> Any:
        """Return the function's result, of what the kernels have returned."""
        return pytree.tree_unflatten([returned[place] for place in self.results], self.structure)

    def repeats(self, other: "DirectCall") -> bool:
        """Whether this differs from ``other`` in its inputs alone."""
        return self._but_for_inputs() == other._but_for_inputs()

    def _but_for_inputs(self) -> tuple[Any, ...]:
        own = [id(x) for place, x in enumerate(self.arguments) if place not in self.places]
        return self.places, self.results, self.structure, own

    @classmethod
    def of(cls, calls: Sequence[Call], inputs: Sequence[Any], result: Any) -> "DirectCall | None":
        """Return the call that was recorded; None if it is more than one call of its kernels.

        It is no more if each tensor of the inputs is given to them as it is or not at all, each
        tensor of the result is one that they return, and all else that they return lies in a tensor
        that they were given: they have changed it in place.
        """
        if len(calls) != 1 or not all(isinstance(x, Tensor) for x in calls[0].arguments):
            return None
        kernels, arguments, returned = calls[0]
        numbers = {id(x): number for number, x in enumerate(inputs) if isinstance(x, Tensor)}
        places = {p: numbers[id(x)] for p, x in enumerate(arguments) if id(x) in numbers}
        others = [x for place, x in enumerate(arguments) if place not in places]
        if _memory(inputs) & _memory(others):
            return None
        found = {id(x): place for place, x in enumerate(returned)}
        leaves, structure = pytree.tree_flatten(result)
        if not all(id(x) in found for x in leaves):
            return None
        results = [found[id(x)] for x in leaves]
        rest = [x for place, x in enumerate(returned) if place not in results]
        if not _memory(rest) <= _memory(others):
            return None
        return cls(kernels, arguments, places, results, structure)


def _kind(leaf: Any) -> Any:
    """What a program is compiled for, of one of its inputs."""
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _memory(values: Sequence[Any]) -> set[int]:
    """Where the tensors among these values lie."""
    return {x.untyped_storage().data_ptr() for x in values if isinstance(x, Tensor)}
