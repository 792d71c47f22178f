"""Faster ways to run an agent's pure update: compiled, and replayed as a CUDA graph.

Both wrap ``agent.pure_update`` of an agent whose class says ``promises_pure_update = True``. It is
a function of (parameters, batch, noise, switches) that draws no random numbers. All that it changes
are tensors, in place. Python numbers that it reads are built into its program. Its batch and noise
are tensors whose first axis is the seed's, in tuples, and its metrics are such tensors. What the
agent holds beside its ``parts`` is the same for every seed. Neither way is needed for a correct
result: compiled numbers are the plain ones up to the order of operations.
"""

import os
import re
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
from agents.speed.captured_update import CapturedUpdate
from agents.speed.program_cache import use_program_cache
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
"""The options of torch.compile for each kind of device."""


def why_not_compiled(device: str = "cpu") -> str | None:
    """Say what this machine lacks to compile updates for a device; None if it lacks nothing."""
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
    """Wrap the agent's ``pure_update``: compiled if asked, and captured in CUDA graphs on a GPU."""
    # A subclass has to say it for itself: what it adds may not be pure.
    if not vars(type(agent)).get("promises_pure_update"):
        return
    update: Callable[..., dict[str, Tensor]] = agent.pure_update  # type: ignore[attr-defined]
    if compiled:
        program = _compile(type(agent).pure_update, device)  # type: ignore[attr-defined]
        if device.type == "cpu" and seeds > 1 and is_large(agent):
            update = SeedBySeed(agent, seeds, program)
        else:
            update = partial(program, agent)
    if device.type == "cuda":
        update = CapturedUpdate(agent, update, device)
    agent.pure_update = update  # type: ignore[attr-defined]


def _compile(update: FunctionType, device: torch.device) -> Callable[..., dict[str, Tensor]]:
    """Make the method ``update(self, *inputs)`` one program, compiled when it is first called."""
    use_program_cache()
    # The gradients and the optimizer are part of it.
    torch._dynamo.config.trace_autograd_ops = True
    # torch keeps programs by code object, so agents of one class would share them.
    own = FunctionType(
        update.__code__.replace(),
        update.__globals__,
        update.__name__,
        update.__defaults__,
        update.__closure__,
    )
    own.__kwdefaults__ = update.__kwdefaults__
    program = torch.compile(
        own,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": _guards_inputs, **OPTIONS[device.type]},
    )
    return recompiling(program)


def recompiling(program: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Let ``program`` be compiled again where torch's cache holds a half-written library of it.

    A compiler that is killed leaves one, and torch would take it for whole in every later run.
    """

    def call(*inputs: Any) -> dict[str, Tensor]:
        try:
            return program(*inputs)
        except Exception as error:
            library = _library_that_failed(error)
            if library is None:
                raise
            library.unlink(missing_ok=True)
        return program(*inputs)

    return call


def _library_that_failed(error: Exception) -> Path | None:
    """The library in torch's cache that could not be loaded; None if that was not the reason."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # takes a while to load

    found = re.search(r"(?:ImportError|OSError): (/.+?\.so): ", str(error))
    library = Path(found.group(1)) if found else None
    inside = library and library.resolve().is_relative_to(Path(cache_dir()).resolve())
    return library if inside else None


def _guards_inputs(guards: Sequence[Any]) -> list[bool]:
    """Choose the guards of a compiled program that are checked at each call.

    Only those on batch, noise and switches are. Some 300 others are on the agent's own parts, which
    stay the same; checking them takes a CPU 0.2 ms an update.
    """
    return [not guard.name.startswith("self.") and "(self." not in guard.name for guard in guards]
