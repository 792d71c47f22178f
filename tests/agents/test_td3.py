"""Twin delayed DDPG: target, smoothing, delay and noise, each against its formula."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.common.networks import MLP
from agents.td3 import TD3, TD3Config
from tests.agents.fixed_critics import (
    CPU,
    first_gradients,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_critic_loss,
)


def build(**settings: Any) -> TD3:
    return in_float64(TD3(TD3Config(**{"hidden_sizes": (16, 16), **settings}), 3, 2, (0, 1), CPU))


def constant(network: MLP, action: float) -> None:
    """Make an actor output ``action`` everywhere."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        last: Any = network.layers[-1]
        last.bias.fill_(action).atanh_()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("policy_action", "noise", "smoothed"),
    [(0.0, 1.0, 0.2), (0.0, -1.5, -0.3), (0.0, 4.0, 0.5), (0.3, -9.0, -0.2), (0.8, 2.0, 1.0)],
)
def test_target_action_is_smoothed_by_clipped_noise_and_stays_in_the_box(
    policy_action: float, noise: float, smoothed: float
) -> None:
    agent = build()
    constant(agent.target_actor, policy_action)
    seen: list[Tensor] = []

    def record(observation: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return action.sum(dim=-1)

    fix_critic(agent, record)
    noises = torch.full((2, 4, 2), noise).double()
    agent.pure_update(make_batch(2, 4, 3, 2, torch.float64), noises, moves_actor=False)
    # The target critic's twins are asked first.
    torch.testing.assert_close(seen[0], torch.full((2, 4, 2), smoothed).double())


@pytest.mark.parametrize("target_noise", [0.0, 0.2])
def test_critic_target_is_the_smaller_target_at_the_target_actors_action(
    target_noise: float,
) -> None:
    agent = build(target_noise=target_noise)
    perturb(agent.target_critic)
    perturb(agent.target_actor)
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), 2 * normal(2, 16, 2)
    with torch.no_grad():
        action = agent.target_actor(batch.next_observation).tanh()
        action = (action + (target_noise * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
        expected = plain_critic_loss(agent, batch, action)
    torch.testing.assert_close(
        agent.pure_update(batch, noise, moves_actor=False)["critic_loss"], expected
    )


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_at_every_delayed_update_only(delay: int) -> None:
    agent = build(policy_delay=delay)
    batch = make_batch(2, 16, 3, 2, torch.float64)

    def snapshot(*networks: torch.nn.Module) -> list[Tensor]:
        return [p.clone() for network in networks for p in network.parameters()]

    for update in range(1, 7):
        critic = snapshot(agent.critic)
        slow = snapshot(agent.actor, agent.target_actor, agent.target_critic)
        agent.update(batch)
        assert not any(map(torch.equal, critic, snapshot(agent.critic)))
        now = snapshot(agent.actor, agent.target_actor, agent.target_critic)
        moved = [not torch.equal(a, b) for a, b in zip(slow, now, strict=True)]
        assert all(moved) if update % delay == 0 else not any(moved)


def test_targets_are_polyak_averages() -> None:
    agent = build(polyak=0.25, policy_delay=1)
    pairs: tuple[tuple[nn.Module, nn.Module], ...] = (
        (agent.target_critic, agent.critic),
        (agent.target_actor, agent.actor),
    )
    for target, _ in pairs:
        perturb(target)
    old = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    agent.pure_update(make_batch(2, 16, 3, 2, torch.float64), normal(2, 16, 2), moves_actor=True)
    for (target, online), before in zip(pairs, old, strict=True):
        for moved, was, to in zip(target.parameters(), before, online.parameters(), strict=True):
            torch.testing.assert_close(moved, 0.75 * was + 0.25 * to)


def test_actor_climbs_the_first_critic() -> None:
    agent = build(policy_delay=1)

    def first(observation: Tensor, action: Tensor) -> Tensor:
        return (3 * action + observation[..., :2]).sin().sum(dim=-1)

    fix_critic(agent, first, lambda s, a: -10 - a.sum(dim=-1))
    batch = make_batch(2, 16, 3, 2, torch.float64)
    value = first(batch.observation, agent.actor(batch.observation).tanh()).mean(dim=-1)
    gradients = torch.autograd.grad(-value.sum(), list(agent.actor.parameters()))
    agent.pure_update(batch, normal(2, 16, 2), moves_actor=True)
    for taken, gradient in zip(first_gradients(agent.actor_optimizer), gradients, strict=True):
        torch.testing.assert_close(taken, gradient)


def test_the_actor_settles_at_the_maximizer() -> None:
    agent = TD3(TD3Config(hidden_sizes=(16,), learning_rate=1e-2), 3, 2, (0, 1), CPU)
    fix_critic(agent, lambda s, a: -(a - torch.tensor([0.4, -0.7])).square().sum(dim=-1))
    for _ in range(400):
        agent.update(make_batch(2, 32, 3, 2, torch.float32))
    action = agent.act(torch.randn(2, 10, 3), explore=False)
    torch.testing.assert_close(
        action, torch.tensor([0.4, -0.7]).expand_as(action), rtol=0, atol=0.05
    )


def test_exploring_adds_noise_of_the_set_size_and_evaluating_none() -> None:
    agent = TD3(TD3Config(hidden_sizes=(16,), exploration_noise=0.1), 3, 2, (0, 1), CPU)
    constant(agent.actor, 0.3)
    observation = torch.zeros(2, 20_000, 3)
    plain = agent.act(observation, explore=False)
    torch.testing.assert_close(plain, torch.full_like(plain, 0.3))
    noise = agent.act(observation, explore=True) - plain
    # Standard errors over 80,000 draws: 0.1 / sqrt(80000) and 0.1 / sqrt(160000).
    assert abs(noise.mean().item()) < 5 * 0.1 / 80_000**0.5
    assert noise.std().item() == pytest.approx(0.1, abs=5 * 0.1 / 160_000**0.5)


@pytest.mark.parametrize(("clip", "seen_action"), [(True, 1.0), (False, 1.2)])
def test_the_next_action_may_leave_the_box(clip: bool, seen_action: float) -> None:
    agent = build(clip_next_action=clip)
    constant(agent.target_actor, 0.8)
    seen: list[Tensor] = []

    def record(observation: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return action.sum(dim=-1)

    fix_critic(agent, record)
    agent.pure_update(
        make_batch(2, 4, 3, 2, torch.float64), torch.full((2, 4, 2), 2.0).double(), False
    )
    torch.testing.assert_close(seen[0], torch.full((2, 4, 2), seen_action).double())


@pytest.mark.parametrize("delayed_targets", ["both", "actor"])
def test_the_critics_targets_may_move_at_every_update(delayed_targets: str) -> None:
    agent = build(delayed_targets=delayed_targets, policy_delay=2)
    batch = make_batch(2, 16, 3, 2, torch.float64)
    for update in range(1, 5):
        before = [next(n.parameters()).clone() for n in (agent.target_critic, agent.target_actor)]
        agent.update(batch)
        after = [next(n.parameters()) for n in (agent.target_critic, agent.target_actor)]
        critics_move, actor_moves = (
            not torch.equal(a, b) for a, b in zip(before, after, strict=True)
        )
        assert actor_moves == (update % 2 == 0)
        assert critics_move == (update % 2 == 0 or delayed_targets == "actor")
