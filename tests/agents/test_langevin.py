"""Langevin dynamics on known critics against closed forms, and the critics' noise levels."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.common.learner import critic_loss
from agents.langevin import ChainNoise, Langevin, LangevinConfig, Noise
from agents.qsm import QSM, QSMConfig
from tests.agents.fixed_critics import CPU, Value, fix_critic, in_float64, make_batch

SEEDS = (0, 1)
BEST = 0.3


def build(action_size: int = 1, **settings: Any) -> Langevin:
    config = LangevinConfig(**{"hidden_sizes": (16, 16), **settings})
    return in_float64(Langevin(config, 3, action_size, SEEDS, CPU))


def reference(action_size: int = 1) -> Langevin:
    return build(action_size, **{**Langevin.presets["langevin_reference"], "hidden_sizes": (16,)})


def parabola(k: float) -> Value:
    return lambda observation, action: -k * (action - BEST).square().sum(dim=-1)


def two_modes(observation: Tensor, action: Tensor) -> Tensor:
    return torch.cat([-40 * (action - m).square() for m in (0.5, -0.5)], dim=-1).logsumexp(dim=-1)


def samples(agent: Langevin, critic: Value, rows: int = 20_000) -> Tensor:
    """Samples on a known critic, [2 rows, act]."""
    fix_critic(agent, critic)
    noise = ChainNoise(*(x.double() for x in agent.draw_chain(rows, agent.explore_stream)))
    found = agent.sample(torch.zeros(2, 1, 3, dtype=torch.float64), noise)
    assert found.abs().max() <= 1.0
    return found.flatten(0, 1)


def at_bounds(action: Tensor) -> float:
    return (action.abs() == 1).double().mean().item()


@pytest.mark.parametrize(
    ("k", "mean", "deviation", "boltzmann"),
    [
        (0.1, 0.188, 0.353, 0.316),
        (0.3, 0.288, 0.191, 0.183),
        (1.0, 0.300, 0.115, 0.100),
        (2.0, 0.300, 0.100, 0.071),
        (3.0, 0.300, 0.116, 0.058),
    ],
)
def test_the_samples_spread_as_the_unadjusted_chain_does(
    k: float, mean: float, deviation: float, boltzmann: float
) -> None:
    """With the default settings: eta k is 0.025 to 0.75."""
    found = samples(build(), parabola(k))
    assert found.mean().item() == pytest.approx(mean, abs=0.006)
    assert found.std().item() == pytest.approx(deviation, abs=0.004)
    assert math.sqrt(0.02 / (2 * k)) == pytest.approx(boltzmann, abs=6e-4)
    if k >= 1:  # 20 steps are enough, and no bound is near
        exact = math.sqrt(0.02 / (2 * k) / (1 - 0.25 * k))
        assert found.std().item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("times_k", "stable"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("temperature", [0.02, 1e-4])
def test_the_chain_is_stable_if_eta_k_is_below_1(
    times_k: float, stable: bool, temperature: float
) -> None:
    """With h = eta lambda that is h k < lambda, or d k < 2 of a step d / 2 at lambda = 1."""
    agent = build(temperature=temperature, step_size=0.1, langevin_steps=100)
    found = samples(agent, parabola(times_k / 0.1), rows=2_000)
    if stable:
        exact = math.sqrt(temperature / (2 * times_k / 0.1) / (1 - times_k))
        assert found.std().item() == pytest.approx(exact, rel=0.05)
    else:
        assert at_bounds(found) > 0.3
        assert found.std() > 0.5


def test_far_beyond_that_a_third_of_the_samples_lies_at_a_bound() -> None:
    found = samples(build(), parabola(5))
    assert at_bounds(found) == pytest.approx(0.36, abs=0.02)
    assert found.std().item() == pytest.approx(0.84, abs=0.02)


def test_without_noise_a_sample_climbs_the_gradient() -> None:
    agent = build(2, temperature=0.0, langevin_steps=7, step_size=0.1)
    found = samples(agent, parabola(1.5), rows=50)
    again = Langevin(agent.config, 3, 2, SEEDS, CPU)
    start = again.draw_chain(50, again.explore_stream).start.double().flatten(0, 1)
    torch.testing.assert_close(found, BEST + (start - BEST) * (1 - 2 * 0.1 * 1.5) ** 7)


def tilted(observation: Tensor, action: Tensor) -> Tensor:
    """Two modes, the right one better by 0.2."""
    return (0.2 * action - 10 * (action.square() - 0.25).square()).sum(dim=-1)


def test_as_steps_get_short_the_histogram_becomes_that_of_the_boltzmann_density() -> None:
    """The bounds are e^-14 as likely as the modes; k is 10 at a mode."""
    temperature, bins, rows = 0.4, 40, 10_000
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    fine = torch.linspace(-1, 1, 100 * bins + 1, dtype=torch.float64)
    density = (tilted(fine, fine.unsqueeze(-1)) / temperature).softmax(dim=0)[:-1]
    wanted = density.view(bins, 100).sum(dim=1)
    distances = []
    for size in (0.04, 0.01):
        agent = build(temperature=temperature)
        fix_critic(agent, tilted)
        action = 2 * torch.rand(2, rows, 1, dtype=torch.float64) - 1
        critic = agent.critic.at_observation(action)
        for _ in range(round(8 / size)):
            action = agent.step(critic, action, size, torch.randn_like(action))
        found = torch.histogram(action.flatten(), edges).hist / (2 * rows)
        distances.append(0.5 * (found - wanted).abs().sum().item())
    # So many exact samples are 0.02 apart.
    assert distances[0] > 0.04 > distances[1]


@pytest.mark.parametrize("of", ["mean", "min"])
def test_the_gradient_is_the_central_difference(of: Any) -> None:
    agent = build(2, gradient_of=of)
    observation, action = torch.randn(2, 8, 3).double(), torch.rand(2, 8, 2).double()
    found = agent.action_gradient(observation, action)
    for entry in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[entry] = 1e-6
        q = [agent.critic(observation, action + s) for s in (shift, -shift)]
        ahead, behind = (x.mean(dim=0) if of == "mean" else x.amin(dim=0) for x in q)
        torch.testing.assert_close(found[..., entry], (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_sample_is_the_recursion() -> None:
    agent = build(2, noise_levels=3, langevin_steps=2, smallest_noise=0.05, normalize_gradient=True)
    noise = ChainNoise(2 * torch.rand(2, 8, 2).double() - 1, torch.randn(2, 6, 8, 2).double())
    observation = torch.randn(2, 4, 3, dtype=torch.float64)
    found = agent.sample(observation, noise)
    action = noise.start.clone()
    for n in range(6):
        level, size = n // 2, 0.25 * 4 ** (1 - n // 2 / 2)
        code = torch.eye(3, dtype=torch.float64)[level].expand(2, 8, 3)
        state = torch.cat([observation.repeat(1, 2, 1), code], dim=-1)
        action.requires_grad_()
        value = agent.critic(state, action).mean(dim=0)
        (gradient,) = torch.autograd.grad(value.sum(), action)
        along = gradient / gradient.square().sum(dim=-1, keepdim=True).sqrt()
        moved = action + size * along + math.sqrt(2 * size * 0.02) * noise.steps[:, n]
        action = moved.detach().clamp(-1, 1)
    torch.testing.assert_close(found, action)


def test_nclqls_steps_have_their_lengths() -> None:
    config = reference().config
    lengths = [250, 90, 32, 12, 4.2, 1.5, 0.54, 0.19, 0.07, 0.025]
    assert config.step_sizes == pytest.approx(lengths, rel=0.035)
    # h_l of the source is the variance of a step's noise: 1 at the first level, 1e-4 at the last.
    variances = [2 * size * config.temperature for size in config.step_sizes]
    wanted = [1e-4 * (std / 0.001) ** 2 for std in config.noise_stds]
    assert variances == pytest.approx(wanted)
    assert (variances[0], variances[-1]) == pytest.approx((1.0, 1e-4))
    # A step is 0.5 h_l 500 long there.
    assert config.step_sizes == pytest.approx([250 * variance for variance in variances])


@pytest.mark.parametrize("k", [0.1, 5.0, 1000.0])
def test_nclql_finds_a_parabolas_maximum_whatever_its_scale_is(k: float) -> None:
    found = samples(reference(), parabola(k), rows=5_000)
    assert found.mean().item() == pytest.approx(0.300, abs=0.002)
    assert found.std().item() == pytest.approx(0.022, abs=0.001)


def test_nclql_keeps_two_equal_modes_and_has_nothing_elsewhere() -> None:
    found = samples(reference(), two_modes, rows=5_000)
    assert (found > 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (found.abs() - 0.5).abs().max() < 0.15


def test_the_last_levels_critics_are_the_ones_that_are_asked() -> None:
    agent = build(2, noise_levels=4, candidates_evaluate=3)
    observation, action = torch.randn(2, 5, 3).double(), torch.rand(2, 15, 2).double()
    code = torch.tensor([0.0, 0.0, 0.0, 1.0]).double().expand(2, 15, 4)
    states = torch.cat([observation.repeat(1, 3, 1), code], dim=-1)
    q = agent.critic(states, action)
    torch.testing.assert_close(
        agent.action_value(observation.repeat(1, 3, 1), action), q.mean(dim=0)
    )
    values = agent.candidate_values(observation, action)
    torch.testing.assert_close(values, q.amin(dim=0).view(2, 3, 5))
    assert torch.equal(
        agent.best_action(observation, action),
        action.view(2, 3, 5, 2).take_along_dim(values.argmax(1).view(2, 1, 5, 1), 1).squeeze(1),
    )


def directional(agent: Langevin, loss: Any, gradients: Sequence[Tensor]) -> tuple[float, float]:
    """The gradient along a random direction, and the central difference along it."""
    parameters: list[Tensor] = [*agent.critic.parameters()]
    values = []
    direction = [torch.randn_like(p) for p in parameters]
    for distance in (1e-6, -2e-6):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=distance)
        values.append(loss().sum().item())
    along = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    return along, (values[0] - values[1]) / 2e-6


def test_the_noised_loss_is_the_formula_and_its_gradient_the_central_difference() -> None:
    agent = build(2, noise_levels=3)
    batch, wanted = make_batch(2, 8, 3, 2, torch.float64), torch.randn(2, 8, dtype=torch.float64)
    chain = agent.draw_chain(0, agent.update_stream)
    level, shift = torch.tensor([[0, 1] * 4] * 2), torch.randn(2, 8, 2, dtype=torch.float64)
    noise = Noise(chain, level, shift)
    loss = agent.noised_loss(batch, wanted, noise)
    total = torch.zeros(2, dtype=torch.float64)
    for b in range(8):
        std, code = ((0.1, [1.0, 0, 0]), (0.01, [0, 1.0, 0]))[b % 2]
        coded = torch.tensor(code, dtype=torch.float64).expand(2, 1, 3)
        state = torch.cat([batch.observation[:, b : b + 1], coded], dim=-1)
        q = agent.critic(state, (batch.action + std * shift)[:, b : b + 1])
        total += (q.squeeze(-1) - wanted[:, b]).square().sum(dim=0).detach() / 8
    torch.testing.assert_close(loss, total)
    gradients = torch.autograd.grad(loss.sum(), [*agent.critic.parameters()])
    along, difference = directional(
        agent, lambda: agent.noised_loss(batch, wanted, noise), gradients
    )
    assert along == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_the_target_has_the_smaller_target_critics_value_of_a_sample() -> None:
    agent = build(2)
    fix_critic(agent, parabola(1.0), lambda s, a: parabola(2.0)(s, a) + 0.1)
    batch = make_batch(2, 8, 3, 2, torch.float64)
    chain = ChainNoise(*(x.double() for x in agent.draw_chain(8, agent.update_stream)))
    metrics = agent.pure_update(batch, Noise(chain, torch.zeros(2, 0).long(), chain.start[:, :0]))
    action = agent.sample(batch.next_observation, chain)
    value = torch.minimum(parabola(1.0)(action, action), parabola(2.0)(action, action) + 0.1)
    q = agent.critic(batch.observation, batch.action)
    torch.testing.assert_close(metrics["critic_loss"], critic_loss(q, batch, value))


def test_its_temperature_is_near_qsms() -> None:
    """Between that of qsm's denoiser at t = 1 and that next to pure noise, 1 / alpha."""
    mine = Langevin.effective_temperature(LangevinConfig(), {})
    qsm = QSM.effective_temperature(QSMConfig(), {})
    assert qsm is not None
    assert mine == 1 / QSMConfig().alpha == 0.02
    assert qsm == pytest.approx(0.0089, abs=1e-4)
    assert Langevin.effective_temperature(LangevinConfig(temperature=0.0), {}) == 0.0
    assert Langevin.effective_temperature(LangevinConfig(normalize_gradient=True), {}) is None


def test_the_levels_learn_the_last_levels_value_around_an_action() -> None:
    """On rewards -5 (a - 0.3)^2 without a future, by updates alone."""
    config = LangevinConfig((32, 32), learning_rate=1e-2, noise_levels=2, langevin_steps=1)
    agent = Langevin(config, 3, 1, SEEDS, CPU)
    for _ in range(300):
        batch = make_batch(2, 64, 3, 1, torch.float32)
        reward = parabola(5.0)(batch.observation, batch.action)
        agent.update(batch._replace(reward=reward, discount=torch.zeros(2, 64)))
    action = torch.linspace(-0.8, 0.8, 9).view(1, 9, 1).expand(2, -1, -1)
    observation = torch.zeros(2, 9, 3)
    for level in (0, 1):
        with torch.no_grad():
            q = agent.critic(agent.at_level(observation, level), action).mean(dim=0)
        assert (q - parabola(5.0)(observation, action)).abs().mean() < 0.5


@pytest.mark.parametrize("name", Langevin.presets)
def test_a_reference_preset_spells_out_every_choice(name: str) -> None:
    preset = Langevin.presets[name]
    assert set(preset) | {"matmul_precision"} == {f.name for f in fields(LangevinConfig)}
