"""QVPO against its loss written plainly, and its ideal policies against closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agents.qvpo import QVPO, ActorNoise, QVPOConfig
from tests.agents.fixed_critics import (
    CPU,
    central_differences,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    plain_sample,
    plain_schedule,
)

SEEDS = (0, 1)


def build(action_size: int = 2, **settings: Any) -> QVPO:
    config = QVPOConfig(**{"hidden_sizes": (16, 16), **settings})
    return in_float64(QVPO(config, 3, action_size, SEEDS, CPU))


def parabola(observation: Tensor, action: Tensor) -> Tensor:
    return -(action - 0.3).square().sum(dim=-1)


def two_modes(observation: Tensor, action: Tensor) -> Tensor:
    return torch.maximum(-(action - 0.5).abs(), -(action + 0.5).abs()).sum(dim=-1)


def draw(agent: QVPO, size: int) -> ActorNoise:
    noise: ActorNoise = doubled(agent.draw_actor_noise(size))
    return noise


def test_the_loss_is_the_formula() -> None:
    agent = build(samples=5, uniform_samples=3, uniform_weight=0.5, diffusion_steps=3)
    fix_critic(agent, parabola, lambda s, a: parabola(s, a) + 0.1 * a[..., 0])
    batch, noise = make_batch(2, 6, 3, 2, torch.float64), draw(agent, 6)
    loss, metrics = agent.actor_loss(batch, noise)

    abar = torch.tensor(plain_schedule(3)[1], dtype=torch.float64)
    with torch.no_grad():
        samples = torch.stack(
            [plain_sample(agent.denoiser, 3, batch.observation, z) for z in noise.chain.split(6, 2)]
        )
        values = torch.stack([agent.critic(batch.observation, a).amin(dim=0) for a in samples])
    total = torch.zeros(2, dtype=torch.float64)
    for seed in range(2):
        for b in range(6):
            best = values[:, seed, b].argmax()
            weight = values[best, seed, b] - values[:, seed, b].mean()
            rows = [(samples[best, seed, b], weight)]
            rows += [(noise.uniform[seed, 6 * k + b], 0.5 * weight) for k in range(3)]
            for k, (action, share) in enumerate(rows):
                t, e = noise.t[seed, 6 * k + b], noise.noise[seed, 6 * k + b]
                noisy = abar[t].sqrt() * action + (1 - abar[t]).sqrt() * e
                predicted = agent.denoiser(
                    batch.observation[:, b : b + 1], noisy.expand(2, 1, 2), int(t)
                )[seed, 0]
                total[seed] += share * (predicted - e).square().mean() / (6 * 4)
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-9)
    advantage = (values.amax(dim=0) - values.mean(dim=0)).mean(dim=-1)
    torch.testing.assert_close(metrics["advantage"], advantage)


def test_a_critic_that_does_not_depend_on_the_action_teaches_nothing() -> None:
    agent = build()
    fix_critic(agent, lambda s, a: 0 * a[..., 0] + s[..., 0])
    # A value that 32 of sum to 32 times it, so that no rounding is seen.
    batch = make_batch(2, 16, 3, 2, torch.float64)
    batch = batch._replace(observation=batch.observation.round())
    loss, _ = agent.actor_loss(batch, draw(agent, 16))
    gradients = torch.autograd.grad(loss.sum(), [*agent.denoiser.parameters()])
    assert (loss == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)


def test_the_loss_is_as_large_as_the_advantage() -> None:
    agent = build()
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), draw(agent, 16)
    fix_critic(agent, parabola)
    small, _ = agent.actor_loss(batch, noise)
    fix_critic(agent, lambda s, a: 1000 * parabola(s, a) - 5)
    large, _ = agent.actor_loss(batch, noise)
    torch.testing.assert_close(large, 1000 * small)


def test_no_gradient_reaches_the_critics_or_the_samples() -> None:
    agent = build()
    batch, noise = make_batch(2, 8, 3, 2, torch.float64), draw(agent, 8)
    loss, _ = agent.actor_loss(batch, noise)
    found = torch.autograd.grad(loss.sum(), [*agent.critic.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in found)
    best, advantage = agent.best_sample(batch.observation, noise.chain)
    assert not best.requires_grad
    assert not advantage.requires_grad


def test_the_gradient_is_the_central_difference_with_the_samples_held() -> None:
    agent = build()
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), draw(agent, 16)
    held = agent.best_sample(batch.observation, noise.chain)
    agent.best_sample = lambda *_: held  # type: ignore[method-assign]
    loss, _ = agent.actor_loss(batch, noise)
    ours = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    for along, difference in central_differences(agent, batch, noise, ours):
        assert along == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_the_weight_of_uniform_actions_falls_along_a_line_to_its_end() -> None:
    agent = build(uniform_decay_updates=100)
    found = []
    for updates in (0, 50, 89, 90, 99, 1000):
        agent.actor_optimizer.updates.fill_(updates)
        found.append(agent.uniform_weight().item())
    assert found == pytest.approx([0.02, 0.01, 0.0022, 0.002, 0.002, 0.002])
    constant = build(uniform_decay_updates=0)
    constant.actor_optimizer.updates.fill_(1e9)
    assert constant.uniform_weight().item() == pytest.approx(0.02)


@pytest.mark.parametrize(("omega", "share"), [(0.02, 0.167), (0.002, 0.020), (0.01, 0.091)])
def test_the_uniform_share_of_the_ideal_policy(omega: float, share: float) -> None:
    """Of the loss's rows of one state, weighted, whatever its advantage is."""
    agent = build(uniform_weight=omega, uniform_samples=10)
    weight = agent.uniform_weight().item()
    assert 10 * weight / (1 + 10 * weight) == pytest.approx(share, abs=5e-4)


def refit(agent: QVPO, critic: Any, rounds: int, omega: float, start: Tensor) -> Tensor:
    """Replace a policy, given as samples [S, rows], again and again by its ideal refit."""
    fix_critic(agent, critic)
    samples, rows = start, start.shape[1]
    share = 10 * omega / (1 + 10 * omega)
    for _ in range(rounds):
        picked = torch.randint(rows, (2, 64 * rows))
        candidates = samples.gather(1, picked).unsqueeze(-1)
        best = agent.best_action(torch.zeros(2, rows, 3), candidates).squeeze(-1)
        uniform = 2 * torch.rand_like(best) - 1
        samples = torch.where(torch.rand_like(best) < share, uniform, best)
    return samples


def test_ideal_refits_keep_the_uniform_share_alone() -> None:
    agent = build(1)
    start = 2 * torch.rand(2, 4000, dtype=torch.float64) - 1
    wide = refit(agent, parabola, 30, 0.02, start)
    # A share of 1/6 that is uniform, around 0.3: the variance is (1/3 + 0.09) / 6 - 0.05^2.
    assert wide.std().item() == pytest.approx(0.26, abs=0.015)
    assert refit(agent, parabola, 30, 0.0, start).std().item() < 1e-3


def test_of_two_equal_modes_no_force_keeps_both_and_of_unequal_ones_the_better_stays() -> None:
    agent = build(1)
    # Ideal samples at the modes, with some jitter; 30 % of them in the right one.
    side = (torch.rand(2, 20_000, dtype=torch.float64) < 0.3).double() - 0.5
    start = side + 0.01 * torch.randn_like(side)
    once = refit(agent, two_modes, 1, 0.0, start)
    assert (once > 0).double().mean().item() == pytest.approx(0.3, abs=0.02)

    def better_right(observation: Tensor, action: Tensor) -> Tensor:
        return two_modes(observation, action) + 0.01 * (action[..., 0] > 0)

    unequal = refit(agent, better_right, 2, 0.0, start)
    assert (unequal > 0).double().mean() > 0.99


def test_there_is_a_temperature_only_without_uniform_actions() -> None:
    assert QVPO.effective_temperature(QVPOConfig(), {}) is None
    assert QVPO.effective_temperature(QVPOConfig(uniform_samples=0), {}) == 0.0


def test_its_own_samples_climb_the_critic() -> None:
    agent = QVPO(
        QVPOConfig((32, 32), learning_rate=3e-3, samples=8, actor_decay_updates=0), 3, 1, SEEDS, CPU
    )
    fix_critic(agent, parabola)

    def distance() -> float:
        action = agent.act(torch.zeros(2, 2000, 3), explore=False)
        return (action - 0.3).abs().mean().item()

    before = distance()
    for _ in range(400):
        agent.update(make_batch(2, 64, 3, 1, torch.float32))
    # The uniform share of 1/6 alone is 0.55 / 6 = 0.09 away.
    assert distance() < 0.25 < before
