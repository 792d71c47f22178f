"""The diffusion policy gradient against eq. 9, closed forms and finite differences of E[Q]."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from agents.common.diffusion import DiffusionPolicy
from agents.common.diffusion_agent import ActionNoise, Noise
from agents.diffusion_pg import DiffusionPG, DiffusionPGConfig
from tests.agents.fixed_critics import (
    CPU,
    Value,
    assert_critic_learns_as_written,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_mean,
    plain_schedule,
)

LITERAL = dict(DiffusionPG.presets["diffusion_pg_literal"])
LEAVE_ONE_OUT: dict[str, Any] = {"chains": 4, "baseline": "leave_one_out", "scale_advantage": False}


def build(
    observation_size: int = 3, action_size: int = 2, seeds: int = 2, **settings: Any
) -> DiffusionPG:
    config = DiffusionPGConfig(**{"hidden_sizes": (16, 16), **settings})
    agent = DiffusionPG(config, observation_size, action_size, range(seeds), CPU)
    return in_float64(agent)


def wave(observation: Tensor, action: Tensor) -> Tensor:
    return (2 * action).sin().sum(dim=-1) + 0.5 * observation.sum(dim=-1)


def slope(observation: Tensor, action: Tensor) -> Tensor:
    """Q = a, on which the sign of the gradient is plain to see."""
    return action.sum(dim=-1)


def parabola(observation: Tensor, action: Tensor) -> Tensor:
    return 1.0 - (action - 0.4).square().sum(dim=-1)


def chain_noise(seeds: int, steps: int, rows: int, action_size: int) -> Tensor:
    return torch.randn(seeds, steps + 1, rows, action_size, dtype=torch.float64)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), list(module.parameters())))


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def written_log_density(agent: DiffusionPG, observation: Tensor, noise: Tensor) -> tuple[Any, Any]:
    """The executed actions and sum_t log N(a^{t-1}; mu_theta(a^t, s, t), beta_t I), plainly."""
    steps = agent.config.diffusion_steps
    alpha, _ = plain_schedule(steps)
    action, log_density = noise[:, 0], torch.zeros(noise.shape[0], noise.shape[2])
    for t in range(steps, 0, -1):
        mean = plain_mean(action, agent.denoiser(observation, action, t), t, steps)
        std = math.sqrt(1 - alpha[t])
        if t == 1:
            # The sampler's last mean is clipped before the exploration noise is added.
            mean, std = mean.clamp(-1, 1), agent.config.exploration_noise
        density = Normal(mean, std)
        drawn = (mean + std * noise[:, steps + 1 - t]).detach()
        log_density = log_density + density.log_prob(drawn).sum(dim=-1)
        action = drawn.clamp(-1, 1)
    return action, log_density


def written_last_mean(agent: DiffusionPG, observation: Tensor, noise: Tensor) -> Tensor:
    """mu_theta(a^1, s, 1), not clipped."""
    steps = agent.config.diffusion_steps
    alpha, _ = plain_schedule(steps)
    action = noise[:, 0]
    for t in range(steps, 1, -1):
        mean = plain_mean(action, agent.denoiser(observation, action, t), t, steps)
        action = (mean + math.sqrt(1 - alpha[t]) * noise[:, steps + 1 - t]).clamp(-1, 1)
    return plain_mean(action, agent.denoiser(observation, action, 1), 1, steps).detach()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_literal_preset_is_equation_9(steps: int) -> None:
    agent = build(diffusion_steps=steps, exploration_noise=0.3, **LITERAL)
    fix_critic(agent, wave, slope)
    batch = make_batch(2, 32, 3, 2, torch.float64)
    noise = chain_noise(2, steps, 32, 2)
    loss, _ = agent.actor_loss(batch, noise)

    action, log_density = written_log_density(agent, batch.observation, noise)
    assert 0 < (action.abs() == 1).double().mean() < 1
    q = torch.minimum(wave(batch.observation, action), slope(batch.observation, action))
    objective = (q * log_density).mean(dim=-1)
    assert_same(gradients(loss, agent.denoiser), gradients(-objective, agent.denoiser))


@pytest.mark.parametrize("scale_advantage", [False, True])
def test_leave_one_out_takes_from_each_chain_the_mean_of_the_others(scale_advantage: bool) -> None:
    agent = build(chains=3, scale_advantage=scale_advantage)
    fix_critic(agent, wave)
    batch = make_batch(2, 8, 3, 2, torch.float64)
    noise = chain_noise(2, 5, 3 * 8, 2)
    loss, _ = agent.actor_loss(batch, noise)

    observation = torch.cat([batch.observation] * 3, dim=1)
    action, log_density = written_log_density(agent, observation, noise)
    q = wave(observation, action)
    advantage = torch.empty_like(q)
    for row in range(24):
        others = [k * 8 + row % 8 for k in range(3) if k * 8 + row % 8 != row]
        advantage[:, row] = q[:, row] - q[:, others].mean(dim=1)
    if scale_advantage:
        advantage = advantage / advantage.std(dim=1, keepdim=True)
    objective = (advantage * log_density).mean(dim=-1)
    assert_same(gradients(loss, agent.denoiser), gradients(-objective, agent.denoiser))


def test_each_seeds_chains_start_from_their_own_unclipped_noise() -> None:
    noise = build(chains=3, diffusion_steps=4).draw_actor_noise(5)
    assert noise.shape == (2, 5, 15, 2)
    assert not torch.equal(noise[0], noise[1])


class AffineDenoiser(nn.Module):
    """eps(a, t) = offset_t + slope_t a, with parameters [S, T]."""

    def __init__(self, seeds: int, offset: list[float], slope: list[float]) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float64).repeat(seeds, 1))
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64).repeat(seeds, 1))

    def at_observation(
        self, observation: Tensor, copies: int = 1
    ) -> Callable[[Tensor, int], Tensor]:
        def predict(action: Tensor, t: int) -> Tensor:
            offset, slope = (p[:, t - 1].view(-1, 1, 1) for p in (self.offset, self.slope))
            return offset + slope * action

        return predict


def estimates(
    settings: dict[str, Any], value: Value, offset: list[float], slope: list[float], size: int
) -> Tensor:
    """128 independent estimates of dE[Q] / d(offset, slope): [128, 2 T]; std 0.3 at the end."""
    seeds, steps = 128, len(offset)
    agent = build(
        1, 1, seeds, hidden_sizes=(2,), diffusion_steps=steps, exploration_noise=0.3, **settings
    )
    fix_critic(agent, value)
    agent.denoiser = AffineDenoiser(seeds, offset, slope)  # type: ignore[assignment]
    agent.policy = DiffusionPolicy(agent.denoiser, agent.schedule)
    batch = make_batch(seeds, size, 1, 1, torch.float64)
    noise = chain_noise(seeds, steps, agent.config.chains * size, 1)
    loss, _ = agent.actor_loss(batch, noise)
    return -torch.cat(gradients(loss, agent.denoiser), dim=1)


def assert_unbiased(estimate: Tensor, expected: Tensor, largest_error: float) -> None:
    error = estimate.std(dim=0) / math.sqrt(len(estimate))
    # The check means something only where the standard error is a small part of the gradient.
    assert (error < largest_error * expected.abs().max()).all()
    assert ((estimate.mean(dim=0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("settings", [LITERAL, LEAVE_ONE_OUT], ids=["literal", "leave_one_out"])
def test_one_step_is_the_ordinary_gaussian_policy_gradient(settings: dict[str, Any]) -> None:
    # a = mu + 0.3 z with mu = (a^1 - b (offset + slope a^1)) / sqrt(alpha_1), b = beta / sqrt(1 -
    # abar), a^1 standard normal. With slope 1 / b + x the mean stays far from the clip, and for
    # Q = 1 - (a - m)^2: dE[Q] / d offset = -2 E[mu - m] dmu / d offset, and so on.
    alpha, abar = plain_schedule(1)
    b = (1 - alpha[1]) / math.sqrt(1 - abar[1])
    root = math.sqrt(alpha[1])
    offset, tilt = 0.005, 0.002
    mean, spread = -b * offset / root, -b * tilt / root
    expected = torch.tensor([2 * (mean - 0.4) * b / root, 2 * spread * b / root])
    estimate = estimates(settings, parabola, [offset], [1 / b + tilt], 2000)
    assert_unbiased(estimate, expected.double(), 0.1)


def expected_q(value: Value, theta: Tensor) -> Tensor:
    """E[Q] of the executed T = 2 chain with eps_t = theta[t-1] + theta[t+1] a, by quadrature."""
    alpha, _ = plain_schedule(2)
    z = torch.linspace(-6, 6, 301, dtype=torch.float64)
    weight = torch.softmax(-z.square() / 2, dim=0)
    a2 = z.view(-1, 1, 1)
    mean = plain_mean(a2, theta[1] + theta[3] * a2, 2, 2)
    a1 = (mean + math.sqrt(1 - alpha[2]) * z.view(1, -1, 1)).clamp(-1, 1)
    mean = plain_mean(a1, theta[0] + theta[2] * a1, 1, 2).clamp(-1, 1)
    a0 = (mean + 0.3 * z.view(1, 1, -1)).clamp(-1, 1).unsqueeze(-1)
    return torch.einsum("ijk,i,j,k->", value(a0, a0), weight, weight, weight)


@pytest.mark.parametrize("settings", [LITERAL, LEAVE_ONE_OUT], ids=["literal", "leave_one_out"])
@pytest.mark.parametrize("value", [slope, parabola])
@pytest.mark.parametrize(
    ("offset", "tilt"),
    [([0.3, -0.2], [0.5, 0.9]), ([-1.2, 0.4], [0.1, 0.5])],
    ids=["means inside the box", "means on both sides of a bound"],
)
def test_two_steps_agree_with_a_finite_difference_of_expected_q(
    value: Value, offset: list[float], tilt: list[float], settings: dict[str, Any]
) -> None:
    theta = torch.tensor([*offset, *tilt], dtype=torch.float64)
    h = 1e-3
    expected = torch.stack(
        [
            (expected_q(value, theta + h * e) - expected_q(value, theta - h * e)) / (2 * h)
            for e in torch.eye(4, dtype=torch.float64)
        ]
    )
    estimate = estimates(settings, value, offset, tilt, 1000)
    assert_unbiased(estimate, expected, 0.05)


def test_a_last_mean_outside_the_box_has_no_gradient() -> None:
    """Where every sample's mean is clipped, moving it changes no executed action."""
    estimate = estimates(LITERAL, slope, [-9.0, 0.0], [0.0, 0.0], 10)
    assert (estimate[:, [0, 2]] == 0).all()


class Given:
    """Random streams that hand out tensors made beforehand."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = list(tensors)

    def normal(self, *shape: int) -> Tensor:
        drawn = self.tensors.pop(0)
        assert drawn.shape[1:] == shape
        return drawn


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_what_is_graded_is_what_is_executed(steps: int) -> None:
    """On the same noise, bit for bit: in acting, and in the critic's target."""
    agent = build(chains=1, baseline="none", diffusion_steps=steps, exploration_noise=0.3)
    perturb(agent.denoiser, 1.0)
    batch = make_batch(2, 64, 3, 2, torch.float64)
    noise = chain_noise(2, steps, 64, 2)
    graded, _ = agent.sampled_chains(batch.next_observation, noise)

    # In a third of the entries or so the last mean lies outside, where clipping it makes a
    # difference.
    unclipped = written_last_mean(agent, batch.next_observation, noise)
    differs = graded != (unclipped + 0.3 * noise[:, -1]).clamp(-1, 1)
    assert 0.05 < differs.double().mean() < 0.95

    agent.explore_stream = Given(noise[:, :-1], noise[:, -1])  # type: ignore[assignment]
    assert torch.equal(agent.act(batch.next_observation, explore=True), graded)

    asked: list[Tensor] = []

    def record(observation: Tensor, action: Tensor) -> Tensor:
        asked.append(action)
        return action.sum(dim=-1)

    fix_critic(agent, record)
    of_critic = ActionNoise(noise[:, :-1], noise[:, -1])
    agent.pure_update(batch, Noise(of_critic, chain_noise(2, steps, 64, 2)))
    assert torch.equal(asked[0], graded)


def test_climbing_q_equal_to_a_raises_the_actions() -> None:
    agent = build(1, 1, diffusion_steps=3, learning_rate=3e-3, actor_decay_updates=0)
    fix_critic(agent, slope)
    state = torch.zeros(2, 500, 1, dtype=torch.float64)
    noise = chain_noise(2, 3, 500, 1)
    before = agent.policy.sample(state, noise[:, :3]).mean(dim=1)
    batch = make_batch(2, 64, 1, 1, torch.float64)
    for _ in range(60):
        agent.actor_optimizer.minimize(agent.actor_loss(batch, chain_noise(2, 3, 256, 1))[0])
    after = agent.policy.sample(state, noise[:, :3]).mean(dim=1)
    assert (after > before + 0.3).all()


def test_no_gradient_reaches_the_critic() -> None:
    agent = build()
    batch = make_batch(2, 8, 3, 2, torch.float64)
    loss, _ = agent.actor_loss(batch, chain_noise(2, 5, 4 * 8, 2))
    critic = list(agent.critic.parameters())
    reached = torch.autograd.grad(loss.sum(), critic, allow_unused=True)
    assert all(gradient is None for gradient in reached)


def test_critic_learns_as_written() -> None:
    agent = build()
    perturb(agent.denoiser)
    assert_critic_learns_as_written(agent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chains": 1}, "leave_one_out needs chains >= 2"),
        ({"exploration_noise": 0.0}, "exploration_noise must be above 0"),
    ],
)
def test_settings_without_an_estimate_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPGConfig(**settings)
