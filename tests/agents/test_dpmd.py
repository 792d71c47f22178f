"""Mirror descent's weights, its copy and its ideal policies against closed forms."""

import copy
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.dpmd import DPMD, ActorNoise, DPMDConfig
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
BEST = 0.3


def build(action_size: int = 1, **settings: Any) -> DPMD:
    config = DPMDConfig(**{"hidden_sizes": (16, 16), **settings})
    return in_float64(DPMD(config, 3, action_size, SEEDS, CPU))


def parabola(observation: Tensor, action: Tensor) -> Tensor:
    return -5 * (action - BEST).square().sum(dim=-1)


def draw(agent: DPMD, size: int) -> ActorNoise:
    noise: ActorNoise = doubled(agent.draw_actor_noise(size))
    return noise


def set_temperature(agent: DPMD, *temperatures: float) -> None:
    """Give each seed its temperature; one is for all."""
    logs = torch.tensor(temperatures, dtype=torch.float64).log().view(-1, 1)
    agent.temperature["log"].data = logs.expand(len(SEEDS), 1).clone()


def normals(rows: int, count: int, std: float, size: int = 1, mean: float = 0.0) -> Tensor:
    """``rows`` sets of so many draws of N(mean, std^2), [2, count, rows, size]."""
    return mean + std * torch.randn(2, count, rows, size, dtype=torch.float64)


@given(st.integers(2, 40), st.floats(-3, 3), st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_the_weights_sum_to_n_and_kl_is_at_most_log_n(n: int, log10: float, shift: float) -> None:
    agent = build(samples=16)
    set_temperature(agent, 10.0**log10)
    value = torch.randn(2, n, 5, dtype=torch.float64)
    weight, kl = agent.weights(value)
    torch.testing.assert_close(weight.sum(dim=1), torch.full((2, 5), float(n)).double())
    assert (kl > -1e-12).all()
    assert (kl <= math.log(n) + 1e-9).all()
    # A state's value does not count.
    torch.testing.assert_close(agent.weights(value + shift)[0], weight)


def test_where_it_is_hot_the_weights_are_1_and_where_it_is_cold_the_best_has_all() -> None:
    agent, value = build(), torch.randn(2, 64, 5, dtype=torch.float64)
    set_temperature(agent, 1e9)
    weight, kl = agent.weights(value)
    torch.testing.assert_close(weight, torch.ones_like(weight))
    assert kl.abs().max() < 1e-12
    set_temperature(agent, 1e-9)
    weight, kl = agent.weights(value)
    assert torch.equal(weight.argmax(dim=1), value.argmax(dim=1))
    torch.testing.assert_close(kl, torch.full_like(kl, math.log(64)))
    assert math.log(64) == pytest.approx(4.16, abs=2e-3)


@pytest.mark.parametrize(
    ("temperature", "exact", "of_64", "of_32", "spread_64", "spread_32"),
    [
        (1.0, 0.361, 0.36, 0.36, 0.269, 0.270),
        (0.1, 1.315, 1.33, 1.33, 0.100, 0.102),
        (0.01, 2.443, 2.48, 2.45, 0.034, 0.041),
    ],
)
def test_kl_rises_as_the_temperature_falls(
    temperature: float, exact: float, of_64: float, of_32: float, spread_64: float, spread_32: float
) -> None:
    """On the parabola, with the copy's samples from N(0, 0.5^2), and the refit's deviation."""
    precision = 4 + 10 / temperature
    mean = 10 / temperature * BEST / precision
    shrunk = 4 / precision
    by_hand = 0.5 * (shrunk + 4 * mean**2 - 1 - math.log(shrunk))
    assert by_hand == pytest.approx(exact, abs=1e-3)
    agent = build()
    set_temperature(agent, temperature)
    for count, wanted, spread in ((64, of_64, spread_64), (32, of_32, spread_32)):
        action = normals(8_000, count, 0.5)
        weight, kl = agent.weights(parabola(torch.empty(0), action))
        assert kl.mean().item() == pytest.approx(wanted, abs=0.015)
        action = action.squeeze(-1)
        center = (weight * action).mean()
        found = (weight * (action - center).square()).mean().sqrt()
        assert found.item() == pytest.approx(spread, abs=0.002)
    _, kl = agent.weights(parabola(torch.empty(0), normals(200, 10_000, 0.5)))
    assert kl.mean().item() == pytest.approx(exact, abs=0.02)


def refit(agent: DPMD, samples: Tensor, copies: int) -> Tensor:
    """Replace a policy, given as samples [2, rows], by its ideal refit, once for each copy."""
    rows, count = samples.shape[1], agent.config.samples
    for _ in range(copies):
        drawn = samples.gather(1, torch.randint(rows, (2, count * rows)))
        drawn = drawn + agent.config.sample_noise * torch.randn_like(drawn)
        drawn = drawn.view(2, count, rows)
        weight, _ = agent.weights(parabola(torch.empty(0), drawn.unsqueeze(-1)))
        picked = torch.multinomial(weight.movedim(1, 2).flatten(0, 1), 1).view(2, 1, rows)
        samples = drawn.gather(1, picked).squeeze(1)
    return samples


@pytest.mark.parametrize(
    ("noise", "copies", "deviation"),
    [(0.0, 1, 0.267), (0.0, 2, 0.204), (0.0, 5, 0.136), (0.2, 30, 0.215)],
)
def test_copy_by_copy_a_normal_policy_follows_the_recursion(
    noise: float, copies: int, deviation: float
) -> None:
    variance = 0.25
    for _ in range(copies):
        variance = 1 / (1 / (variance + noise**2) + 10)
    assert math.sqrt(variance) == pytest.approx(deviation, abs=6e-4)
    agent = build(samples=64, sample_noise=noise)
    found = refit(agent, normals(5_000, 1, 0.5)[:, 0, :, 0], copies)
    assert found.std(dim=1).mean().item() == pytest.approx(deviation, abs=0.012)
    if noise:
        assert found.mean().item() == pytest.approx(BEST, abs=0.02)


@pytest.mark.parametrize(("size", "deviation"), [(1, 0.0165), (6, 0.112)])
def test_two_nats_leave_a_spread_that_depends_on_the_number_of_actions(
    size: int, deviation: float
) -> None:
    """A policy of that deviation is its own refit at a temperature where KL is 2 nats."""
    agent, wide = build(size), deviation**2 + 0.2**2
    set_temperature(agent, 10 / (deviation**-2 - 1 / wide))
    action = normals(200, 8_192, math.sqrt(wide), size, BEST)
    weight, kl = agent.weights(parabola(torch.empty(0), action))
    assert kl.mean().item() == pytest.approx(2.0, abs=0.05)
    refitted = (weight.unsqueeze(-1) * (action - BEST).square()).mean().sqrt()
    assert refitted.item() == pytest.approx(deviation, rel=0.03)


def test_dual_ascent_raises_the_temperature_where_kl_is_too_large() -> None:
    agent = build(target_kl=1.0)
    metrics = {"kl": torch.tensor([1.5, 0.5], dtype=torch.float64)}
    for _ in range(100):
        agent.after_update(metrics)
    rate = agent.config.learning_rate
    found = agent.temperature["log"].detach().flatten() / rate
    # At constant excess each of Adam's steps has the step size.
    torch.testing.assert_close(found, torch.tensor([100.0, -100.0]).double(), rtol=0.02, atol=0)


def test_dual_ascent_finds_the_temperature_of_the_wanted_kl() -> None:
    """On the parabola: that of KL = 1.315 nats is 0.1."""
    agent, action = build(learning_rate=0.02, target_kl=1.315), normals(128, 128, 0.5)
    for _ in range(800):
        _, kl = agent.weights(parabola(torch.empty(0), action))
        agent.after_update({"kl": kl.mean(dim=-1)})
    found = agent.temperature["log"].detach().exp()
    torch.testing.assert_close(found, torch.full_like(found, 0.1), rtol=0.1, atol=0)


def test_the_loss_is_the_formula() -> None:
    agent = build(2, samples=5, target_kl=1.0, sample_noise=0.5, diffusion_steps=3)
    fix_critic(agent, parabola, lambda s, a: parabola(s, a) + a[..., 0])
    set_temperature(agent, 2.0)
    batch, noise = make_batch(2, 6, 3, 2, torch.float64), draw(agent, 6)
    loss, metrics = agent.actor_loss(batch, noise)
    total = torch.zeros(2, dtype=torch.float64)
    divergence = torch.zeros_like(total)
    with torch.no_grad():
        samples = agent.copied_policy.sample(batch.observation, noise.chain) + 0.5 * noise.widening
    for seed in range(2):
        for b in range(6):
            rows = [6 * i + b for i in range(5)]
            values = torch.stack([parabola(batch.observation, samples[seed, r]) for r in rows])
            values = values + samples[seed, rows, 0] / 2
            share = (values / 2.0).softmax(dim=0)
            divergence[seed] += (math.log(5) + (share * share.log()).sum()) / 6
            for r, part in zip(rows, share, strict=True):
                t, e = noise.t[seed, r], noise.noise[seed, r]
                abar = agent.schedule.abar[t]
                noisy = abar.sqrt() * samples[seed, r] + (1 - abar).sqrt() * e
                state = batch.observation[:, b : b + 1]
                error = (agent.denoiser(state, noisy.expand(2, 1, 2), int(t))[seed, 0] - e).square()
                assert agent.config.error_limit == 3.0
                total[seed] += part * error.clamp(max=3.0).mean() / 6
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metrics["kl"], divergence, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metrics["temperature"], torch.full((2,), 2.0).double())


def test_an_entry_of_a_larger_error_teaches_nothing() -> None:
    gradients = []
    for limit in (1e-12, 3.0, None):
        agent = build(error_limit=limit)
        torch.manual_seed(0)
        batch, noise = make_batch(2, 8, 3, 1, torch.float64), draw(agent, 8)
        loss, _ = agent.actor_loss(batch, noise)
        found = torch.autograd.grad(loss.sum(), [*agent.denoiser.parameters()])
        gradients.append(max(float(gradient.abs().max()) for gradient in found))
    assert gradients[0] == 0.0
    assert gradients[1] > 0
    assert gradients[1] != gradients[2]


def test_the_gradient_is_the_central_difference() -> None:
    """The samples are the copy's, so no parameter of the denoiser moves them."""
    agent = build(2)
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), draw(agent, 16)
    loss, _ = agent.actor_loss(batch, noise)
    ours = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    for along, difference in central_differences(agent, batch, noise, ours):
        assert along == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_no_gradient_reaches_critics_copy_or_temperature() -> None:
    agent = build()
    loss, metrics = agent.actor_loss(make_batch(2, 8, 3, 1, torch.float64), draw(agent, 8))
    others = [agent.critic, agent.copied_denoiser.requires_grad_(True), agent.temperature]
    parameters = [p for part in others for p in part.parameters()]
    found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    assert all(gradient is None for gradient in found)
    assert not any(metric.requires_grad for metric in metrics.values())


def train(agent: DPMD, updates: int) -> None:
    for _ in range(updates):
        agent.update(make_batch(2, 8, 3, agent.action_size, torch.float32))


def parameters(network: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_the_copy_is_made_at_every_so_many_updates_and_is_exact() -> None:
    agent = DPMD(DPMDConfig((8,), copy_updates=3, samples=8, target_kl=1.0), 3, 1, SEEDS, CPU)
    copies = [parameters(agent.denoiser)]
    for update in range(1, 8):
        train(agent, 1)
        if update % 3 == 0:
            copies.append(parameters(agent.denoiser))
        assert all(map(torch.equal, agent.copied_denoiser.parameters(), copies[-1])), update
    assert not any(map(torch.equal, copies[0], copies[1]))


def test_a_saved_agent_goes_on_bit_for_bit_across_a_copy() -> None:
    config = DPMDConfig((8,), copy_updates=4, samples=8, target_kl=1.0)
    agent, loaded = (DPMD(config, 3, 1, seeds, CPU) for seeds in (SEEDS, (7, 8)))
    train(agent, 3)
    loaded.load_state_dict(copy.deepcopy(agent.state_dict()))
    for each in (agent, loaded):
        torch.manual_seed(0)
        train(each, 3)
    mine, theirs = (tensors(each.state_dict()) for each in (agent, loaded))
    assert all(map(torch.equal, mine, theirs))
    assert agent.actor_optimizer.updates == 6


def test_n_samples_cannot_have_a_divergence_of_log_n() -> None:
    with pytest.raises(ValueError, match=r"target_kl must be below log\(samples\) = 2.08"):
        DPMDConfig(samples=8, target_kl=2.1)


def test_there_is_a_temperature_only_without_widening() -> None:
    assert DPMD.effective_temperature(DPMDConfig(), {}) is None
    assert DPMD.effective_temperature(DPMDConfig(sample_noise=0.0), {}) == 0.0


def test_its_samples_climb_the_critic() -> None:
    config = DPMDConfig((32, 32), learning_rate=3e-3, samples=8, target_kl=1.0, copy_updates=50)
    agent = DPMD(config, 3, 1, SEEDS, CPU)
    fix_critic(agent, parabola)

    def distance() -> float:
        action = agent.act(torch.zeros(2, 2000, 3), explore=False)
        return (action - BEST).abs().mean().item()

    before = distance()
    for _ in range(300):
        agent.update(make_batch(2, 64, 3, 1, torch.float32))
    assert distance() < 0.25 < before


@pytest.mark.parametrize("name", DPMD.presets)
def test_a_reference_preset_spells_out_every_choice(name: str) -> None:
    assert set(DPMD.presets[name]) | {"matmul_precision"} == {f.name for f in fields(DPMDConfig)}
