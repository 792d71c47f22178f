"""Products of rounded factors: whether a device has them, and gains from them.

``agents.common.networks`` makes them; see ``AgentConfig.matmul_precision`` for which.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from agents.common.networks import Linear, rounded_product
from agents.protocol import Agent, MatmulPrecision

ROUNDS, CALLS = 30, 4
"""Of the probe: how often both products are timed in turn, and their number in each round."""
AMPERE = (8, 0)
"""The first compute capability of a GPU with bfloat16 and tf32 products."""


def why_not(precision: MatmulPrecision, device: str, rows: int, width: int) -> str | None:
    """Say why this machine should not use the precision on a kind of device; None if it may.

    On a CPU the product of a batch of ``rows`` with hidden layers of ``width`` units is timed, for
    less than a second, in float32 and with rounding.
    """
    if precision == "float32":
        return None
    if device == "cuda":
        has_it = torch.cuda.get_device_capability() >= AMPERE
        return None if has_it else f"{torch.cuda.get_device_name()} has no such products"
    if precision == "tf32":
        return "tf32 is a format of GPUs; a CPU may have bfloat16"
    ratio = time_ratio(rows, width)
    if ratio < 1:
        return None
    return (
        f"on this processor a product of {rows} x {width} x {width} takes {ratio:.2g} times as "
        "long with it as in float32"
    )


def time_ratio(rows: int, width: int) -> float:
    """The time of a product with rounding, and of the rounding, over that in float32, on a CPU.

    Both are timed in turn and the fastest of each counts, so that other work on the machine does
    not decide.
    """
    x, w = torch.randn(1, rows, width), torch.randn(1, width, width)
    plain = rounded = float("inf")
    with torch.no_grad():
        for _ in range(ROUNDS):
            plain = min(plain, _seconds(lambda: torch.bmm(x, w)))
            rounded = min(rounded, _seconds(lambda: rounded_product(x, w)))
    return rounded / plain


def _seconds(product: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        product()
    return time.perf_counter() - began


def use(precision: MatmulPrecision) -> None:
    """Let this process's products on a GPU be as ``precision`` says, where that is its setting."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def rounds(agent: Agent) -> bool:
    """Tell whether any layer of the agent rounds its factors to bfloat16."""
    networks = [part for part in vars(agent).values() if isinstance(part, nn.Module)]
    layers = (layer for network in networks for layer in network.modules())
    return any(isinstance(layer, Linear) and layer.rounded for layer in layers)
