"""A pure function of an agent as one compiled program, which can record calls of its kernels."""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

import torch

from agents.registry import AgentError
from agents.speed.half_written import remove_half_written
from agents.speed.program_cache import use_program_cache

CPU_OPTIONS: dict[str, Any] = {
    # Kernels are called from C++, and what they hand to each other lies close together.
    "cpp_wrapper": True,
    "memory_planning": True,
    # Shapes are known: looking at them again takes time at every update.
    "size_asserts": False,
    # A gradient that is rounded for its products is kept for the bias, too, and not computed again.
    "realize_reads_threshold": 3,
}
"""The options with which torch compiles for a CPU; for a GPU they are torch's own."""

HEADERS = "cpp_cache_precompile_headers"
"""torch's setting for header files that are compiled once for all kernels."""

Kernels = Callable[[list[Any]], Sequence[Any]]
"""What torch makes of a program. It empties the list of arguments that it is given."""


def cpu_options() -> dict[str, Any]:
    """The options with which torch compiles for this machine's CPU."""
    from torch._inductor import config  # takes a while to load

    # torch names compiled headers by a checksum of this command.
    if hasattr(config, HEADERS) and not shutil.which("openssl"):
        return CPU_OPTIONS | {HEADERS: False}
    return CPU_OPTIONS


class Call(NamedTuple):
    """A call of a program's kernels."""

    kernels: Kernels
    arguments: list[Any]
    results: list[Any]


class Program:
    """``function(agent, *inputs)`` as one program, compiled when it is first called.

    There is one for every combination of shapes and of inputs that are no tensors.
    """

    def __init__(self, function: FunctionType, device: torch.device) -> None:
        use_program_cache()
        remove_half_written()
        self.can_be_recorded = device.type == "cpu"
        """Whether calls of its kernels can be; on a GPU, a CUDA graph of them is."""
        # torch keeps programs by code object, so agents of one class would share them.
        own = FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        own.__kwdefaults__ = function.__kwdefaults__
        options = cpu_options() if device.type == "cpu" else {}
        # The gradients and the optimizer are part of the program.
        torch._dynamo.config.trace_autograd_ops = True
        self.program = torch.compile(
            own,
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _guards_inputs, **options},
        )

    def __call__(self, agent: Any, *inputs: Any) -> Any:
        """Call it. Raises AgentError if it cannot be compiled."""
        try:
            with _without_collector():
                return self._call(agent, *inputs)
        except Exception as error:
            _refuse_what_cannot_be_compiled(agent, error)
            raise

    def _call(self, agent: Any, *inputs: Any) -> Any:
        """Call it, once more if a compiler that was killed had left something that fails."""
        try:
            return self.program(agent, *inputs)
        except Exception as error:
            if not remove_half_written(error):
                raise
        return self.program(agent, *inputs)

    def record(self, agent: Any, *inputs: Any) -> tuple[Any, list[Call]]:
        """Call the program; return its result and how it called its kernels."""
        with _recorded_calls() as calls:
            return self(agent, *inputs), calls


@contextmanager
def _without_collector() -> Iterator[None]:
    """Collect no garbage within the block, so that torch compiles faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _recorded_calls() -> Iterator[list[Call]]:
    """Note the calls of any program's kernels within the block; none if torch calls them anew."""
    calls: list[Call] = []
    try:
        from torch._inductor.output_code import CompiledFxGraph  # takes a while to load
    except ImportError:
        yield calls
        return
    plain = CompiledFxGraph.__call__

    def noting(program: Any, arguments: list[Any]) -> Any:
        held = list(arguments)
        results = plain(program, arguments)
        if kernels := getattr(program, "current_callable", None):
            calls.append(Call(kernels, held, list(results)))
        return results

    # A program from torch's cache is an object of this class just as one that is compiled now.
    CompiledFxGraph.__call__ = noting  # type: ignore[assignment, method-assign]
    try:
        yield calls
    finally:
        CompiledFxGraph.__call__ = plain  # type: ignore[method-assign]


def _refuse_what_cannot_be_compiled(agent: Any, error: Exception) -> None:
    """Raise AgentError, in one line, if the error is of torch's compiler."""
    from torch._dynamo.exc import TorchDynamoException  # these take a while to load
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if isinstance(error, TorchDynamoException):
        raise AgentError(
            f"agent {agent.name!r} cannot be compiled: {_reason(str(error))[:400]} (what torch "
            f"compiles is kept in {cache_dir()}: delete that folder if a file in it is damaged, "
            "make room if the disk is full); with --compile off, under another --name, it is "
            "trained as it is"
        ) from error


def _reason(text: str) -> str:
    """What a compiler said, in one line: its first, and the one that has the cause."""
    first, *others = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if first.endswith("raised:") and others:
        first, *others = others
    causes = [line for line in others if "error:" in line or "No space left" in line]
    return ": ".join([first, *causes[:1]])


def _guards_inputs(guards: Sequence[Any]) -> list[bool]:
    """Choose the guards of a compiled program that are checked at each call.

    Only those on batch, noise and switches are. Some 300 others are on the agent's own parts, which
    stay the same; checking them takes a CPU 0.2 ms an update.
    """
    return [not guard.name.startswith("self.") and "(self." not in guard.name for guard in guards]
