"""Soft actor-critic against torch.distributions and its losses written plainly."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from agents.sac import SAC, Noise, SACConfig
from tests.agents.fixed_critics import (
    CPU,
    first_gradients,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_critic_loss,
)


def build(**settings: Any) -> SAC:
    agent = SAC(SACConfig(**{"hidden_sizes": (16, 16), **settings}), 3, 2, (0, 1), CPU)
    return in_float64(agent)


def squashed(agent: SAC, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterized draw of the policy and its log-density, by torch.distributions."""
    mean, log_std = agent.actor(observation).split(2, dim=-1)
    log_std = log_std.clamp(agent.config.log_std_min, agent.config.log_std_max)
    policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    action = policy.transforms[0](mean + log_std.exp() * noise)
    return action, policy.log_prob(action).sum(dim=-1)


def draw_noise(size: int) -> Noise:
    return Noise(*torch.randn(2, 2, size, 2, dtype=torch.float64))


def slope(observation: Tensor, action: Tensor) -> Tensor:
    return action.sum(dim=-1)


def wave(observation: Tensor, action: Tensor) -> Tensor:
    return (3 * action + observation[..., :2]).sin().sum(dim=-1)


@settings(max_examples=30)
@given(st.sampled_from([0.0, 1.0, 4.0]), st.floats(0.1, 3.0))
def test_log_density_is_that_of_the_transformed_distribution(spread: float, size: float) -> None:
    agent = build()
    perturb(agent.actor, spread)
    observation = torch.randn(2, 16, 3, dtype=torch.float64)
    noise = size * torch.randn(2, 16, 2, dtype=torch.float64)
    ours, theirs = agent.policy(observation, noise), squashed(agent, observation, noise)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize(("log_std", "clipped"), [(-9.0, -5.0), (9.0, 2.0), (0.5, 0.5)])
def test_log_standard_deviation_is_clipped(log_std: float, clipped: float) -> None:
    agent = build()
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        last: Any = agent.actor.layers[-1]
        last.bias[..., 2:] = log_std
    noise = torch.full((2, 1, 2), 0.1, dtype=torch.float64)
    action, _ = agent.policy(torch.zeros(2, 1, 3, dtype=torch.float64), noise)
    expected = torch.tensor(clipped, dtype=torch.float64).exp().mul(0.1).tanh().expand(2, 1, 2)
    torch.testing.assert_close(action, expected)


def test_critic_target_has_the_entropy_bonus_and_the_smaller_target() -> None:
    agent = build(initial_temperature=0.7)
    perturb(agent.target_critic)
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), draw_noise(16)
    with torch.no_grad():
        action, log_density = squashed(agent, batch.next_observation, noise.next_action)
        expected = plain_critic_loss(agent, batch, action, bonus=-0.7 * log_density)
    old = [p.clone() for p in agent.target_critic.parameters()]
    metrics = agent.pure_update(batch, noise)
    torch.testing.assert_close(metrics["critic_loss"], expected, rtol=1e-6, atol=1e-8)
    for target, before, new in zip(
        agent.target_critic.parameters(), old, agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.995 * before + 0.005 * new)


@pytest.mark.parametrize("actor_critic", ["min", "mean"])
def test_actor_climbs_value_and_entropy(actor_critic: str) -> None:
    agent = build(actor_critic=actor_critic, initial_temperature=0.3)
    fix_critic(agent, wave, slope)
    batch, noise = make_batch(2, 32, 3, 2, torch.float64), draw_noise(32)
    action, log_density = squashed(agent, batch.observation, noise.action)
    first, second = wave(batch.observation, action), slope(batch.observation, action)
    value = {"min": torch.minimum(first, second), "mean": (first + second) / 2}[actor_critic]
    expected = (0.3 * log_density - value).mean(dim=-1)
    gradients = torch.autograd.grad(expected.sum(), list(agent.actor.parameters()))
    metrics = agent.pure_update(batch, noise)
    torch.testing.assert_close(metrics["actor_loss"], expected.detach(), rtol=1e-6, atol=1e-8)
    for taken, gradient in zip(first_gradients(agent.actor_optimizer), gradients, strict=True):
        torch.testing.assert_close(taken, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("temperature_loss", "factor"), [("log_tau", 1.0), ("tau", 0.7)])
@pytest.mark.parametrize("entropy_per_action", [-1.0, -0.5])
def test_temperature_gradient_is_entropy_minus_its_target(
    entropy_per_action: float, temperature_loss: str, factor: float
) -> None:
    """By log tau; of a loss in tau it is tau times as large."""
    agent = build(
        entropy_per_action=entropy_per_action,
        temperature_loss=temperature_loss,
        initial_temperature=0.7,
    )
    batch, noise = make_batch(2, 32, 3, 2, torch.float64), draw_noise(32)
    with torch.no_grad():
        _, log_density = squashed(agent, batch.observation, noise.action)
    agent.pure_update(batch, noise)
    gradient = first_gradients(agent.temperature_optimizer)[0][:, 0]
    expected = factor * (-log_density.mean(dim=-1) - 2 * entropy_per_action)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("log_std", "direction"), [(-4.0, 1), (-0.5, -1)])
def test_temperature_rises_when_entropy_is_below_its_target_and_falls_above(
    log_std: float, direction: int
) -> None:
    # The entropy of a narrow normal of log-std l is about l + 1.42 an entry: -2.6 or 0.9.
    agent = build(log_std_min=log_std, log_std_max=log_std)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
    fix_critic(agent, lambda s, a: 0 * a.sum(dim=-1))
    agent.pure_update(make_batch(2, 256, 3, 2, torch.float64), draw_noise(256))
    assert (direction * agent.temperature["log"] > 0).all()


def test_entropy_settles_at_its_target() -> None:
    agent = SAC(SACConfig(hidden_sizes=(8,), learning_rate=1e-2), 3, 2, (0, 1), CPU)
    fix_critic(agent, lambda s, a: -3 * (a - 0.2).square().sum(dim=-1))
    batch = make_batch(2, 128, 3, 2, torch.float32)
    entropies = torch.stack([agent.update(batch)["entropy"] for _ in range(800)])[-200:]
    assert (entropies.mean(dim=0) + 2).abs().max() < 0.1


def test_evaluation_by_mean_is_the_squashed_mean_and_by_sample_is_not() -> None:
    observation = torch.randn(2, 5, 3)
    for evaluation in ("mean", "sample"):
        config = SACConfig(hidden_sizes=(16, 16), evaluation=evaluation)
        agent = SAC(config, 3, 2, (0, 1), CPU)
        mean = agent.actor(observation)[..., :2].tanh()
        same = torch.allclose(agent.act(observation, explore=False), mean)
        assert same == (evaluation == "mean")
        assert not torch.allclose(agent.act(observation, explore=True), mean)


def test_the_reference_preset_is_the_authors_baseline() -> None:
    config = SACConfig(**SAC.presets["sac_reference"])
    assert config.entropy_per_action == -0.5
    assert config.actor_critic == "mean"
    assert config.log_std_min == -20.0
    assert config.temperature_loss == "tau"
    assert config.evaluation == "mean"
    assert config.initialization == "xavier"


def test_the_actor_and_temperature_leave_the_critic_alone() -> None:
    agent = build()
    critic: nn.Module = copy.deepcopy(agent.critic)
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), draw_noise(16)
    with torch.no_grad():
        next_action, log_density = agent.policy(batch.next_observation, noise.next_action)
    loss = plain_critic_loss(agent, batch, next_action, bonus=-log_density)
    gradients = torch.autograd.grad(loss.sum(), list(agent.critic.parameters()))
    agent.pure_update(batch, noise)
    # Adam's first step is its step size times g / (|g| + 1e-8), of the critic's loss alone.
    for new, old, g in zip(agent.critic.parameters(), critic.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 3e-4 * g / (g.abs() + 1e-8), rtol=1e-6, atol=1e-9)
