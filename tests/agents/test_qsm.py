"""Q-score matching against eq. 10-11, and on critics whose gradient is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.protocol import Batch
from agents.qsm import QSM, ActorNoise, QSMConfig
from agents.sac import SAC, SACConfig
from tests.agents.fixed_critics import (
    CPU,
    assert_critic_learns_as_written,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_schedule,
)

SEEDS = (0, 1)


def build(observation_size: int = 3, action_size: int = 2, **settings: Any) -> QSM:
    config = QSMConfig(**{"hidden_sizes": (32, 32), **settings})
    return QSM(config, observation_size, action_size, SEEDS, CPU)


def bowl(observation: Tensor, action: Tensor) -> Tensor:
    """Highest at a = s / 2; its gradient is s / 2 - a."""
    return -(action - observation / 2).square().sum(dim=-1) / 2


def plane(observation: Tensor, action: Tensor) -> Tensor:
    """Its gradient is (2, -1)."""
    return 2 * action[..., 0] - action[..., 1]


def bowl_gradient(observation: Tensor, action: Tensor) -> Tensor:
    return observation / 2 - action


def draw(agent: QSM, size: int) -> tuple[Batch, ActorNoise]:
    """A float64 batch whose observations have the actions' size, with every t in it."""
    batch = make_batch(2, size, 2, 2, torch.float64)
    t = 1 + torch.arange(size).expand(2, -1) % agent.config.diffusion_steps
    return batch, ActorNoise(t, torch.randn(2, size, 2, dtype=torch.float64))


def noised(batch: Batch, noise: ActorNoise, steps: int) -> tuple[Tensor, Tensor]:
    """a^t and abar_t as the text has them."""
    abar = torch.tensor(plain_schedule(steps)[1], dtype=torch.float64)[noise.t].unsqueeze(-1)
    return abar.sqrt() * batch.action + (1 - abar).sqrt() * noise.noise, abar


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("gradient_of", ["mean", "min"])
@pytest.mark.parametrize("target_scale", ["alpha", "noised", "normalized"])
def test_actor_loss_is_the_formula(steps: int, gradient_of: str, target_scale: str) -> None:
    agent = in_float64(
        build(
            2,
            diffusion_steps=steps,
            gradient_of=gradient_of,
            target_scale=target_scale,
            alpha=7.0,
            temperature=0.2,
        )
    )
    fix_critic(agent, bowl, plane)
    # Only the online critics' gradient counts.
    agent.target_critic = nn.Identity()  # type: ignore[assignment]
    batch, noise = draw(agent, 40)
    at, abar = noised(batch, noise, steps)

    first = bowl_gradient(batch.observation, at)
    second = torch.tensor([2.0, -1.0], dtype=torch.float64).expand_as(first)
    smaller = bowl(batch.observation, at) < plane(batch.observation, at)
    by_name = {
        "mean": (first + second) / 2,
        "min": torch.where(smaller.unsqueeze(-1), first, second),
    }
    gradient = by_name[gradient_of]
    torch.testing.assert_close(agent.action_gradient(batch.observation, at), gradient)

    mean_size = gradient.abs().mean(dim=(1, 2), keepdim=True)
    score = {
        "alpha": 7.0 * gradient,
        "noised": 7.0 * (1 - abar).sqrt() * gradient,
        "normalized": (1 - abar).sqrt() * gradient / (0.2 * mean_size),
    }[target_scale]
    predicted = agent.denoiser(batch.observation, at, noise.t)
    expected = (predicted + score).square().mean(dim=(1, 2))
    loss, _ = agent.actor_loss(batch, noise)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)

    parameters = list(agent.denoiser.parameters())
    for ours, plain in zip(
        torch.autograd.grad(loss.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_normalized_target_is_free_of_the_scale_and_offset_of_q() -> None:
    agent = in_float64(build(2, target_scale="normalized"))
    batch, noise = draw(agent, 16)
    fix_critic(agent, bowl)
    small, _ = agent.actor_loss(batch, noise)
    fix_critic(agent, lambda s, a: 1000 * bowl(s, a) - 5)
    large, _ = agent.actor_loss(batch, noise)
    torch.testing.assert_close(small, large)


def test_noised_actions_are_not_clipped() -> None:
    agent = in_float64(build(2, diffusion_steps=1, alpha=1.0))
    seen: list[Tensor] = []

    def record(observation: Tensor, action: Tensor) -> Tensor:
        seen.append(action.detach())
        return bowl(observation, action)

    fix_critic(agent, record)
    batch, noise = draw(agent, 64)
    agent.actor_loss(batch, noise)
    assert seen[0].abs().max() > 1.5


def test_no_gradient_reaches_the_critic() -> None:
    agent = build()
    batch = make_batch(2, 8, 3, 2, torch.float32)
    loss, _ = agent.actor_loss(batch, agent.draw_actor_noise(8))
    gradients = torch.autograd.grad(loss.sum(), [*agent.critic.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("steps", [1, 4])
def test_times_are_uniform_from_1_to_t(steps: int) -> None:
    n = 10_000
    t = build(diffusion_steps=steps).draw_actor_noise(n).t
    counts = torch.stack([torch.bincount(row, minlength=steps + 1) for row in t])
    assert counts.shape == (2, steps + 1)
    assert (counts[:, 0] == 0).all()
    deviation = (n * (1 / steps) * (1 - 1 / steps)) ** 0.5
    assert ((counts[:, 1:] - n / steps).abs() <= 5 * deviation).all()


def test_critic_learns_as_written() -> None:
    agent = build()
    # A sampler whose means leave the box now and then.
    perturb(agent.denoiser)
    assert_critic_learns_as_written(agent)


def train(agent: Any, updates: int, size: int = 128) -> None:
    for _ in range(updates):
        batch = make_batch(2, size, 2, agent.action_size, torch.float32)
        agent.update(batch)


def probe(agent: QSM, size: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """The denoiser's predictions at fresh a^t, with observations and a^t, [S, B, 2] each."""
    batch = make_batch(2, size, 2, 2, torch.float32)
    noise = agent.draw_actor_noise(size)
    at = agent.schedule.add_noise(batch.action, noise.t, noise.noise)
    with torch.no_grad():
        return agent.denoiser(batch.observation, at, noise.t), batch.observation, at


def test_on_a_quadratic_the_fitted_denoiser_is_minus_alpha_times_the_gradient() -> None:
    agent = build(2, learning_rate=3e-3, alpha=2.0, actor_decay_updates=600)
    fix_critic(agent, bowl)
    cosines, distances = [], []

    def measure() -> None:
        predicted, observation, at = probe(agent)
        gradient = bowl_gradient(observation, at)
        # The policy's score points along -eps_theta.
        cosine = nn.functional.cosine_similarity(-predicted, gradient, dim=-1)
        cosines.append(cosine.mean().item())
        state = torch.tensor([0.8, -0.8]).expand(2, 2000, 2)
        mean = agent.act(state, explore=False).mean(dim=1)
        distances.append((mean - state[:, 0] / 2).norm(dim=-1).max().item())

    measure()
    for updates in (20, 580):
        train(agent, updates)
        measure()

    predicted, observation, at = probe(agent)
    wanted = -2.0 * bowl_gradient(observation, at)
    assert (predicted - wanted).square().mean() < 0.02 * wanted.square().mean()
    assert abs(cosines[0]) < 0.5
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.98
    assert distances[0] > 0.3
    # An ideal denoiser's samples are 0.06 off at this alpha: the last step scales by 1.11.
    assert distances[2] < 0.1


def two_peaks(observation: Tensor, action: Tensor) -> Tensor:
    """The log-density of normals at -1/2 and 1/2 of variance 0.1, up to a constant."""
    exponents = torch.cat([-5 * (action - 0.5).square(), -5 * (action + 0.5).square()], dim=-1)
    return exponents.logsumexp(dim=-1)


def shares_near_peaks(agent: Any) -> Tensor:
    """Shares of sampled actions within 0.2 of -1/2 and of 1/2: [2, S]."""
    action = agent.act(torch.zeros(2, 4000, 2), explore=False)[..., 0]
    return torch.stack([((action - peak).abs() < 0.2).float().mean(dim=1) for peak in (-0.5, 0.5)])


def test_qsm_keeps_both_modes_where_sac_cannot() -> None:
    # The gradient is 5 tanh(5 a) - 10 a; at alpha = 0.2 the last step moves a to
    # 0.13 a + 0.49 tanh(5 a), which is near a peak from everywhere outside [-0.14, 0.14].
    # No squashed Gaussian has more than 0.23 of its mass within 0.2 of each peak.
    qsm = build(2, 1, alpha=0.2, learning_rate=1e-2, actor_decay_updates=600)
    fix_critic(qsm, two_peaks)
    train(qsm, 600)
    assert shares_near_peaks(qsm).min() > 0.3

    config = SACConfig(hidden_sizes=(32, 32), learning_rate=1e-2, initial_temperature=0.02)
    sac = SAC(config, 2, 1, SEEDS, CPU)
    fix_critic(sac, two_peaks)
    train(sac, 200)
    shares = shares_near_peaks(sac)
    assert shares.amax(dim=0).min() > 0.8
    assert shares.amin(dim=0).max() < 0.1


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("target_scale", ["alpha", "noised", "normalized"])
def test_a_fitted_denoiser_has_the_score_of_the_effective_temperature(
    steps: int, target_scale: str
) -> None:
    """At t = 1 the score, -eps / sqrt(1 - abar_1), is grad_a Q / tau."""
    agent = in_float64(build(2, diffusion_steps=steps, target_scale=target_scale, temperature=0.3))
    fix_critic(agent, bowl, bowl)
    batch, noise = draw(agent, 16)
    first = torch.ones_like(noise.t)
    gradient = 3 * batch.action
    score = -agent.noise_target(gradient, first) / agent.schedule.noise_std(first)
    for row in range(len(SEEDS)):
        metrics = {"temperature": 0.3 * float(gradient[row].abs().mean())}
        tau = QSM.effective_temperature(agent.config, metrics)
        assert tau is not None
        torch.testing.assert_close(score[row], gradient[row] / tau, rtol=1e-5, atol=0)


@pytest.mark.parametrize("target_scale", ["alpha", "noised"])
def test_the_temperature_is_the_same_at_every_t_only_with_the_root(target_scale: str) -> None:
    agent = in_float64(build(2, diffusion_steps=5, target_scale=target_scale, alpha=3.0))
    t = torch.arange(1, 6).expand(len(SEEDS), -1)
    gradient = torch.ones(len(SEEDS), 5, 2, dtype=torch.float64)
    deviation = agent.schedule.noise_std(t)
    tau = -gradient * deviation / agent.noise_target(gradient, t)
    expected = deviation / 3 if target_scale == "alpha" else torch.full_like(deviation, 1 / 3)
    torch.testing.assert_close(tau, expected.expand_as(tau), rtol=1e-5, atol=0, check_dtype=False)


def test_what_is_normalized_by_is_a_metric_and_the_temperature() -> None:
    agent = in_float64(build(2, target_scale="normalized", temperature=0.3))
    fix_critic(agent, bowl, bowl)
    batch, noise = draw(agent, 16)
    _, metrics = agent.actor_loss(batch, noise)
    noisy, _ = noised(batch, noise, agent.config.diffusion_steps)
    expected = 0.3 * bowl_gradient(batch.observation, noisy).abs().mean(dim=(1, 2))
    torch.testing.assert_close(metrics["temperature"], expected, rtol=1e-5, atol=0)
    assert QSM.effective_temperature(agent.config, {}) is None
