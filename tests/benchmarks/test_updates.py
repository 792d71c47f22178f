"""How long updates take beside matrix products, and beside the peers: ``make bench``.

An update is critic, actor and target: 24 observations, 6 actions, batch 256, networks 2 x 256, one
thread. The roofline is the rate at which the update's own floating-point operations, counted from
the shapes (``flops.py``), would run if they were all products of 256 x 256 x 256.
"""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from agents.common.diffusion_agent import DiffusionAgent
from agents.speed.precision import slows_down
from qsm_bench.replay import ReplayBuffer
from tests.benchmarks.flops import update_flops
from tests.benchmarks.peer import UPDATES as PEERS_UPDATES
from tests.benchmarks.peer import Peer
from tests.benchmarks.workload import (
    ACTION,
    BATCH,
    CPU,
    OBSERVATION,
    SIDE,
    SideBySide,
    actor_update,
    new_agent,
    new_batch,
    note,
    seconds,
)

UPDATES = [
    ("qsm", {}, 1, 0.55),
    ("qsm", {}, 8, 0.65),
    ("qsm", {"diffusion_steps": 20}, 1, None),
    ("diffusion_ql", {}, 1, 0.5),
    ("diffusion_ql", {"diffusion_steps": 20}, 1, 0.5),
    ("diffusion_pg", {}, 1, None),
    ("sdac", {}, 1, 0.5),
    ("qvpo", {}, 1, 0.5),
    ("dipo", {}, 1, 0.5),
    ("dacer", {}, 1, 0.5),
    ("dpmd", {}, 1, 0.5),
    ("langevin", {}, 1, 0.5),
    ("sac", {}, 1, 0.65),
    ("sac", {}, 8, None),
    ("td3", {}, 1, 0.65),
    ("td3", {}, 8, None),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "settings", "seeds", "goal"), UPDATES)
def test_update(
    benchmark: Any,
    name: str,
    settings: dict[str, Any],
    seeds: int,
    goal: float | None,
    compiled: bool,
) -> None:
    if compiled and benchmark.disabled:
        pytest.skip("compiled only to be measured")
    agent, batch = new_agent(name, seeds, compiled=compiled, **settings), new_batch(seeds)
    # TD3 moves its actor at every second update, so two are one round.
    run = SideBySide(benchmark, lambda: (agent.update(batch), agent.update(batch)))
    if run.run():
        per_seed = run.median / 2 / seeds
        flops = update_flops(agent.config, OBSERVATION, ACTION, BATCH)
        steps = ""
        if isinstance(agent, DiffusionAgent):
            steps = f", T = {agent.config.diffusion_steps}"
        note(
            benchmark,
            f"{name}{steps}, S = {seeds}, {'compiled' if compiled else 'eager'}",
            f"{1 / per_seed:.0f} seed-updates/s",
            flops / per_seed / run.median_of("gemm"),
            f"of the roofline at {run.median_of('gemm') / 1e9:.0f} GFLOP/s",
            f"{goal}" if goal and compiled else "",
        )


def test_score_matching_costs_the_same_for_any_number_of_steps(benchmark: Any) -> None:
    few, many = actor_update(5), actor_update(20)

    def after_itself() -> float:
        """Time the shorter update after itself, with its own numbers in the caches."""
        few()
        taken = seconds(few)
        many()
        return taken

    run = SideBySide(benchmark, many, rounds=200)
    run.also_measure("few", after_itself)
    if run.run():
        note(
            benchmark,
            "qsm's actor update, T = 20",
            f"{1e3 * run.median:.2f} ms",
            run.median / run.median_of("few"),
            "times T = 5",
            "0.95 to 1.05",
        )


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keep libraries that start as many threads as there are cores to one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


GOALS = {("SBX", 1): 1.15, ("SBX", 8): 1.3, ("SBX at once", 1): 1.05}
"""What to reach beside a peer, by the number of seeds; 1 where nothing is said."""
ROUNDED_GOAL = 1.2
"""What to reach in bfloat16 beside SBX's fastest mode, many updates a call."""


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(("algorithm", "seeds"), [("SAC", 1), ("SAC", 8), ("TD3", 1), ("TD3", 8)])
def test_peers(benchmark: Any, algorithm: str, seeds: int) -> None:
    """Replay's sample and update, as the peers' ``train`` has both.

    Once each update is a call, and once all are one, of which a peer has its own way, too.
    """
    if benchmark.disabled:
        pytest.skip("peers are only there to be measured against")
    peers = {
        "SBX": Peer("sbx", algorithm),
        "stable-baselines3": Peer("stable_baselines3", algorithm),
    }
    agent = new_agent(algorithm.lower(), seeds, compiled=True)
    replay = ReplayBuffer(10_000, OBSERVATION, ACTION, range(seeds), CPU)
    zero = torch.zeros(seeds, dtype=torch.bool)
    for _ in range(1_010):
        observation = torch.randn(seeds, OBSERVATION)
        replay.add(observation, torch.rand(seeds, ACTION), zero.float(), observation, zero, zero)

    def updates() -> None:
        for _ in range(PEERS_UPDATES):
            agent.update(replay.sample(BATCH))

    def at_once(agent: Any = agent) -> None:
        agent.update_several(replay.sample_several(BATCH, PEERS_UPDATES))

    at_once()  # the first of each kind of update is recorded
    run = SideBySide(benchmark, updates, rounds=15)
    run.also_measure("at once", lambda: seconds(at_once) / PEERS_UPDATES)
    rounded = seeds == 1 and slows_down(BATCH, (SIDE, SIDE)) is None
    if rounded:
        other = new_agent(algorithm.lower(), 1, compiled=True, matmul_precision="bfloat16")
        at_once(other)
        run.also_measure("rounded", lambda: seconds(lambda: at_once(other)) / PEERS_UPDATES)
    for name, peer in peers.items():
        run.also_measure(name, peer.seconds_per_update)
        run.also_measure(f"{name} at once", partial(peer.seconds_per_update, at_once=PEERS_UPDATES))
    if run.run():
        mine = {
            "": seeds * PEERS_UPDATES / run.median,
            " at once": seeds / run.median_of("at once"),
        }
        for name, (mode, rate) in itertools.product(peers, mine.items()):
            its = 1 / run.median_of(name + mode)
            calls = f"{PEERS_UPDATES} updates a call" if mode else "one update a call"
            note(
                benchmark,
                f"{algorithm.lower()}, S = {seeds}, compiled, with the replay's sample, {calls}",
                f"{rate:.0f} seed-updates/s",
                rate / its,
                f"times {name}'s {its:.0f}/s",
                str(GOALS.get((name + mode, seeds), 1)),
            )
        if rounded:
            its = 1 / run.median_of("SBX at once")
            note(
                benchmark,
                f"{algorithm.lower()}, S = 1, compiled, bfloat16, with the replay's sample, "
                f"{PEERS_UPDATES} updates a call",
                f"{1 / run.median_of('rounded'):.0f} seed-updates/s",
                1 / run.median_of("rounded") / its,
                f"times SBX's {its:.0f}/s",
                str(ROUNDED_GOAL),
            )
    for peer in peers.values():
        peer.close()
