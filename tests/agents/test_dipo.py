"""DIPO: bursts of known length, what is written back, and what is imitated."""

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.common.action_memory import BLOCK, ActionMemory
from agents.dipo import DIPO, ActorNoise, DIPOConfig
from agents.protocol import Batch
from agents.speed.seed_by_seed import SeedBySeed, is_large
from qsm_bench.replay import ReplayBuffer
from tests.agents.fixed_critics import (
    CPU,
    central_differences,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    tensors,
)

SEEDS = (0, 1)
START, BEST = -0.9, 0.9


def build(action_size: int = 1, **settings: Any) -> DIPO:
    config = DIPOConfig(**{"hidden_sizes": (16, 16), **settings})
    return DIPO(config, 3, action_size, SEEDS, CPU)


def parabola(k: float, best: float = BEST) -> Any:
    return lambda s, a: -k * (a - best).square().sum(dim=-1)


def two_modes(observation: Tensor, action: Tensor) -> Tensor:
    return torch.maximum(-(action - 0.5).square(), -(action + 0.5).square()).sum(dim=-1)


def improved(agent: DIPO, start: float, rows: int = 256) -> float:
    """Where a burst takes actions that are all at one place."""
    action = torch.full((2, rows, 1), start, dtype=torch.float64)
    found = agent.improve(torch.zeros(2, rows, 3, dtype=torch.float64), action)
    assert (found == found[0, 0]).all()
    return float(found[0, 0])


def fixed_batch(action: Tensor, first: int = 0) -> Batch:
    """Transitions with these actions [S, B, act], numbered from ``first`` on."""
    seeds, size, entries = action.shape
    batch = make_batch(seeds, size, 3, entries, torch.float32)
    assert batch.number is not None
    return batch._replace(action=action, number=first + batch.number)


@pytest.mark.parametrize("k", [0.1, 1, 10, 100])
@pytest.mark.parametrize(("norm", "length"), [(0.1, 0.599), (0.0, 0.5855)])
def test_a_burst_is_as_long_whatever_the_scale_of_q(k: float, norm: float, length: float) -> None:
    """Clipped, the gradient is constant, and each of 20 steps is 0.03 long but for EPSILON."""
    agent = in_float64(build(action_norm=norm))
    fix_critic(agent, parabola(k))
    assert improved(agent, START) - START == pytest.approx(length, abs=2e-4)


@pytest.mark.parametrize("k", [0.1, 1, 10, 100])
def test_a_burst_ends_near_an_optimum_within_its_reach(k: float) -> None:
    agent = in_float64(build())
    fix_critic(agent, parabola(k, 0.3))
    end = improved(agent, 0.25)
    assert end == pytest.approx(0.3, abs=0.007)
    if k == 1:
        assert end == pytest.approx(0.307, abs=5e-4)
    assert improved(agent, 0.3) == 0.3
    # Momentum carries it over the top, and back: by how much depends on the way.
    for start in (-0.3, 0.0, 0.1, 0.5):
        assert improved(agent, start) == pytest.approx(0.3, abs=0.05)
    free = in_float64(build(action_norm=0.0))
    fix_critic(free, parabola(k, 0.3))
    assert improved(free, 0.25) == pytest.approx(0.311, abs=5e-4)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_no_critic_moves_an_action_further_than_adam_can(seed: int, exponent: float) -> None:
    """By the Cauchy-Schwarz inequality m <= sqrt(v sum_i w_i^2 / u_i), of the moments' weights."""
    agent = in_float64(build(2))
    generator = torch.Generator().manual_seed(seed)
    waves = 10**exponent * torch.randn(2, 8, dtype=torch.float64, generator=generator)
    fix_critic(
        agent, lambda s, a: (5 * a @ waves).sin().sum(dim=-1), lambda s, a: (a @ waves).sum(-1)
    )
    action = 2 * torch.rand(2, 16, 2, dtype=torch.float64, generator=generator) - 1
    found = agent.improve(torch.zeros(2, 16, 3, dtype=torch.float64), action)
    assert (found - action).abs().max() <= 0.6353
    assert found.abs().max() <= 1.0


def test_the_smaller_critic_is_climbed() -> None:
    agent = in_float64(build())
    fix_critic(agent, lambda s, a: a.sum(dim=-1), lambda s, a: -2 * a.sum(dim=-1))
    assert improved(agent, 0.5) == pytest.approx(0.0, abs=0.1)
    assert improved(agent, -0.5) == pytest.approx(0.0, abs=0.1)


def test_the_norm_is_of_each_seeds_whole_batch() -> None:
    """A row is clipped more where the others' gradients are large, and no seed sees another's.

    At a first step Adam takes g / (|g| + EPSILON).
    """
    agent = in_float64(build(action_steps=1, action_norm=1e-5))
    fix_critic(agent, lambda s, a: (s[..., :1] * a).sum(dim=-1))
    slope = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    observation = slope.unsqueeze(-1).expand(-1, -1, 3)
    moves = agent.improve(observation, torch.zeros(2, 2, 1, dtype=torch.float64)).squeeze(-1) / 0.03
    clipped = 1e-5 * slope / slope.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moves, clipped / (clipped + 1e-5), rtol=1e-5, atol=0)


def test_without_writing_back_an_action_stays_within_a_burst_of_the_replayed_one() -> None:
    agent = build(write_back=False)
    fix_critic(agent, parabola(1))
    assert not hasattr(agent, "memory")
    batch = fixed_batch(torch.full((2, 256, 1), START))
    for _ in range(5):
        metrics = agent.update(batch)
        torch.testing.assert_close(metrics["moved"], torch.full((2,), 0.599), rtol=0, atol=1e-3)
    assert "improved" not in metrics


def test_written_back_an_action_reaches_the_optimum_at_its_third_visit() -> None:
    """ceil(1.8 / 0.6), and is still there afterwards."""
    agent = build()
    fix_critic(agent, parabola(1))
    batch = fixed_batch(torch.full((2, 256, 1), START))
    found = []
    for _ in range(6):
        agent.update(batch)
        assert batch.number is not None
        found.append(agent.memory.recall(batch.number, batch.action)[0, 0, 0].item())
    assert found[:3] == pytest.approx([-0.301, 0.298, 0.897], abs=1e-3)
    assert found[3:] == pytest.approx([BEST] * 3, abs=0.02)


def test_an_action_goes_on_from_where_it_was_with_another_batch_between() -> None:
    agent = build()
    fix_critic(agent, parabola(1))
    one, other = (fixed_batch(torch.full((2, 256, 1), START), first) for first in (0, 100_000))
    moved = [agent.update(batch)["moved"][0].item() for batch in (one, other, one, other)]
    assert moved == pytest.approx([0.599, 0.599, 1.198, 1.198], abs=1e-3)


def test_the_critic_learns_from_the_executed_action() -> None:
    """Written back or not, its first update is the same, and its second."""
    with_memory, without = build(), build(write_back=False)
    without.load_state_dict(with_memory.state_dict())
    batch = make_batch(2, 16, 3, 1, torch.float32)
    for agent in (with_memory, without):
        agent.actor_optimizer.learning_rate = 0.0
    for _ in range(3):
        ours, theirs = with_memory.update(batch), without.update(batch)
        assert torch.equal(ours["critic_loss"], theirs["critic_loss"])
    assert not torch.equal(ours["actor_loss"], theirs["actor_loss"])


@settings(max_examples=10)
@given(st.integers(2, 8), st.integers(0, 10_000))
def test_no_action_is_ever_that_of_another_transition(capacity: int, seed: int) -> None:
    """In a ring that is overwritten, with transitions told apart by what they hold."""
    agent = build(action_steps=2, diffusion_steps=2)
    replay = ReplayBuffer(capacity, 3, 1, (seed, seed + 1), CPU, n_step=3)
    known: dict[tuple[int, int], float] = {}
    seen: dict[str, Tensor] = {}
    pure_update, remembered = agent.pure_update, 0

    def watched(batch: Batch, noise: Any, moves_actor: bool = True) -> Any:
        metrics = pure_update(batch, noise, moves_actor)
        seen.update(start=noise.actor.start, improved=metrics["improved"])
        return metrics

    agent.pure_update = watched  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(seed)
    for step in range(3 * capacity + 5):
        flags = torch.zeros(2, dtype=torch.bool)
        place = torch.full((2, 3), float(step))
        action = 2 * torch.rand(2, 1, generator=generator) - 1
        replay.add(place, action, torch.zeros(2), place, flags, flags)
        batch = replay.sample(4)
        agent.update(batch)
        for row in range(2):
            keys = [(row, int(x)) for x in batch.observation[row, :, 0]]
            for b, key in enumerate(keys):
                remembered += key in known
                wanted = known.get(key, batch.action[row, b].item())
                assert seen["start"][row, b].item() == wanted
            for key in keys:
                among = [seen["improved"][row, i].item() for i, k in enumerate(keys) if k == key]
                assert max(among) - min(among) < 1e-5
                known[key] = max(among)
    assert remembered
    assert agent.memory.known.sum() == len(known) > 2 * capacity


def test_the_memory_keeps_what_it_has_where_it_grows() -> None:
    memory = ActionMemory(2, 3, CPU)
    number, action = torch.tensor([[0, 5], [5, 7]]), torch.randn(2, 2, 3)
    nothing = torch.zeros(2, 2, 3)
    assert torch.equal(memory.recall(number, nothing), nothing)
    memory.remember(number, action)
    places = memory.known.shape[1]
    assert places == BLOCK
    assert torch.equal(memory.recall(torch.tensor([[places - 1] * 2] * 2), action), action)
    assert memory.known.shape[1] == places
    assert torch.equal(memory.recall(torch.tensor([[100_000] * 2] * 2), action), action)
    assert memory.known.shape[1] == 123 * BLOCK
    assert torch.equal(memory.recall(number, nothing), action)
    assert torch.equal(memory.recall(number.flip(0), nothing)[0, 0], action[0, 1])


def test_a_saved_memory_is_read_by_one_that_is_longer_or_shorter() -> None:
    memory, longer, other = (ActionMemory(2, 1, CPU) for _ in range(3))
    number, action = torch.tensor([[3], [4]]), torch.randn(2, 1, 1)
    memory.recall(number, action)
    memory.remember(number, action)
    longer.recall(10_000 + number, action)
    longer.remember(10_000 + number, action)
    for each in (longer, other):
        each.load_state_dict(copy.deepcopy(memory.state_dict()))
        assert torch.equal(each.recall(number, 0 * action), action)
        assert each.known.sum() == 2
    place = other.actions.data_ptr()
    other.load_state_dict(copy.deepcopy(memory.state_dict()))
    assert other.actions.data_ptr() == place
    for wrong in (ActionMemory(3, 1, CPU), ActionMemory(2, 2, CPU)):
        with pytest.raises(ValueError, match="actions of"):
            memory.load_state_dict(wrong.state_dict())


def test_a_batch_that_does_not_say_whose_its_actions_are_is_refused() -> None:
    batch = make_batch(2, 8, 3, 1, torch.float32)._replace(number=None)
    with pytest.raises(ValueError, match="numbers of its transitions"):
        build().update(batch)
    build(write_back=False).update(batch)


def test_seed_by_seed_the_same_is_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.speed.seed_by_seed.LARGE", 0)
    at_once, turns = build(2), build(2)
    assert is_large(turns)
    turns.pure_update = SeedBySeed(turns, 2, lambda one: one.pure_update)  # type: ignore[method-assign, assignment]
    for first in (0, 8, 0):
        batch = fixed_batch(2 * torch.rand(2, 16, 2) - 1, first)
        ours, theirs = at_once.update(batch), turns.update(batch)
        assert list(ours) == list(theirs)
    pairs = zip(tensors(at_once.state_dict()), tensors(turns.state_dict()), strict=True)
    for mine, its in pairs:
        torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-4)


class Perfect(nn.Module):
    """The denoiser that is least wrong if the improved action is always the same, plus an error."""

    def __init__(self, agent: DIPO, action: float, error: float) -> None:
        super().__init__()
        self.schedule, self.action, self.error = agent.schedule, action, error

    def forward(self, observation: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        signal, deviation = self.schedule.signal(t), self.schedule.noise_std(t)
        return (noisy - signal * self.action) / deviation + self.error


@pytest.mark.parametrize("schedule", ["vp", "cosine"])
def test_one_improved_action_has_its_minimizer(schedule: str) -> None:
    agent = in_float64(build(schedule=schedule, diffusion_steps=20))
    fix_critic(agent, parabola(5, 0.3))
    batch = make_batch(2, 64, 3, 1, torch.float64)
    batch = batch._replace(action=torch.full_like(batch.action, 0.3))
    noise = doubled(agent.draw_actor_noise(64))
    for error in (0.0, 0.1, -0.1):
        agent.denoiser = Perfect(agent, 0.3, error)  # type: ignore[assignment]
        loss, _ = agent.actor_loss(batch, noise)
        torch.testing.assert_close(loss, torch.full_like(loss, error**2), rtol=1e-9, atol=1e-20)


def test_the_gradient_is_the_central_difference() -> None:
    agent = in_float64(build(2, action_steps=4))
    batch = make_batch(2, 16, 3, 2, torch.float64)
    noise = doubled(agent.draw_actor_noise(16))
    loss, _ = agent.actor_loss(batch, noise)
    ours = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    for along, difference in central_differences(agent, batch, noise, ours):
        assert along == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_no_gradient_reaches_the_critics_or_the_improved_actions() -> None:
    agent = build()
    batch = make_batch(2, 8, 3, 1, torch.float32)
    loss, metrics = agent.actor_loss(batch, agent.draw_actor_noise(8))
    found = torch.autograd.grad(loss.sum(), [*agent.critic.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in found)
    assert not any(value.requires_grad for value in metrics.values())


def test_what_is_given_to_improve_is_in_the_place_of_the_replayed_action() -> None:
    agent = build()
    fix_critic(agent, parabola(1))
    batch = make_batch(2, 8, 3, 1, torch.float32)
    noise: ActorNoise = agent.draw_actor_noise(8)
    plain, _ = agent.actor_loss(batch, noise)
    moved = noise._replace(start=batch.action)
    same, _ = agent.actor_loss(batch._replace(action=0 * batch.action), moved)
    assert torch.equal(plain, same)


def test_every_action_climbs_its_own_hill() -> None:
    agent = build()
    fix_critic(agent, two_modes)
    batch = fixed_batch(2 * torch.rand(2, 256, 1) - 1)
    for _ in range(3):
        agent.update(batch)
    assert batch.number is not None
    ends = agent.memory.recall(batch.number, batch.action)
    torch.testing.assert_close(ends, 0.5 * batch.action.sign(), rtol=0, atol=0.1)


def test_the_policy_learns_both_modes_in_their_shares() -> None:
    agent = build(
        hidden_sizes=(64, 64),
        diffusion_steps=20,
        learning_rate=1e-2,
        actor_decay_updates=800,
        action_steps=1,
    )
    fix_critic(agent, two_modes)
    batch = fixed_batch(torch.where(torch.rand(2, 256, 1) < 0.3, -0.5, 0.5))
    batch = batch._replace(observation=0 * batch.observation)
    for _ in range(800):
        loss, _ = agent.actor_loss(batch, agent.draw_actor_noise(256))
        agent.actor_optimizer.minimize(loss)
    samples = agent.act(torch.zeros(2, 4000, 3), explore=False)
    left, wanted = ((x < 0).float().mean(dim=(1, 2)) for x in (samples, batch.action))
    torch.testing.assert_close(left, wanted, rtol=0, atol=0.12)
    # Of a uniform policy these are 0.3 and 0.25.
    assert ((samples.abs() - 0.5).abs() < 0.15).float().mean() > 0.55
    assert (samples.abs() < 0.25).float().mean() < 0.22


def test_evaluated_without_noise_the_chain_is_its_means() -> None:
    agent = build(evaluation="means", candidates_evaluate=1)
    observation = torch.randn(2, 4, 3)
    first = copy.deepcopy(agent.sample_stream).normal(5, 4, 1)
    first[:, 1:] = 0
    wanted = agent.policy.sample(observation, first)
    assert torch.equal(agent.act(observation, explore=False), wanted)
    several = build(evaluation="means", candidates_evaluate=3)
    assert several.act(observation, explore=False).shape == (2, 4, 1)
    noisy = build()
    assert not torch.equal(noisy.act(observation, explore=False), wanted)


def test_it_asks_for_no_randomness() -> None:
    assert DIPO.effective_temperature(DIPOConfig(), {}) == 0.0


@pytest.mark.parametrize("name", [n for n in DIPO.presets if n.endswith("_reference")])
def test_a_reference_preset_spells_out_every_choice(name: str) -> None:
    assert set(DIPO.presets[name]) | {"matmul_precision"} == {f.name for f in fields(DIPOConfig)}
