"""What rounding factors to bfloat16 gains in time, and what it costs in gradients.

    python tests/benchmarks/precision.py

Prints two tables of Markdown. One thread, 24 observations, 6 actions, batch 256, networks 2 x 256.
The first has the time of a compiled update in float32 over that with rounded factors: both are
timed in turn, and a range is that of 95 % of the rounds. The second has the relative error of
gradients at initial weights, against those in float64 of the same weights, batch and noise.
"""

import statistics
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from agents.common.optimizer import Adam
from agents.protocol import Batch
from agents.registry import built_in_trainers
from qsm_bench.process import configure_process
from tests.agents.fixed_critics import doubled, in_float64
from tests.benchmarks.workload import new_agent, new_batch, seconds

PRECISIONS = "float32", "bfloat16"
ROUNDS, CALLS, WARM_UPS = 40, 6, 6
DRAWS = 8


def main() -> None:
    configure_process()
    print(f"torch {torch.__version__}, one thread\n")
    print("| trainer | float32 | bfloat16 | times as fast |\n| --- | --- | --- | --- |")
    for name in built_in_trainers():
        print(f"| {name} | {' | '.join(time_both(name))} |", flush=True)
    print("\n| trainer | network | float32 | bfloat16 |\n| --- | --- | --- | --- |")
    for name in built_in_trainers():
        for network, errors in gradient_errors(name).items():
            shown = (f"{errors[kind]:.1e}" for kind in PRECISIONS)
            print(f"| {name} | {network} | {' | '.join(shown)} |", flush=True)


def time_both(name: str) -> list[str]:
    """Updates per second in both precisions, and the ratio with its range."""
    batch = new_batch(1)
    agents = [new_agent(name, 1, compiled=True, matmul_precision=kind) for kind in PRECISIONS]
    for agent in agents * WARM_UPS:
        agent.update(batch)
    rounds = [
        [seconds(lambda agent=agent: agent.update(batch), CALLS) for agent in agents]  # type: ignore[misc]
        for _ in range(ROUNDS)
    ]
    plain, rounded = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(one / other for one, other in rounds)
    low, high = ratios[ROUNDS // 40], ratios[-1 - ROUNDS // 40]
    ratio = f"{plain / rounded:.2f} ({low:.2f} to {high:.2f})"
    return [f"{1 / plain:.0f}/s", f"{1 / rounded:.0f}/s", ratio]


def gradient_errors(name: str) -> dict[str, dict[str, float]]:
    """By network and precision: the median over draws of |g - g64| / |g64|, of all weights."""
    found: dict[str, dict[str, list[float]]] = {}
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        batch = new_batch(1)
        drawn, reference = gradients(in_float64(new_agent(name, 1)), batch)
        for kind in PRECISIONS:
            _, got = gradients(new_agent(name, 1, matmul_precision=kind), batch, drawn)
            for network, gradient in got.items():
                error = (gradient.double() - reference[network]).norm() / reference[network].norm()
                found.setdefault(network, {}).setdefault(kind, []).append(float(error))
    return {
        network: {kind: statistics.median(errors) for kind, errors in by_kind.items()}
        for network, by_kind in found.items()
    }


Inputs = list[tuple[Any, ...]]
"""For each update: batch, noise and switches."""


def gradients(
    agent: Any, batch: Batch, inputs: Inputs | None = None
) -> tuple[Inputs, dict[str, Tensor]]:
    """The gradients of two updates that move nothing, by the network they are of.

    TD3 moves its actor in the second alone. ``inputs`` are those of the updates; by default they
    are drawn, and given to the agent in float64. Returns them, too, as they were drawn.
    """
    drawn: Inputs = []
    noted: dict[str, Tensor] = {}
    optimizers = {id(getattr(agent, part)): part for part in agent.parts}
    pure_update = agent.pure_update

    def draw(*given: Any) -> dict[str, Tensor]:
        drawn.append(given)
        if inputs:
            return dict(pure_update(*inputs[len(drawn) - 1]))
        return dict(pure_update(*(x if isinstance(x, bool) else doubled(x) for x in given)))

    def note(self: Adam, gradients: tuple[Tensor, ...]) -> None:
        network = optimizers[id(self)].removesuffix("_optimizer")
        noted[network] = torch.cat([gradient.flatten() for gradient in gradients])

    agent.pure_update = draw
    with patch.object(Adam, "_move", note):
        for _ in range(2):
            agent.update(batch)
    return drawn, noted


if __name__ == "__main__":
    main()
