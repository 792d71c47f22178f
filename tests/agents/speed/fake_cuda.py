"""CUDA graphs on a CPU, for tests: what is recorded is run again on the same memory.

As on a GPU, a recording keeps the memory of all results, Python does not run again, and recording
changes nothing by itself.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def tensors_in(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]


class FakeGraph:
    """What stands in for ``torch.cuda.CUDAGraph``: the calls of torch's operations, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for function, arguments, named, results in self.calls:
            again = tensors_in(function(*arguments, **named))
            places = {x.untyped_storage().data_ptr() for x in tensors_in((arguments, named))}
            for result, value in zip(results, again, strict=True):
                if result.untyped_storage().data_ptr() not in places:  # neither view nor argument
                    result.copy_(value)


class Recording(TorchDispatchMode):
    """What stands in for ``torch.cuda.graph``."""

    def __init__(self, graph: FakeGraph) -> None:
        TorchDispatchMode.__init__(self)
        self.graph = graph
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert function.overloadpacket.__name__ != "_local_scalar_dense", "waits for the device"
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info and argument.alias_info.is_write:
                for changed in tensors_in(value):
                    self.before.setdefault(id(changed), (changed, changed.clone()))
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, tensors_in(result)))
        return result

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)
        with torch.no_grad():
            for changed, value in self.before.values():
                changed.copy_(value)


class FakeStream:
    def wait_stream(self, other: Any) -> None:
        """Do nothing: a CPU has one stream."""


def use(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Let this process's CUDA graphs be fake ones; returns those that it will make."""
    made: list[FakeGraph] = []

    def graph() -> FakeGraph:
        made.append(FakeGraph())
        return made[-1]

    for name, value in {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "CUDAGraph": graph,
        "graph": Recording,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made
