"""An update of many seeds in turn is the update of all of them at once."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from agents.protocol import Batch
from agents.registry import BUILT_IN, find_agent
from agents.speed import seed_by_seed
from agents.speed.seed_by_seed import SeedBySeed, is_large
from agents.td3 import TD3, TD3Config
from tests.agents.fixed_critics import CPU, make_batch, tensors

SEEDS = (3, 4, 5)


def build(path: str, seeds: tuple[int, ...] = SEEDS) -> Any:
    agent = find_agent(path).agent
    return agent(agent.config_class(hidden_sizes=(24, 24)), 3, 2, seeds, CPU)


def in_turn(agent: Any) -> Any:
    agent.pure_update = SeedBySeed(agent, len(SEEDS), lambda one: one.pure_update)
    return agent


def batches(number: int) -> list[Batch]:
    torch.manual_seed(0)
    return [make_batch(len(SEEDS), 16, 3, 2, torch.float32) for _ in range(number)]


@pytest.mark.parametrize("path", BUILT_IN)
def test_in_turn_is_at_once_but_for_rounding(path: str) -> None:
    at_once, turns = build(path), in_turn(build(path))
    for batch in batches(6):
        expected, metrics = at_once.update(batch), turns.update(batch)
        assert list(metrics) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-4)
    pairs = zip(tensors(at_once.state_dict()), tensors(turns.state_dict()), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)
    observation = torch.randn(len(SEEDS), 5, 3)
    torch.testing.assert_close(
        turns.act(observation, explore=True),
        at_once.act(observation, explore=True),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("path", BUILT_IN)
def test_in_turn_a_seed_learns_bit_for_bit_what_it_learns_alone(path: str) -> None:
    turns, alone = in_turn(build(path)), build(path, SEEDS[1:2])
    for batch in batches(4):
        together = turns.update(batch)
        for name, value in alone.update(tree_map(lambda x: x[1:2], batch)).items():
            assert torch.equal(together[name][1:2], value), name
    networks = [part for part in turns.parts if isinstance(getattr(turns, part), nn.Module)]
    assert {"critic", "target_critic"} <= set(networks)
    assert len(networks) >= 3 or path == "agents.langevin:Langevin"  # it has no actor
    for part in networks:
        pairs = zip(
            getattr(turns, part).parameters(), getattr(alone, part).parameters(), strict=True
        )
        for mine, its in pairs:
            assert torch.equal(mine[1 :: len(SEEDS)], its)


@pytest.mark.parametrize("path", BUILT_IN)
def test_a_restored_state_is_resumed(path: str) -> None:
    """Adam's count of updates among it, which all seeds share."""
    first, *later = batches(4)
    uncut, resumed = (in_turn(build(path)) for _ in range(2))
    uncut.update(first)
    resumed.load_state_dict(copy.deepcopy(uncut.state_dict()))
    for batch in later:
        uncut.update(batch)
        resumed.update(batch)
    pairs = zip(tensors(uncut.state_dict()), tensors(resumed.state_dict()), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_only_large_agents_of_known_parts_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(TD3):
        parts = (*TD3.parts, "numbers")

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.numbers = {"of all seeds": 7}

    class Bare:
        pass

    small = build("td3")
    large = TD3(TD3Config(hidden_sizes=(256, 256)), 24, 6, range(8), CPU)
    assert is_large(large)
    assert not is_large(small)
    monkeypatch.setattr(seed_by_seed, "LARGE", 0)
    assert is_large(small)
    assert not is_large(Counting(TD3Config(hidden_sizes=(8,)), 3, 2, SEEDS, CPU))
    assert not is_large(Bare())  # type: ignore[arg-type]
