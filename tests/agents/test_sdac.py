"""Weighted draws against closed forms on known critics, and against Q-score matching."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.common.reverse_posterior import Draws, draw_clean
from agents.qsm import QSM, QSMConfig
from agents.sdac import SDAC, SDACConfig, mixed
from tests.agents.fixed_critics import (
    CPU,
    central_differences,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_schedule,
)

SEEDS = (0, 1)
ABAR = plain_schedule(5)[1]
PLACE = 0.5
"""The noised action a^t of the closed forms."""


def build(observation_size: int = 3, action_size: int = 1, **settings: Any) -> SDAC:
    config = SDACConfig(**{"hidden_sizes": (16, 16), "temperature": 1.0, **settings})
    return in_float64(SDAC(config, observation_size, action_size, SEEDS, CPU))


def parabola(observation: Tensor, action: Tensor) -> Tensor:
    return -5 * (action - 0.3).square().sum(dim=-1)


def slope(observation: Tensor, action: Tensor) -> Tensor:
    return 5 * action.sum(dim=-1)


def two_modes(observation: Tensor, action: Tensor) -> Tensor:
    return torch.cat([-40 * (action - m).square() for m in (0.5, -0.5)], dim=-1).logsumexp(dim=-1)


def flat(observation: Tensor, action: Tensor) -> Tensor:
    return torch.zeros_like(action[..., 0])


CRITICS = {"parabola": parabola, "slope": slope, "two modes": two_modes, "flat": flat}


def estimates(agent: SDAC, critic: Any, t: int, rows: int, place: float = PLACE) -> Tensor:
    """The targets at a^t of many independent sets of draws, [S, rows, act]."""
    fix_critic(agent, critic)
    uniform = torch.rand(2, agent.config.samples, rows, agent.action_size, dtype=torch.float64)
    noisy = torch.full((2, rows, agent.action_size), place, dtype=torch.float64)
    times = torch.full((2, rows), t)
    draws = draw_clean(agent.schedule, noisy, times, uniform, agent.config.proposal)
    observation = torch.zeros(2, rows, 3, dtype=torch.float64)
    return agent.noise_target(observation, draws, times)[0]


def by_quadrature(
    critic: Any,
    t: int,
    proposal: str = "truncated",
    *,
    climbs: bool = False,
    temperature: float = 1.0,
) -> float:
    """The target of infinitely many draws, by the trapezoidal rule over e."""
    signal, deviation = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
    ends = (-12.0, 12.0)
    if proposal == "truncated":
        ends = (-signal - PLACE) / deviation, (signal - PLACE) / deviation
    e = torch.linspace(*ends, 400_001, dtype=torch.float64)
    place = torch.full_like(e, PLACE, requires_grad=True)
    clean = ((place + deviation * e) / signal).clamp(-1, 1)
    value = critic(None, clean.unsqueeze(-1)) / temperature
    density = (value - e.square() / 2).softmax(dim=0).detach()
    if not climbs:
        return float(-(density * e).sum())
    (gradient,) = torch.autograd.grad(value.sum(), place)
    return float(-deviation * (density * gradient).sum())


def without_box(t: int) -> float:
    """The closed form on the parabola, k = 5, a* = 0.3, if there were no bounds."""
    precision = ABAR[t] / (1 - ABAR[t])
    clean = (precision * PLACE / math.sqrt(ABAR[t]) + 10 * 0.3) / (precision + 10)
    return (PLACE - math.sqrt(ABAR[t]) * clean) / math.sqrt(1 - ABAR[t])


@pytest.mark.parametrize(
    ("t", "unbounded", "bounded"), [(1, 0.370, 0.384), (3, 0.407, 0.412), (5, 0.477, 0.478)]
)
def test_the_closed_forms_have_their_numbers(t: int, unbounded: float, bounded: float) -> None:
    assert without_box(t) == pytest.approx(unbounded, abs=6e-4)
    assert by_quadrature(parabola, t) == pytest.approx(bounded, abs=2e-3)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize(("t", "spread"), [(1, 0.058), (3, 0.016), (5, 0.003)])
def test_weighted_noise_is_the_score_of_the_noised_boltzmann_policy(
    critic: str, t: int, spread: float
) -> None:
    """Many draws agree with quadrature; 64 on the parabola have the stated deviation."""
    agent = build(samples=20_000)
    found = estimates(agent, CRITICS[critic], t, rows=4)
    wanted = by_quadrature(CRITICS[critic], t)
    assert (found - wanted).abs().max() < 0.02
    if critic == "parabola":
        few = estimates(build(samples=64), parabola, t, rows=2000)
        assert few.std().item() == pytest.approx(spread, rel=0.15)


def test_the_draws_weights_sum_to_1_and_are_equal_where_it_is_hot() -> None:
    agent = build(temperature=1e9)
    fix_critic(agent, slope)
    clean = 2 * torch.rand(2, 64, 3, 1, dtype=torch.float64) - 1
    noise = torch.randn(2, 64, 3, 1, dtype=torch.float64)
    observation, t = torch.zeros(2, 3, 3, dtype=torch.float64), torch.full((2, 3), 2)
    target, weight = agent.noise_target(observation, Draws(clean, noise), t)
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / 64))
    torch.testing.assert_close(target, -noise.mean(dim=1))
    cold = in_float64(build(temperature=0.1))
    fix_critic(cold, slope)
    _, weight = cold.noise_target(observation, Draws(clean, noise), t)
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("t", "noise", "gradient"), [(1, -0.467, -2.47), (3, 0.196, -11.5), (5, 0.437, -62.3)]
)
def test_on_a_slope_gradients_lack_what_the_bounds_add(
    t: int, noise: float, gradient: float
) -> None:
    assert by_quadrature(slope, t) == pytest.approx(noise, abs=2e-3)
    assert by_quadrature(slope, t, climbs=True) == pytest.approx(gradient, rel=2e-3)
    for estimator, wanted in (("noise", noise), ("gradient", gradient)):
        found = estimates(build(samples=20_000, estimator=estimator), slope, t, rows=4)
        assert found.mean().item() == pytest.approx(wanted, abs=0.01, rel=2e-3)


@pytest.mark.parametrize("estimator", ["noise", "gradient", "mixture"])
@pytest.mark.parametrize(("t", "wanted"), [(1, -1.03), (3, -0.678), (5, -0.54)])
def test_on_a_slope_all_agree_on_clipped_draws(t: int, wanted: float, estimator: str) -> None:
    for climbs in (False, True):
        found = by_quadrature(slope, t, "clipped", climbs=climbs)
        assert found == pytest.approx(wanted, abs=6e-3)
    agent = build(samples=20_000, proposal="clipped", estimator=estimator)
    assert estimates(agent, slope, t, rows=40).mean().item() == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("estimator", ["noise", "gradient"])
@pytest.mark.parametrize(("t", "wanted"), [(1, 0.370), (3, 0.407), (5, 0.477)])
def test_without_bounds_noise_and_gradients_have_the_same_mean(
    t: int, wanted: float, estimator: str
) -> None:
    agent = build(estimator=estimator)
    fix_critic(agent, parabola)
    rows = 400
    noise = torch.randn(2, 10_000, rows, 1, dtype=torch.float64)
    clean = (PLACE + math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
    state, times = torch.zeros(2, rows, 3, dtype=torch.float64), torch.full((2, rows), t)
    found = agent.noise_target(state, Draws(clean, noise), times)[0]
    error = found.std().item() / math.sqrt(found.numel())
    assert error < 0.08
    assert found.mean().item() == pytest.approx(wanted, abs=6e-4 + 4 * error)


@pytest.mark.parametrize(
    ("t", "temperature", "noise", "gradient"),
    [(1, 1.0, 0.058, 0.14), (3, 1.0, 0.016, 0.84), (5, 1.0, 0.003, 4.8), (5, 0.2, 0.002, 16)],
)
def test_gradients_vary_more_the_more_noise_there_is(
    t: int, temperature: float, noise: float, gradient: float
) -> None:
    for estimator, wanted in (("noise", noise), ("gradient", gradient)):
        agent = build(estimator=estimator, temperature=temperature)
        found = estimates(agent, parabola, t, rows=2000).std().item()
        assert found == pytest.approx(wanted, rel=0.15)


def test_clipped_draws_have_another_target() -> None:
    """Where 0.478 is the score of the policy in the box."""
    assert by_quadrature(parabola, 5, "clipped") == pytest.approx(-0.261, abs=1e-3)
    found = estimates(build(samples=200_000, proposal="clipped"), parabola, 5, rows=10)
    assert found.mean().item() == pytest.approx(-0.261, abs=0.01)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_on_a_parabola_the_mixture_is_exact_for_any_draws_but_for_the_bounds(t: int) -> None:
    found = estimates(build(samples=3, estimator="mixture"), parabola, t, rows=100)
    torch.testing.assert_close(found, torch.full_like(found, without_box(t)), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_the_mixture_has_the_least_variance_of_all(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    share = normal(1, count, 1, 1).softmax(dim=1)
    noise, climb = normal(1, count, 1, 2), normal(1, count, 1, 2)

    def mean_and_variance(eta: Tensor) -> tuple[Tensor, Tensor]:
        x = (1 - eta) * noise + eta * climb
        mean = (share * x).sum(dim=1, keepdim=True)
        return mean.flatten(), (share * (x - mean)).square().sum(dim=1).flatten()

    etas = torch.linspace(0, 1, 401, dtype=torch.float64)
    means, variances = zip(*(mean_and_variance(eta) for eta in etas), strict=True)
    best = torch.stack(variances).argmin(dim=0)
    wanted = torch.stack(means).gather(0, best.unsqueeze(0)).squeeze(0)
    width = (torch.stack(means)[0] - torch.stack(means)[-1]).abs().max().item()
    torch.testing.assert_close(
        mixed(share, noise, climb).flatten(), wanted, rtol=0, atol=3e-3 * width
    )


@pytest.mark.parametrize(
    ("actions", "independent", "error"),
    [(1, 131, 0.004), (6, 2.1, 0.065), (21, 1.2, 0.16), (38, 1.1, 0.19)],
)
def test_draws_count_for_few_with_many_actions(
    actions: int, independent: float, error: float
) -> None:
    """And the target is the further from what infinitely many would give."""
    agent = build(action_size=actions, samples=500, temperature=0.2)
    fix_critic(agent, parabola)
    rows = 400
    uniform = torch.rand(2, 500, rows, actions, dtype=torch.float64)
    noisy = torch.full((2, rows, actions), PLACE, dtype=torch.float64)
    times = torch.full((2, rows), 3)
    draws = draw_clean(agent.schedule, noisy, times, uniform, "truncated")
    state = torch.zeros(2, rows, 3, dtype=torch.float64)
    target, weight = agent.noise_target(state, draws, times)
    found = (1 / weight.square().sum(dim=1)).mean().item()
    assert found == pytest.approx(independent, rel=0.25)
    distance = target - by_quadrature(parabola, 3, temperature=0.2)
    assert distance.square().mean().sqrt().item() == pytest.approx(error, rel=0.15)


def test_one_call_has_the_gradient_of_a_call_for_every_draw() -> None:
    """That of sum_k w_k ||e_k - eps_theta||^2, with all of a state's draws at one a^t."""
    agent = build(2, 2, samples=6)
    batch = make_batch(2, 10, 2, 2, torch.float64)
    noise = doubled(agent.draw_actor_noise(10))
    noisy = agent.schedule.add_noise(batch.action, noise.t, noise.noise)
    draws = draw_clean(agent.schedule, noisy, noise.t, noise.uniform, "truncated")
    _, weight = agent.noise_target(batch.observation, draws, noise.t)
    predicted = agent.denoiser(batch.observation, noisy, noise.t).unsqueeze(1)
    each = (predicted + draws.noise).square().mean(dim=-1)
    loss, _ = agent.actor_loss(batch, noise)
    parameters = list(agent.denoiser.parameters())
    wanted = torch.autograd.grad((weight * each).sum(dim=1).mean(dim=1).sum(), parameters)
    found = torch.autograd.grad(loss.sum(), parameters)
    torch.testing.assert_close(found, wanted)


def test_with_one_draw_at_the_noised_action_it_is_score_matching() -> None:
    """With alpha = sqrt((1 - abar_t) / abar_t) / tau in the place of qsm's constant."""
    agent = build(2, 2, estimator="gradient", samples=1, temperature=0.3)
    qsm = in_float64(QSM(QSMConfig((16, 16), alpha=7.0, gradient_of="min"), 2, 2, SEEDS, CPU))
    perturb(agent.critic)
    qsm.critic = agent.critic
    batch = make_batch(2, 40, 2, 2, torch.float64)
    t = 1 + torch.arange(40).expand(2, -1) % 5
    noisy = 1.5 * torch.randn(2, 40, 2, dtype=torch.float64)
    at_itself = Draws(noisy.unsqueeze(1), torch.randn(2, 1, 40, 2, dtype=torch.float64))
    target, weight = agent.noise_target(batch.observation, at_itself, t)
    assert (weight == 1).all()
    abar = torch.tensor(ABAR, dtype=torch.float64)[t].unsqueeze(-1)
    alpha = ((1 - abar) / abar).sqrt() / 0.3
    theirs = qsm.noise_target(qsm.action_gradient(batch.observation, noisy), t)
    torch.testing.assert_close(target, alpha / 7.0 * theirs)


@pytest.mark.parametrize("estimator", ["noise", "gradient", "mixture"])
def test_draws_that_are_taken_in_parts_are_taken_together(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(estimator=estimator, samples=10)
    batch = make_batch(2, 6, 3, 1, torch.float64)
    noise = doubled(agent.draw_actor_noise(6))
    whole, _ = agent.actor_loss(batch, noise)
    monkeypatch.setattr("agents.sdac.AT_ONCE", 4)
    parts, _ = agent.actor_loss(batch, noise)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "noise"},
        {"estimator": "gradient"},
        {"estimator": "mixture"},
        {"noised_actions": "policy", "candidates_target": 3, "proposal": "clipped"},
        {"weight_critics": "target", "entropy_draws": 2},
    ],
)
def test_the_gradient_is_the_central_difference_with_samples_and_target_held(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(samples=8, **settings)
    batch = make_batch(2, 16, 3, 1, torch.float64)
    noise = doubled(agent.draw_actor_noise(16))
    held = agent.action_to_noise(batch, noise.chain)
    monkeypatch.setattr(agent, "action_to_noise", lambda *_: held)
    loss, _ = agent.actor_loss(batch, noise)
    ours = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    for along, difference in central_differences(agent, batch, noise, ours):
        assert along == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_no_gradient_reaches_the_critics() -> None:
    agent = build(estimator="gradient")
    loss, _ = agent.actor_loss(
        make_batch(2, 8, 3, 1, torch.float64), doubled(agent.draw_actor_noise(8))
    )
    gradients = torch.autograd.grad(loss.sum(), [*agent.critic.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in gradients)


class Normals(nn.Module):
    """The exact denoiser of actions N(mean, std^2), at any observation."""

    def __init__(self, mean: float, std: float, abar: list[float]) -> None:
        super().__init__()
        self.mean, self.std, self.abar = mean, std, abar

    def at_observation(self, observation: Tensor, copies: int = 1) -> Any:
        def predict(noisy: Tensor, t: int) -> Tensor:
            signal, variance = math.sqrt(self.abar[t]), 1 - self.abar[t]
            whole = self.abar[t] * self.std**2 + variance
            return math.sqrt(variance) / whole * (noisy - signal * self.mean)

        return predict


@pytest.mark.parametrize(
    ("std", "schedule", "steps", "wanted"),
    [
        (0.1, "cosine", 20, 0.47),
        (0.05, "cosine", 20, 0.76),
        (0.02, "cosine", 20, 0.90),
        (0.02, "vp", 5, -0.35),
        (0.1, "cosine", 1000, 0.87),
    ],
)
def test_the_log_density_of_narrow_policies_saturates(
    std: float, schedule: str, steps: int, wanted: float
) -> None:
    """The mean over the policy; the true one is 0.88, 1.58 and 2.49 nats."""
    agent = build(diffusion_steps=steps, schedule=schedule, entropy_draws=1)
    abar = plain_schedule(steps, schedule)[1]
    agent.target_policy.__dict__["denoiser"] = Normals(0.1, std, abar)
    rows = 200_000 // steps
    action = 0.1 + std * torch.randn(2, rows, 1, dtype=torch.float64)
    noise = torch.randn(2, steps, rows, 1, dtype=torch.float64)
    with torch.no_grad():
        found = agent.log_density(torch.zeros(2, rows, 3, dtype=torch.float64), action, noise)
    assert found.mean().item() == pytest.approx(wanted, abs=0.03)
    gained = sum((abar[t - 1] - abar[t]) / (1 - abar[t]) for t in range(1, steps + 1)) / 2
    most = gained - math.log(2 * math.pi * math.e) / 2
    assert most == pytest.approx({20: 0.93, 5: -0.35, 1000: 3.83}[steps], abs=6e-3)
    assert found.max() <= most


def test_the_log_density_of_unit_deviation_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the box: E log N(a; m, 1) = -log(2 pi e) / 2 = -1.419."""
    agent = build(diffusion_steps=20, schedule="cosine", entropy_draws=1)
    abar = plain_schedule(20, "cosine")[1]
    agent.target_policy.__dict__["denoiser"] = Normals(0.4, 1.0, abar)
    schedule = agent.schedule

    def unclipped(action: Tensor, noise: Tensor, t: int) -> Tensor:
        return (action - math.sqrt(1 - abar[t]) * noise) / math.sqrt(abar[t])

    monkeypatch.setattr(schedule, "predicted_clean", unclipped)
    action = 0.4 + torch.randn(2, 20_000, 1, dtype=torch.float64)
    noise = torch.randn(2, 20, 20_000, 1, dtype=torch.float64)
    with torch.no_grad():
        found = agent.log_density(torch.zeros(2, 20_000, 3, dtype=torch.float64), action, noise)
    assert found.mean().item() == pytest.approx(-1.419, abs=0.02)


def test_the_soft_target_adds_the_entropy_times_the_temperature() -> None:
    agent = build(entropy_draws=4, temperature=0.3)
    observation = torch.randn(2, 6, 3, dtype=torch.float64)
    noise = doubled(agent.draw_critic_noise(6))
    assert noise.density.shape == (2, 5, 24, 1)
    with torch.no_grad():
        action = agent.next_action(observation, noise)
        hard = agent.target_critic(observation, action).amin(dim=0)
        log_density = agent.log_density(observation, action, noise.density)
        soft = agent.next_value(observation, action, noise)
    torch.testing.assert_close(soft, hard - 0.3 * log_density)


def test_the_policys_own_best_actions_are_noised_if_asked() -> None:
    agent = build(noised_actions="policy", candidates_target=4, temperature=0.1)
    fix_critic(agent, slope)
    batch = make_batch(2, 8, 3, 1, torch.float64)
    noise = doubled(agent.draw_actor_noise(8))
    own = agent.policy.sample(batch.observation, noise.chain).view(2, 4, 8, 1)
    found = agent.action_to_noise(batch, noise.chain)
    torch.testing.assert_close(found, own.amax(dim=1))
    assert build().draw_actor_noise(8).chain.numel() == 0


def test_the_target_critics_weigh_and_choose_if_asked() -> None:
    agent = build(weight_critics="target", candidates_evaluate=8)
    fix_critic(agent, slope)
    target = agent.critic
    fix_critic(agent, lambda s, a: -slope(s, a))
    agent.target_critic = target
    clean = torch.tensor([-0.5, 0.5], dtype=torch.float64).view(1, 2, 1, 1).expand(2, -1, -1, -1)
    observation = torch.zeros(2, 1, 3, dtype=torch.float64)
    _, weight = agent.noise_target(observation, Draws(clean, clean), torch.ones(2, 1).long())
    assert (weight[:, 1] > 0.99).all()
    assert (agent.best_action(observation, clean.flatten(1, 2)) == 0.5).all()


def test_the_reference_preset_has_the_end_of_the_authors_open_loop() -> None:
    """Their "entropy" 0.5 log(2 pi e (alpha / 10)^2) an action comes to rest at -0.9.

    The temperature is alpha / 5 then, and rewards are multiplied by 0.2.
    """
    alpha = 10 * math.exp(-0.9) / math.sqrt(2 * math.pi * math.e)
    preset = SDAC.presets["sdac_reference"]
    assert preset["exploration_noise"] == pytest.approx(0.1 * alpha, abs=6e-5)
    assert preset["temperature"] == pytest.approx(alpha / 5 / 0.2, abs=6e-4)


def test_the_temperature_is_that_of_the_policy_that_is_fitted() -> None:
    assert SDAC.effective_temperature(SDACConfig(temperature=0.3), {}) == 0.3


def train(agent: Any, updates: int, size: int = 128) -> None:
    for _ in range(updates):
        agent.update(make_batch(2, size, 2, agent.action_size, torch.float32))


def test_two_equal_modes_are_kept() -> None:
    config = SDACConfig(
        (32, 32), learning_rate=1e-2, temperature=1.0, samples=16, actor_decay_updates=400
    )
    agent = SDAC(config, 2, 1, SEEDS, CPU)
    fix_critic(agent, two_modes)
    train(agent, 400)
    action = agent.act(torch.zeros(2, 4000, 2), explore=False)[..., 0]
    for mode in (-0.5, 0.5):
        assert ((action - mode).abs() < 0.35).float().mean(dim=1).min() > 0.3
