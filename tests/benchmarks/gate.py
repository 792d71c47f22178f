"""Has an update become much slower? Ratios within one run, with generous bounds; CI runs it.

    python tests/benchmarks/gate.py

Updates run as they stand, on one thread. Prints one line a ratio; exit status 1 if one is out of
its bounds. Those of whole updates are about half of what reports/performance.md shows, so that a
busy machine raises no alarm; the parts that were made faster are held against torch's own.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.nn import functional

from agents.diffusion_agent import DiffusionAgent
from agents.networks import Linear, mish
from agents.streams import SeedStreams
from qsm_bench.process import settle
from tests.benchmarks.flops import update_flops
from tests.benchmarks.workload import (
    ACTION,
    BATCH,
    OBSERVATION,
    gemm_rate,
    new_agent,
    new_batch,
    seconds,
)

ROUNDS = 9
SHARE_OF_ROOFLINE = {
    "qsm": 0.22,
    "diffusion_ql": 0.2,
    "diffusion_pg": 0.2,
    "sac": 0.25,
    "td3": 0.25,
}
"""At least, at S = 1."""
SEED_IN_LOCKSTEP = 1.4
"""At most: time of a seed's update among 8 over that of one alone."""
MORE_STEPS = 1.25
"""At most: time of qsm's actor update at T = 20 over T = 5."""


def side_by_side(*calls: Callable[[], float]) -> list[float]:
    """The medians of measures that are taken in turn."""
    rounds = [[call() for call in calls] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def update(name: str, seeds: int) -> Callable[[], float]:
    """Measures the seconds of an update, over four, as TD3's come in two kinds."""
    agent, batch = new_agent(name, seeds), new_batch(seeds)
    seconds(lambda: agent.update(batch), 4)
    return lambda: seconds(lambda: agent.update(batch), 4)


def actor_update(steps: int) -> Callable[[], float]:
    agent, batch = new_agent("qsm", 1, diffusion_steps=steps), new_batch(1)
    assert isinstance(agent, DiffusionAgent)
    noise = agent.draw_actor_noise(BATCH)
    minimise: Any = agent.actor_optimiser.minimise
    return lambda: seconds(lambda: minimise(agent.actor_loss(batch, noise)[0]), 4)


PARTS = {
    "mish, forward and backward, over torch's, at most 0.6": (
        lambda: part(lambda x: mish(x)),
        lambda: part(lambda x: functional.mish(x)),
        0.6,
    ),
    "one output of 2 critics, forward and backward, over a plain product, at most 0.6": (
        lambda: part(narrow_layer),
        lambda: part(plain_layer),
        0.6,
    ),
}
"""What was made faster: itself, what it replaces, and the ratio it must keep."""

LAYER = Linear(256, 1, SeedStreams((0,), "gate", torch.device("cpu")), twins=2)


def narrow_layer(x: Tensor) -> Tensor:
    out: Tensor = LAYER(x)
    return out


def plain_layer(x: Tensor) -> Tensor:
    return torch.baddbmm(LAYER.bias, x, LAYER.weight)


def part(call: Callable[[Tensor], Tensor]) -> float:
    """Seconds of a call on two members' hidden layer, and of its gradient."""
    x = torch.randn(2, BATCH, 256, requires_grad=True)
    return seconds(lambda: torch.autograd.grad(call(x).sum(), x), 20)


def ratios() -> Iterator[tuple[str, float, bool]]:
    """What is measured, the ratio, and whether it is within its bound."""
    for name, bound in SHARE_OF_ROOFLINE.items():
        config: Any = new_agent(name, 1).config  # type: ignore[attr-defined]
        flops = update_flops(config, OBSERVATION, ACTION, BATCH)
        time, gemm = side_by_side(update(name, 1), gemm_rate)
        share = flops / time / gemm
        yield f"{name}, share of the roofline, at least {bound}", share, share >= bound
    for text, (mine, other, bound) in PARTS.items():
        ours, theirs = side_by_side(mine, other)
        yield text, ours / theirs, ours / theirs <= bound
    together, alone = side_by_side(update("qsm", 8), update("qsm", 1))
    ratio = together / 8 / alone
    text = f"qsm, a seed among 8 over one alone, at most {SEED_IN_LOCKSTEP}"
    yield text, ratio, ratio <= SEED_IN_LOCKSTEP
    many, few = side_by_side(actor_update(20), actor_update(5))
    text = f"qsm, actor update at T = 20 over T = 5, at most {MORE_STEPS}"
    yield text, many / few, many / few <= MORE_STEPS


def main() -> None:
    settle()
    wrong = 0
    for text, ratio, within in ratios():
        print(f"{'ok  ' if within else 'SLOW'} {ratio:5.2f}  {text}", flush=True)
        wrong += not within
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
