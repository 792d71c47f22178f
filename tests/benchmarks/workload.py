"""The sizes of the measured work, and what it is compared with: the same in all benchmarks.

Everything runs on one thread, set up as a job is. The yardstick is a float32 matrix product of
256 x 256 x 256, measured between the rounds of the work, so that whatever else the machine does
meets both alike.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from agents.common.diffusion_agent import DiffusionAgent
from agents.protocol import Batch
from agents.registry import find_agent
from agents.speed.acceleration import accelerate

OBSERVATION, ACTION, BATCH = 24, 6, 256
CPU = torch.device("cpu")
SIDE = 256
GEMM_FLOPS = 2 * SIDE**3


def new_agent(
    name: str,
    seeds: int,
    *,
    compiled: bool = False,
    device: torch.device = CPU,
    **settings: Any,
) -> Any:
    """Return an agent of the common size, ready to update."""
    agent = find_agent(name).agent
    config = agent.config_class(**settings)
    built = agent(config, OBSERVATION, ACTION, tuple(range(seeds)), device)
    accelerate(built, device, seeds=seeds, compiled=compiled)
    return built


def new_batch(seeds: int) -> Batch:
    """Return made-up transitions of the common size."""
    return Batch(
        observation=torch.randn(seeds, BATCH, OBSERVATION),
        action=torch.rand(seeds, BATCH, ACTION) * 2 - 1,
        reward=torch.rand(seeds, BATCH),
        discount=torch.full((seeds, BATCH), 0.99),
        next_observation=torch.randn(seeds, BATCH, OBSERVATION),
        number=torch.arange(BATCH).repeat(seeds, 1),
    )


def actor_update(steps: int) -> Callable[[], Any]:
    """Return QSM's actor update alone, of one seed, at so many diffusion steps."""
    agent, batch = new_agent("qsm", 1, diffusion_steps=steps), new_batch(1)
    assert isinstance(agent, DiffusionAgent)
    noise = agent.draw_actor_noise(BATCH)
    minimize = agent.actor_optimizer.minimize
    return lambda: minimize(agent.actor_loss(batch, noise)[0])


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """Return the mean time of so many calls."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def gemm_rate() -> float:
    """Measure the yardstick's operations per second: the median of 20 matrix products."""
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    return GEMM_FLOPS / statistics.median(
        seconds(lambda: torch.mm(a, b, out=out)) for _ in range(20)
    )


class SideBySide:
    """A call that pytest-benchmark measures, and others that are measured in turn with it."""

    def __init__(self, benchmark: Any, call: Callable[[], Any], *, rounds: int = 30) -> None:
        self.benchmark = benchmark
        self.call = call
        self.rounds = rounds
        self.others: dict[str, Callable[[], float]] = {"gemm": gemm_rate}
        self.measured: dict[str, list[float]] = {}

    def also_measure(self, name: str, measure: Callable[[], float]) -> None:
        """Call ``measure()`` before every round; ``median_of`` returns its median."""
        self.others[name] = measure

    def run(self) -> bool:
        """Measure; return False if benchmarks are disabled and the call was only tried once."""

        def between_rounds() -> None:
            for name, measure in self.others.items():
                self.measured.setdefault(name, []).append(measure())

        self.benchmark.pedantic(
            self.call, setup=between_rounds, rounds=self.rounds, warmup_rounds=5
        )
        return self.benchmark.stats is not None

    @property
    def median(self) -> float:
        """Return the median seconds of the call."""
        return float(self.benchmark.stats.stats.median)

    def median_of(self, name: str) -> float:
        """Return the median of another measurement."""
        return statistics.median(self.measured[name])


def note(benchmark: Any, work: str, measured: str, ratio: float, of: str, goal: str = "") -> None:
    """Add a row of reports/performance.md to the benchmark's record, and print it."""
    rows = benchmark.extra_info.setdefault("rows", [])
    rows.append(row(work, measured, ratio, of, goal))


def row(work: str, measured: str, ratio: float, of: str, goal: str = "") -> dict[str, Any]:
    """Return a row of a table of times, and print it."""
    print(f"\n{work}: {measured}; {ratio:.3g} {of}; to reach: {goal or '-'}", flush=True)
    return {"work": work, "measured": measured, "ratio": ratio, "of": of, "goal": goal}
