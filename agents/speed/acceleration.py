"""Faster ways to run an agent's pure update: compiled, and replayed as a CUDA graph.

Both wrap ``agent.step`` of an agent whose class says ``pure_step = True``: a function of
(parameters, batch, noise, switches) that draws no random numbers and keeps all that changes in
tensors, which it changes in place. Python numbers that such a step reads are built into its
program. Its batch and noise are tensors whose first axis is the seed's, in tuples; so are its
metrics. What the agent holds beside its ``parts`` is the same for every seed. Neither way is needed
for a correct result: compiled numbers are the plain ones up to the order of operations.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from agents.protocol import Agent
from agents.speed.captured_step import CapturedStep
from agents.speed.seed_by_seed import SeedBySeed, is_large

OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {},
    "cpu": {
        # Kernels are called from C++, and what they hand to each other lies close together.
        "cpp_wrapper": True,
        "memory_planning": True,
        # Shapes are known: looking at them again takes time at every update.
        "size_asserts": False,
    },
}
"""What torch.compile is told for a kind of device."""


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


def accelerate(agent: Agent, device: torch.device, *, seeds: int, compiled: bool) -> None:
    """Wrap the agent's ``step``: compiled if asked for, and on a GPU captured in CUDA graphs."""
    # A subclass has to say it for itself: what it adds may not be pure.
    if not vars(type(agent)).get("pure_step"):
        return
    step: Callable[..., dict[str, Tensor]] = agent.step  # type: ignore[attr-defined]
    if compiled:
        program = _compile(type(agent).step, device)  # type: ignore[attr-defined]
        if device.type == "cpu" and seeds > 1 and is_large(agent):
            step = SeedBySeed(agent, seeds, program)
        else:
            step = partial(program, agent)
    if device.type == "cuda":
        step = CapturedStep(agent, step, device)
    agent.step = step  # type: ignore[attr-defined]


def _compile(step: FunctionType, device: torch.device) -> Callable[..., dict[str, Tensor]]:
    """The method ``step(self, *inputs)`` as one program, compiled when it is first called."""
    # The gradients and the optimizer are part of it.
    torch._dynamo.config.trace_autograd_ops = True
    # torch keeps programs by code object, so agents of one class would share them.
    code = step.__code__.replace()
    own = FunctionType(code, step.__globals__, step.__name__, step.__defaults__, step.__closure__)
    own.__kwdefaults__ = step.__kwdefaults__
    return torch.compile(
        own,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": _of_the_inputs, **OPTIONS[device.type]},
    )


def _of_the_inputs(guards: Sequence[Any]) -> list[bool]:
    """Which of the assumptions of a compiled program to check at each call.

    Those on batch, noise and switches. The agent's own parts, some 300 assumptions, are the same
    all its life; looking at them costs a CPU 0.2 ms an update.
    """
    return [not guard.name.startswith("self.") and "(self." not in guard.name for guard in guards]
