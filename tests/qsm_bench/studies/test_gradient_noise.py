"""The noise of gradients: estimates against closed forms, and what must not change them."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qsm_bench.studies.gradient_noise import (
    CriticsPart,
    actor_gradient,
    asked_actions,
    draw_batches,
    give_critic,
    measure_noise,
    moments,
)
from qsm_bench.studies.trainers import LITERAL, PG, QL, QSM, TRAINERS
from qsm_bench.studies.update_cost import ACTION, CPU, OBSERVATION, build

SEEDS = (0, 1)
SMALL = {"hidden_sizes": [16, 16], "diffusion_steps": 3}


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 2), min_size=2, max_size=3), st.integers(2, 4))
def test_both_estimates_are_unbiased(points: list[tuple[float, float]], count: int) -> None:
    """Averaged over all samples of a finite population, they are exactly what they estimate."""
    population = torch.tensor(points, dtype=torch.float64)
    samples = [torch.stack(list(chosen)) for chosen in product(population, repeat=count)]
    found = moments(torch.stack(samples, dim=1))  # the samples in the place of seeds
    mean = population.mean(dim=0)
    expected = mean.square().sum()
    variance = (population - mean).square().sum(dim=1).mean()
    torch.testing.assert_close(found.square.mean(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.variance.mean(), variance, rtol=1e-9, atol=1e-9)


def test_of_a_gaussian_policy_gradient_they_are_the_closed_form() -> None:
    """Q = c + k a under N(0, s^2), by its mean: (c + k s z) z / s has mean k, and over its square
    the variance c^2 / (k s)^2 + 2."""
    c, k, std, draws = 3.0, 2.0, 0.5, 4_000
    z = torch.randn(draws, 64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = moments((c + k * std * z) * z / std)
    expected = {"square": k**2, "variance": (c / std) ** 2 + 2 * k**2}
    for name, value in expected.items():
        estimates = getattr(found, name)
        error = float(estimates.std()) / len(estimates) ** 0.5
        assert abs(float(estimates.mean()) - value) < 4 * error < 0.1 * value
    ratio = float(found.ratio.mean())
    assert ratio == pytest.approx(1 / ((c / (k * std)) ** 2 + 2), rel=0.1)


@given(st.integers(2, 6), st.integers(1, 5), st.floats(0.01, 100.0))
def test_the_ratio_does_not_depend_on_scale_and_the_variance_is_numpys(
    count: int, size: int, scale: float
) -> None:
    draws = torch.randn(count, 3, size, dtype=torch.float64)
    found = moments(draws)
    torch.testing.assert_close(moments(scale * draws).ratio, found.ratio)
    variance = np.var(draws.numpy(), axis=0, ddof=1).sum(axis=-1)
    np.testing.assert_allclose(found.variance.numpy(), variance)


def linear(action: Tensor) -> Tensor:
    return action.sum(dim=-1)


def lifted(action: Tensor) -> Tensor:
    return linear(action) + 7.0


@pytest.mark.parametrize("name", TRAINERS)
def test_only_the_literal_gradient_depends_on_a_constant_in_q(name: str) -> None:
    tables = []
    for value in (linear, lifted):
        agent = build(name, SEEDS, **SMALL)
        give_critic(agent, value)
        tables.append(measure_noise({name: agent}, OBSERVATION, SEEDS, 8, 20))
    plain, higher = (table["variance"].to_numpy() for table in tables)
    if name == LITERAL:
        assert (higher > 5 * plain).all()
    else:
        np.testing.assert_allclose(higher, plain, rtol=1e-3)


def test_all_trainers_have_the_same_weights_and_batches() -> None:
    agents = {name: build(name, SEEDS, **SMALL) for name in TRAINERS}
    batches = {n: next(draw_batches(a, OBSERVATION, SEEDS, 8, 1)) for n, a in agents.items()}
    for name, agent in agents.items():
        for network in ("denoiser", "critic"):
            mine, first = (getattr(a, network).parameters() for a in (agent, agents[QSM]))
            assert all(torch.equal(x, y) for x, y in zip(mine, first, strict=True))
        assert torch.equal(batches[name].observation, batches[QSM].observation)
        assert torch.equal(batches[name].action, batches[QSM].action)


def test_draws_are_independent_of_each_other_and_of_other_seeds() -> None:
    def draws(seeds: tuple[int, ...]) -> Iterator[Tensor]:
        agent = build(QL, seeds, **SMALL)
        for batch in draw_batches(agent, OBSERVATION, seeds, 8, 2):
            yield actor_gradient(agent, batch)

    first, second = draws((0, 1))
    assert not torch.allclose(first, second)
    for together, alone in zip((first, second), draws((1,)), strict=True):
        torch.testing.assert_close(together[1:], alone)


def test_the_critics_part_is_what_alpha_adds() -> None:
    """The whole gradient is linear in alpha: its slope is the critic's part at alpha = 1."""
    batch = next(draw_batches(build(QSM, SEEDS, **SMALL), OBSERVATION, SEEDS, 8, 1))
    whole = []
    for alpha in (1e-9, 3.0):
        agent = build(QSM, SEEDS, alpha=alpha, **SMALL)
        give_critic(agent, linear)
        whole.append(actor_gradient(agent, batch))
    part = CriticsPart(agent.config, OBSERVATION, ACTION, SEEDS, CPU)
    give_critic(part, linear)
    torch.testing.assert_close(actor_gradient(part, batch), whole[1] - whole[0])


def test_samples_are_the_actions_at_which_q_is_asked() -> None:
    counted = {name: asked_actions(build(name, SEEDS, **SMALL), 8) for name in TRAINERS}
    assert counted == {QSM: 8, QL: 8, PG: 32, LITERAL: 8}
    table = measure_noise({PG: build(PG, SEEDS, **SMALL)}, OBSERVATION, SEEDS, 8, 3)
    np.testing.assert_allclose(table["sample_variance"], 32 * table["variance"])
    np.testing.assert_allclose(32 * table["sample_ratio"], table["ratio"])
