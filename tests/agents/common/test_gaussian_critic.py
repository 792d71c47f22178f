"""Gaussian critics: their outputs, and their loss against its formula."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agents.common.gaussian_critic import (
    GaussianTwinCritic,
    gaussian_critic_loss,
    less_favorable,
)
from agents.common.streams import SeedStreams
from tests.agents.fixed_critics import CPU

SEEDS, ROWS = 3, 40
Predictions = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def predictions() -> Predictions:
    """Means and deviations, y, y_z and spreads; some draws are farther than three spreads."""
    mean, deviation = normal(2, SEEDS, ROWS), 0.05 + normal(2, SEEDS, ROWS).abs()
    target = normal(SEEDS, ROWS)
    return (
        mean,
        deviation,
        target,
        target + 2 * normal(SEEDS, ROWS),
        0.3 + normal(2, SEEDS, 1).abs(),
    )


def plain_loss(mean: Tensor, deviation: Tensor, held: Predictions, unit: float = 1.0) -> Tensor:
    """The formula, entry by entry, with what is held constant given apart."""
    mean_0, deviation_0, target, drawn, spread = held
    total = torch.zeros(SEEDS, dtype=torch.float64)
    for i in range(2):
        for seed in range(SEEDS):
            s = spread[i, seed, 0].double()
            for row in range(ROWS):
                m, sd = mean_0[i, seed, row], deviation_0[i, seed, row]
                d = (drawn[seed, row] - m).clamp(min=-3 * s.item(), max=3 * s.item())
                gained = mean[i, seed, row] * (target[seed, row] - m) / (sd**2 + 0.1 * unit**2)
                gained = gained + (
                    deviation[i, seed, row] * (d**2 - sd**2) / (sd**3 + 0.1 * unit**3)
                )
                total[seed] -= (s**2 + 0.1 * unit**2) * gained / ROWS
    return total


def test_the_gradient_is_the_central_difference_of_the_formula_with_the_rest_held() -> None:
    held = predictions()
    mean, deviation = (x.clone().requires_grad_() for x in held[:2])
    _, _, target, drawn, spread = held
    loss = gaussian_critic_loss(mean, deviation, target, drawn, spread)
    torch.testing.assert_close(loss, plain_loss(mean, deviation, held))
    gradients = torch.autograd.grad(loss.sum(), [mean, deviation])
    h = 1e-5
    for _ in range(3):
        steps = [normal(2, SEEDS, ROWS), normal(2, SEEDS, ROWS)]
        above, below = (
            plain_loss(held[0] + a * steps[0], held[1] + a * steps[1], held).sum() for a in (h, -h)
        )
        along = sum((g * s).sum() for g, s in zip(gradients, steps, strict=True))
        assert float(along) == pytest.approx(float(above - below) / (2 * h), rel=1e-6)


def test_the_mean_moves_to_y_and_the_deviation_to_the_distance() -> None:
    mean, deviation, target, drawn, spread = predictions()
    mean, deviation = mean.requires_grad_(), deviation.requires_grad_()
    loss = gaussian_critic_loss(mean, deviation, target, drawn, spread)
    for_mean, for_deviation = torch.autograd.grad(loss.sum(), [mean, deviation])
    distance = (drawn - mean).detach()
    near = torch.maximum(torch.minimum(distance, 3 * spread), -3 * spread)
    assert (near != distance).any()
    weight = (spread.square() + 0.1) / ROWS
    torch.testing.assert_close(for_mean, weight * (mean - target) / (deviation.square() + 0.1))
    torch.testing.assert_close(
        for_deviation, weight * (deviation.square() - near.square()) / (deviation**3 + 0.1)
    )


@pytest.mark.parametrize("unit", [0.3, 5.0])
def test_rewards_in_another_unit_have_the_same_loss_but_for_a_factor(unit: float) -> None:
    values = predictions()
    mean, deviation, target, drawn, spread = (unit * x for x in values)
    loss = gaussian_critic_loss(*values)
    larger = gaussian_critic_loss(mean, deviation, target, drawn, spread, unit)
    torch.testing.assert_close(larger, unit**2 * loss)


def test_the_smaller_mean_is_chosen_with_its_own_deviation_and_draws_end_at_3() -> None:
    mean = torch.tensor([[[1.0, 5.0, 2.0]], [[2.0, 4.0, 3.0]]])
    deviation = torch.tensor([[[0.1, 0.2, 1.0]], [[0.3, 0.4, 9.0]]])
    smaller, drawn = less_favorable(mean, deviation, torch.tensor([[1.0, -2.0, 7.0]]))
    torch.testing.assert_close(smaller, torch.tensor([[1.0, 4.0, 2.0]]))
    torch.testing.assert_close(drawn, torch.tensor([[1.1, 3.2, 5.0]]))


@pytest.mark.parametrize("unit", [1.0, 5.0])
def test_a_critic_is_called_for_its_mean(unit: float) -> None:
    critic = GaussianTwinCritic(3, 2, (8, 8), SeedStreams((0, 1), "critic", CPU), unit=unit)
    observation, action = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    mean, deviation = critic.distribution(observation, action)
    outputs = critic.mlp(torch.cat([observation, action], dim=-1).repeat(2, 1, 1)).view(2, 2, 5, 2)
    torch.testing.assert_close(mean, unit * outputs[..., 0])
    torch.testing.assert_close(deviation, unit * functional.softplus(outputs[..., 1]))
    torch.testing.assert_close(critic(observation, action), mean)
    for twins in (1, 2):
        torch.testing.assert_close(critic.at_observation(observation, twins)(action), mean[:twins])
