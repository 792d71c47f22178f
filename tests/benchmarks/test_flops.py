"""The count of an update's operations, against those that it really runs."""

from typing import Any

import pytest

from agents.registry import built_in_trainers, find_agent
from tests.benchmarks.flops import ProductCounter, update_flops
from tests.benchmarks.workload import ACTION, BATCH, OBSERVATION, new_agent, new_batch

SDAC, QVPO, DACER = "agents.sdac:SDAC", "agents.qvpo:QVPO", "agents.dacer:DACER"
NAMES = (*built_in_trainers(), SDAC, QVPO, DACER)
WIDE = [
    *((n, {"diffusion_steps": 20}) for n in ("qsm", "diffusion_ql", "diffusion_pg")),
    ("qsm", {"candidates_target": 4}),
    (SDAC, {"estimator": "gradient", "samples": 1, "entropy_draws": 2}),
    (SDAC, {"noised_actions": "policy", "candidates_target": 3, "samples": 8}),
    (DACER, {"alpha_delay": 4, "diffusion_steps": 3}),
    (DACER, {"alpha_delay": 2, "entropy_samples": 5, "policy_delay": 1}),
]


@pytest.mark.parametrize(("name", "settings"), [*((n, {}) for n in NAMES), *WIDE])
def test_the_count_is_of_the_products_that_run(name: str, settings: dict[str, Any]) -> None:
    agent, batch = new_agent(name, 1, **settings), new_batch(1)
    updates = 4
    with ProductCounter() as counter:
        for _ in range(updates):
            agent.update(batch)
    needed = update_flops(agent.config, OBSERVATION, ACTION, BATCH)
    # Unneeded ones may be run, but hardly any; those of one column are not run as products.
    assert 0.99 * needed < counter.flops / updates < 1.02 * needed


@pytest.mark.parametrize(("name", "times"), [(SDAC, 7.4), (QVPO, 14.4), (DACER, 1.1)])
def test_a_trainers_own_numbers_cost_so_many_updates_of_qsm(name: str, times: float) -> None:
    """What its file says, and at most 20 in the common protocol."""
    costs = [
        update_flops(find_agent(n).agent.config_class(), OBSERVATION, ACTION, BATCH)
        for n in (name, "qsm")
    ]
    assert costs[0] / costs[1] == pytest.approx(times, rel=0.05)
    assert costs[0] / costs[1] <= 20


def test_more_seeds_are_as_much_work_each() -> None:
    counts = []
    for seeds in (1, 3):
        agent, batch = new_agent("qsm", seeds, hidden_sizes=(32, 32)), new_batch(seeds)
        with ProductCounter() as counter:
            agent.update(batch)
        counts.append(counter.flops / seeds)
    assert counts[0] == pytest.approx(counts[1])
