"""What rounding factors to bfloat16 costs in gradients; ``make bench`` has what it gains in time.

    python tests/benchmarks/precision.py

Prints a table of Markdown: the relative error of gradients at initial weights, against those in
float64 of the same weights, batch and noise. 24 observations, 6 actions, batch 256, networks
2 x 256.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from agents.common.optimizer import Adam
from agents.registry import built_in_trainers
from qsm_bench.process import configure_process
from tests.agents.fixed_critics import doubled, in_float64
from tests.benchmarks.core import describe_core
from tests.benchmarks.workload import new_agent, new_batch

PRECISIONS = "float32", "bfloat16"
DRAWS = 8


def main() -> None:
    configure_process()
    print(f"torch {torch.__version__}, one core: {describe_core()}\n")
    print("| trainer | network | float32 | bfloat16 |\n| --- | --- | --- | --- |")
    for name in built_in_trainers():
        for network, errors in gradient_errors(name).items():
            shown = (f"{errors[kind]:.1e}" for kind in PRECISIONS)
            print(f"| {name} | {network} | {' | '.join(shown)} |", flush=True)


def gradient_errors(name: str) -> dict[str, dict[str, float]]:
    """By network and precision: the median over draws of |g - g64| / |g64|, of all weights."""
    found: dict[str, dict[str, list[float]]] = {}
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        batch, agent = new_batch(1), new_agent(name, 1)
        inputs = [agent.with_inputs(batch) for _ in range(2)]
        in_double = [tuple(x if isinstance(x, bool) else doubled(x) for x in i) for i in inputs]
        reference = gradients(in_float64(agent), in_double)
        for kind in PRECISIONS:
            got = gradients(new_agent(name, 1, matmul_precision=kind), inputs)
            for network, gradient in got.items():
                error = (gradient.double() - reference[network]).norm() / reference[network].norm()
                found.setdefault(network, {}).setdefault(kind, []).append(float(error))
    return {
        network: {kind: statistics.median(errors) for kind, errors in by_kind.items()}
        for network, by_kind in found.items()
    }


def gradients(agent: Any, inputs: Sequence[tuple[Any, ...]]) -> dict[str, Tensor]:
    """The gradients of two pure updates that move nothing, by the network they are of.

    TD3 and DACER move their actors in the second alone.
    """
    noted: dict[str, Tensor] = {}
    optimizers = {id(getattr(agent, part)): part for part in agent.parts}

    def note(self: Adam, gradients: tuple[Tensor, ...]) -> None:
        network = optimizers[id(self)].removesuffix("_optimizer")
        noted[network] = torch.cat([gradient.flatten() for gradient in gradients])

    with patch.object(Adam, "_move", note):
        for each in inputs:
            agent.pure_update(*each)
    return noted


if __name__ == "__main__":
    main()
