"""Check that no update has become much slower: ratios within one run, with generous bounds.

    python tests/benchmarks/gate.py

CI runs it. The updates of every built-in trainer run eager, on one thread. A line is printed for
each ratio, and the exit status is 1 if one is out of its bounds. The bounds of whole updates are
about half of the values in reports/performance.md, so that a busy machine raises no alarm. The
parts that are faster than torch's own are compared with these.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.nn import functional

from agents.common.networks import Linear, mish
from agents.common.streams import SeedStreams
from agents.registry import built_in_trainers
from qsm_bench.process import configure_process
from tests.benchmarks.flops import ProductCounter
from tests.benchmarks.workload import (
    BATCH,
    GEMM_FLOPS,
    actor_update,
    gemm_rate,
    new_agent,
    new_batch,
    seconds,
)

ROUNDS, TRIES = 15, 3
SHARE_OF_ROOFLINE = 0.2
"""The least share of the roofline that every trainer must reach at S = 1."""
SEED_IN_LOCKSTEP = 1.4
"""The largest ratio of the time of a seed's update among 8 seeds to that of one seed alone."""
MORE_STEPS = 1.25
"""The largest ratio of the time of qsm's actor update at T = 20 to that at T = 5."""


def side_by_side(*calls: Callable[[], float]) -> list[float]:
    """Measure calls in turn and return the shortest time of each; what else runs only adds."""
    rounds = [[call() for call in calls] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def update(name: str, seeds: int) -> Callable[[], float]:
    """Return a measure of the seconds of an update, over two, as TD3's come in two kinds."""
    agent, batch = new_agent(name, seeds), new_batch(seeds)
    seconds(lambda: agent.update(batch), 4)
    return lambda: seconds(lambda: agent.update(batch), 2)


LAYER = Linear(256, 1, SeedStreams((0,), "gate", torch.device("cpu")), twins=2)


def plain_layer(x: Tensor) -> Tensor:
    return torch.baddbmm(LAYER.bias, x, LAYER.weight)


@torch.no_grad()
def part(call: Callable[[Tensor], Tensor]) -> float:
    """Return a measure of the seconds of a call on the hidden layer of two members."""
    x = torch.randn(2, BATCH, 256)
    return seconds(lambda: call(x), 20)


PARTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "mish over torch's, at most 0.75": (mish, functional.mish, 0.75),
    "the heads of two critics over a plain product, at most 0.6": (LAYER, plain_layer, 0.6),
}
"""The parts that were made faster: our version, the one it replaces, and the ratio to keep."""


def ratios() -> Iterator[tuple[str, Callable[[], float], Callable[[float], bool]]]:
    """Return for each check its text, a function that measures the ratio, and the bound."""
    for name in built_in_trainers():
        text = f"{name}, share of the roofline, at least {SHARE_OF_ROOFLINE}"
        yield text, partial(share_of_roofline, name), SHARE_OF_ROOFLINE.__le__
    for text, (mine, other, bound) in PARTS.items():
        yield text, partial(ratio, partial(part, mine), partial(part, other)), bound.__ge__
    text = f"qsm, time of a seed among 8 over that of one alone, at most {SEED_IN_LOCKSTEP}"
    together, alone = update("qsm", 8), update("qsm", 1)
    yield text, partial(ratio, lambda: together() / 8, alone), SEED_IN_LOCKSTEP.__ge__
    text = f"qsm, actor update at T = 20 over T = 5, at most {MORE_STEPS}"
    many, few = (partial(seconds, actor_update(steps)) for steps in (20, 5))
    yield text, partial(ratio, many, few), MORE_STEPS.__ge__


def ratio(mine: Callable[[], float], other: Callable[[], float]) -> float:
    """Divide one time by another."""
    one, two = side_by_side(mine, other)
    return one / two


def share_of_roofline(name: str) -> float:
    """Return an update's share of the roofline, at S = 1."""
    agent, batch = new_agent(name, 1), new_batch(1)
    with ProductCounter() as counter:
        seconds(lambda: agent.update(batch), 2)
    flops: float = counter.flops / 2
    return flops / GEMM_FLOPS / ratio(update(name, 1), lambda: GEMM_FLOPS / gemm_rate())


def main() -> None:
    configure_process()
    wrong = 0
    for text, measure, within in ratios():
        # Try again if the machine was busy with something else.
        for _ in range(TRIES):
            measured = measure()
            if within(measured):
                break
        print(f"{'ok  ' if within(measured) else 'SLOW'} {measured:5.2f}  {text}", flush=True)
        wrong += not within(measured)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
