"""How long an update takes, beside a matrix product of the same machine: ``make bench``.

An update is critic, actor and target: 24 observations, 6 actions, batch 256, networks 2 x 256, one
thread. ``gemms`` counts it in float32 products of 256 x 256 x 256, measured just before it, so that
machines can be compared; ``seed_updates_per_second`` is the rate over all seeds.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agents.protocol import Batch
from agents.registry import BUILT_IN, find_agent

OBSERVATION, ACTION, BATCH = 24, 6, 256


@pytest.fixture(autouse=True)
def _flush_denormals() -> Iterator[None]:
    """As a job does; other tests want them back."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def gemm_seconds() -> float:
    """The best of many products, in seconds."""
    a, b, out = (torch.randn(256, 256) for _ in range(3))
    times = []
    for _ in range(300):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.parametrize("seeds", [1, 8])
@pytest.mark.parametrize("path", BUILT_IN)
def test_update(benchmark: Any, path: str, seeds: int) -> None:
    agent_class = find_agent(path).agent
    device = torch.device("cpu")
    agent = agent_class(
        agent_class.config_class(), OBSERVATION, ACTION, tuple(range(seeds)), device
    )
    batch = Batch(
        observation=torch.randn(seeds, BATCH, OBSERVATION),
        action=torch.rand(seeds, BATCH, ACTION) * 2 - 1,
        reward=torch.rand(seeds, BATCH),
        discount=torch.full((seeds, BATCH), 0.99),
        next_observation=torch.randn(seeds, BATCH, OBSERVATION),
    )
    gemm = gemm_seconds()
    benchmark.pedantic(agent.update, args=(batch,), rounds=20, iterations=2, warmup_rounds=3)
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info["seed_updates_per_second"] = round(seeds / median, 1)
        benchmark.extra_info["gemms"] = round(median / seeds / gemm, 1)
        print(
            f"\n{agent_class.name}, S = {seeds}: {seeds / median:.0f} seed-updates/s, "
            f"{median / seeds / gemm:.0f} GEMMs each at {2 * 256**3 / gemm / 1e9:.0f} GFLOP/s"
        )
