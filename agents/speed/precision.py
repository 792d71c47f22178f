"""Products of rounded factors: whether a device has them, and gains from them.

``agents.common.networks`` makes them; see ``AgentConfig.matmul_precision`` for which.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import FunctionType, ModuleType

import torch
from torch import Tensor, nn

from agents.common.networks import Linear, rounded_product
from agents.protocol import Agent, MatmulPrecision
from agents.speed.threads import one_thread

ROUNDS, CALLS = 30, 2
"""Of the probe: how often both products are timed in turn at most, and their number each time."""
PROBED_SECONDS, PROBED_SIZE = 0.8, 512
"""No round begins later, and no larger batch or layer is timed: there the ratio changes little."""
AMPERE = (8, 0)
"""The first compute capability of a GPU with bfloat16 and tf32 products."""

Product = Callable[[Tensor, Tensor], Tensor]


def lacks(precision: MatmulPrecision, device: str) -> str | None:
    """Say why a kind of device cannot have the precision; None if it may.

    Without a GPU here, nothing is known of the one that a job will have.
    """
    if device == "cuda":
        known = precision != "float32" and torch.cuda.is_available()
        if not known or torch.cuda.get_device_capability() >= AMPERE:
            return None
        return f"{torch.cuda.get_device_name()} has no such products"
    return "only GPUs have tf32, and a CPU may have bfloat16" if precision == "tf32" else None


def slows_down(rows: int, sizes: Sequence[int]) -> str | None:
    """Say that this processor is no faster in bfloat16; None if it is, or if nothing is rounded.

    The products between hidden layers of ``sizes``, for a batch of ``rows``, and those of their
    gradients are timed, for about a second at most, in float32 and with rounding.
    """
    ratio = time_ratio(rows, sizes) if len(sizes) > 1 else 0.0
    if ratio < 1:
        return None
    layers = " x ".join(map(str, sizes))
    return (
        f"it takes {ratio:.2g} times as long as float32 on this processor, with hidden layers of "
        f"{layers} and a batch of {rows}"
    )


def time_ratio(rows: int, sizes: Sequence[int]) -> float:
    """The time of products with rounding, and of the rounding, over that in float32, on a CPU.

    Both are timed in turn, on one thread as in a job, and the fastest of each counts, so that other
    work on the machine does not decide.
    """
    rows = min(rows, PROBED_SIZE)
    layers = [
        (torch.randn(1, rows, n, requires_grad=True), torch.randn(1, n, m, requires_grad=True))
        for n, m in pairwise(min(size, PROBED_SIZE) for size in sizes)
    ]
    plain = rounded = float("inf")
    end = time.perf_counter() + PROBED_SECONDS
    with one_thread():
        for product in (torch.bmm, rounded_product):  # the first calls take longer
            _seconds(product, layers)
        for round_ in range(ROUNDS):
            if round_ > 1 and time.perf_counter() > end:
                break
            plain = min(plain, _seconds(torch.bmm, layers))
            rounded = min(rounded, _seconds(rounded_product, layers))
    return rounded / plain


def _seconds(product: Product, layers: Sequence[tuple[Tensor, Tensor]]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        for x, w in layers:
            torch.autograd.grad(product(x, w).sum(), (x, w))
    return time.perf_counter() - began


def use(precision: MatmulPrecision) -> None:
    """Let this process's products on a GPU be as ``precision`` says, where that is its setting."""
    products = torch.backends.cuda.matmul
    products.allow_tf32 = precision == "tf32"
    # A product that is split among the GPU's units would otherwise be added up in bfloat16.
    products.allow_bf16_reduced_precision_reduction = False


def rounds(agent: Agent) -> bool:
    """Tell whether any layer of the agent rounds its factors to bfloat16."""
    layers = (layer for network in _networks_in(agent, set()) for layer in network.modules())
    return any(isinstance(layer, Linear) and layer.rounded for layer in layers)


def _networks_in(value: object, seen: set[int]) -> Iterator[nn.Module]:
    """The networks among an object's attributes, in its containers, and in objects it holds."""
    if id(value) in seen or isinstance(value, type | FunctionType | ModuleType | Tensor):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    inside = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, Mapping):
        inside += value.values()
    elif isinstance(value, list | tuple | set):
        inside += value
    for entry in inside:
        yield from _networks_in(entry, seen)
