"""Faster ways to run an agent's pure update: compiled, and replayed as a CUDA graph.

Both wrap ``agent.step``, a function of (parameters, batch, noise) whose state lives in tensors that
it changes in place; an agent that has no ``step`` runs as it is. Neither is needed for a correct
result: compiled numbers are the eager ones up to the order of floating-point operations.
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from agents.protocol import Agent


def why_not_compiled() -> str | None:
    """What this machine lacks to compile updates, if it lacks something."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot trace a gradient: 2.11 or later can"
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler (g++)"
    return None


def accelerate(agent: Agent, device: torch.device, *, compiled: bool) -> None:
    """Wrap the agent's ``step``: compiled if asked for, and on a GPU captured in CUDA graphs."""
    step: Callable[..., dict[str, Tensor]] | None = getattr(agent, "step", None)
    if step is None:
        return
    if compiled:
        # The gradients and the optimiser are part of the one graph that is compiled.
        torch._dynamo.config.trace_autograd_ops = True
        step = torch.compile(
            _with_code_of_its_own(step),
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _of_the_inputs},
        )
    if device.type == "cuda":
        step = CapturedStep(agent, step)
    agent.step = step  # type: ignore[attr-defined]


def _with_code_of_its_own(method: Any) -> Any:
    """The same method with a copy of its code.

    torch keeps compiled programs by code object, so agents of one class would share them.
    """
    function = getattr(method, "__func__", None)
    if function is None:  # wrapped already
        return method
    copied = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return MethodType(copied, method.__self__)


def _of_the_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of the assumptions of a compiled program to check at each call.

    Those on batch, noise and switches. The agent's own parts, some 300 assumptions, are the same
    all its life; looking at them costs a CPU 0.2 ms an update.
    """
    return [not guard.name.startswith("self.") and "(self." not in guard.name for guard in guards]


class CapturedStep:
    """A step that is recorded once as a CUDA graph and then replayed, one launch an update.

    There is one graph for every combination of the arguments that are no tensors.
    """

    WARM_UPS = 3
    """Runs before the capture, as CUDA's libraries allocate their workspaces in the first."""

    def __init__(self, agent: Agent, step: Callable[..., dict[str, Tensor]]) -> None:
        self.agent = agent
        self.step = step
        self.graphs: dict[
            tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Tensor]]
        ] = {}

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        key = tuple(x for x in _leaves(inputs) if not isinstance(x, Tensor))
        if key not in self.graphs:
            self.graphs[key] = self._capture(inputs)
        graph, held, outputs = self.graphs[key]
        given = [x for x in _leaves(inputs) if isinstance(x, Tensor)]
        torch._foreach_copy_(held, given)
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}

    def _capture(
        self, inputs: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Tensor]]:
        held = _cloned(inputs)
        state = copy.deepcopy(self.agent.state_dict())
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                self.step(*held)
        torch.cuda.current_stream().wait_stream(stream)
        # The warm-ups were no updates; parameters are restored where they lie.
        self.agent.load_state_dict(state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.step(*held)
        return graph, [x for x in _leaves(held) if isinstance(x, Tensor)], outputs


def _leaves(value: Any) -> Iterator[Any]:
    """What nested tuples hold, in order."""
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _cloned(value: Any) -> Any:
    """The same nested tuples with tensors of their own."""
    if isinstance(value, tuple):
        items = [_cloned(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value.clone() if isinstance(value, Tensor) else value
