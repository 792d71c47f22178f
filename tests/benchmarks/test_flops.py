"""The count of an update's operations, against those that it really runs."""

from typing import Any

import pytest

from agents.registry import built_in_trainers, find_agent
from tests.benchmarks.flops import ProductCounter, update_flops
from tests.benchmarks.workload import ACTION, BATCH, OBSERVATION, new_agent, new_batch

WIDE = [
    *((n, {"diffusion_steps": 20}) for n in ("qsm", "diffusion_ql", "diffusion_pg")),
    ("qsm", {"candidates_target": 4}),
    ("langevin", {"noise_levels": 10, "langevin_steps": 2}),
    ("sdac", {"estimator": "gradient", "samples": 1, "entropy_draws": 2}),
    ("sdac", {"noised_actions": "policy", "candidates_target": 3, "samples": 8}),
    ("dacer", {"alpha_delay": 4, "diffusion_steps": 3}),
    ("dacer", {"alpha_delay": 2, "entropy_samples": 5, "policy_delay": 1}),
]


@pytest.mark.parametrize(("name", "settings"), [*((n, {}) for n in built_in_trainers()), *WIDE])
def test_the_count_is_of_the_products_that_run(name: str, settings: dict[str, Any]) -> None:
    agent, batch = new_agent(name, 1, **settings), new_batch(1)
    updates = 4
    with ProductCounter() as counter:
        for _ in range(updates):
            agent.update(batch)
    needed = update_flops(agent.config, OBSERVATION, ACTION, BATCH)
    # Unneeded ones may be run, but hardly any; those of one column are not run as products.
    assert 0.99 * needed < counter.flops / updates < 1.02 * needed


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("sdac", 7.4),
        ("qvpo", 14.4),
        ("dipo", 4.6),
        ("dacer", 1.1),
        ("dpmd", 16.3),
        ("langevin", 4.2),
    ],
)
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
