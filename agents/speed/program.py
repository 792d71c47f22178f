"""A pure function of an agent as one compiled program, which can record calls of its kernels."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.speed.program_cache import use_program_cache

CPU_OPTIONS: dict[str, Any] = {
    # Kernels are called from C++, and what they hand to each other lies close together.
    "cpp_wrapper": True,
    "memory_planning": True,
    # Shapes are known: looking at them again takes time at every update.
    "size_asserts": False,
}
"""The options with which torch compiles for a CPU; for a GPU they are torch's own."""

Kernels = Callable[[list[Any]], Sequence[Any]]
"""What torch makes of a program. It empties the list of arguments that it is given."""


class Call(NamedTuple):
    """A call of a program's kernels."""

    kernels: Kernels
    arguments: list[Any]
    results: list[Any]


class Program:
    """``function(agent, *inputs)`` as one program, compiled when it is first called.

    There is one for every combination of shapes and of inputs that are no tensors. The calls of one
    that is ``recorded`` can be; torch does not keep the whole of it for the next process then, but
    its kernels alone.
    """

    def __init__(self, function: FunctionType, device: torch.device, *, recorded: bool) -> None:
        use_program_cache()
        self.recorded = recorded
        self.calls: list[Call] = []
        """The calls of kernels while one is recorded."""
        self.records = False
        # torch keeps programs by code object, so agents of one class would share them.
        own = FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        own.__kwdefaults__ = function.__kwdefaults__
        options = CPU_OPTIONS if device.type == "cpu" and not recorded else {}
        # The gradients and the optimizer are part of the program.
        torch._dynamo.config.trace_autograd_ops = True
        self.program = recompiling(
            torch.compile(
                own,
                fullgraph=True,
                dynamic=False,
                backend=self._backend if recorded else "inductor",
                options={"guard_filter_fn": _guards_inputs, **options},
            )
        )

    def __call__(self, agent: Any, *inputs: Any) -> Any:
        return self.program(agent, *inputs)

    def record(self, agent: Any, *inputs: Any) -> tuple[Any, list[Call]]:
        """Call the program; return its result and how it called its kernels."""
        self.records = True
        try:
            return self(agent, *inputs), self.calls
        finally:
            self.records, self.calls = False, []

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        # Both take a while to load.
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        # What this cache finds would not come through ``inner_compile``.
        with config.patch(enable_autograd_cache=False):
            return compile_fx(
                graph,
                inputs,
                inner_compile=self._compile,  # type: ignore[arg-type]  # a function does as well
                config_patches=CPU_OPTIONS,
            )

    def _compile(self, *graph: Any, **how: Any) -> Kernels:
        from torch._inductor.compile_fx import compile_fx_inner

        call = partial(self._call, compile_fx_inner(*graph, **how))
        call._boxed_call = True  # type: ignore[attr-defined]  # as torch marks those that empty it
        return call

    def _call(self, kernels: Kernels, arguments: list[Any]) -> Sequence[Any]:
        if not self.records:
            return kernels(arguments)
        held = list(arguments)
        results = kernels(arguments)
        self.calls.append(Call(kernels, held, list(results)))
        return results


def recompiling(program: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``program`` be compiled again where torch's cache holds a half-written library of it.

    A compiler that is killed leaves one, and torch would take it for whole in every later run.
    """

    def call(*inputs: Any) -> Any:
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
