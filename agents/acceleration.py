"""Faster ways to run an agent's pure update: compiled, and replayed as a CUDA graph.

Both wrap ``agent.step`` of an agent whose class says ``pure_step = True``: a function of
(parameters, batch, noise, switches) that draws no random numbers and keeps all that changes in
tensors, which it changes in place. Python numbers that such a step reads are built into its
program. Neither is needed for a correct result: compiled numbers are the plain ones up to the
order of operations.
"""

import copy
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from agents.protocol import Agent


def why_not_compiled(device: str = "cpu") -> str | None:
    """What this machine lacks to compile updates for a device, if it lacks something."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot trace a gradient: 2.11 or later can"
    if device.startswith("cuda"):
        return None if find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's header files (Python.h) are not installed"
    return None


def accelerate(agent: Agent, device: torch.device, *, compiled: bool) -> None:
    """Wrap the agent's ``step``: compiled if asked for, and on a GPU captured in CUDA graphs."""
    # A subclass has to say it for itself: what it adds may not be pure.
    if not vars(type(agent)).get("pure_step"):
        return
    step: Callable[..., dict[str, Tensor]] = agent.step  # type: ignore[attr-defined]
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
        step = CapturedStep(agent, step, device)
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
    copied.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copied, method.__self__)


def _of_the_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of the assumptions of a compiled program to check at each call.

    Those on batch, noise and switches. The agent's own parts, some 300 assumptions, are the same
    all its life; looking at them costs a CPU 0.2 ms an update.
    """
    return [not guard.name.startswith("self.") and "(self." not in guard.name for guard in guards]


class CapturedStep:
    """A step that is recorded once as a CUDA graph and then replayed, one launch an update.

    There is one graph for every combination of shapes and of arguments that are no tensors.
    """

    WARM_UPS = 3
    """Runs before the capture, as CUDA's libraries allocate their workspaces in the first."""

    def __init__(
        self, agent: Agent, step: Callable[..., dict[str, Tensor]], device: torch.device
    ) -> None:
        self.agent = agent
        self.step = step
        self.device = device
        self.graphs: dict[
            tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], dict[str, Tensor]]
        ] = {}

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        leaves = list(_leaves(inputs))
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        with torch.cuda.device(self.device):
            if key not in self.graphs:
                self.graphs[key] = self._capture(inputs)
            graph, held, outputs = self.graphs[key]
            torch._foreach_copy_(held, [x for x in leaves if isinstance(x, Tensor)])
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
    """What nested tuples hold, in order. Raises TypeError for another container."""
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, list | dict | set):
        raise TypeError(
            f"a pure step takes tensors and tuples of them, not a {type(value).__name__}"
        )
    else:
        yield value


def _cloned(value: Any) -> Any:
    """The same nested tuples with tensors of their own."""
    if isinstance(value, tuple):
        items = [_cloned(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value.clone() if isinstance(value, Tensor) else value
