"""Overshoot in closed form, against the sampler itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from envs import linear_quadratic as lq
from qsm_bench.studies import overshoot
from qsm_bench.studies.overshoot import Steps, linear_quadratic_k, normal, sample, share_at_bounds

SMALL = 1e-12
"""Actions of this size reach no bound, whatever the sampler makes of them in so few steps."""


def without_clip(product: float, maximum: float, steps: int) -> tuple[float, float]:
    """The mean and variance of the samples, from the sampler's answer to each of its noises.

    It is affine where nothing is clipped, so there is no need to draw any: the noises are unit
    vectors, and the variance is the sum of the squared answers.
    """
    unit = torch.eye(steps, dtype=torch.float64).view(1, steps, steps, 1)
    none = torch.zeros(1, steps, 1, 1, dtype=torch.float64)
    mean = sample(product, SMALL * maximum, steps, none)
    answers = sample(product, 0.0, steps, SMALL * unit)
    return float(mean) / SMALL, float((answers / SMALL).square().sum())


@given(st.floats(0.0, 5.0), st.floats(-1.0, 1.0), st.integers(1, 8))
def test_the_closed_form_is_what_the_policys_sampler_does(
    product: float, maximum: float, steps: int
) -> None:
    mean, variance = without_clip(product, maximum, steps)
    expected = normal(product, maximum, steps)
    # The schedule itself is float32.
    assert expected == pytest.approx((mean, variance), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_where_the_last_step_lands_all_samples_are_in_one_place(steps: int) -> None:
    sampler = Steps.of(steps)
    mean, variance = normal(sampler.exact, 0.3, steps)
    assert mean == pytest.approx(0.3 / math.sqrt(sampler.alpha[0]))
    assert variance == pytest.approx(0.0, abs=1e-12)
    noise = torch.randn(1, steps, 50, 1, dtype=torch.float64)
    torch.testing.assert_close(
        sample(sampler.exact, 0.3, steps, noise),
        torch.full((50,), mean, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )
    assert sampler.factors(sampler.growing)[0] == pytest.approx(-1.0)


def test_with_no_score_the_sampler_only_scales_and_adds() -> None:
    """1 / sqrt(abar_T) is the factor of a^T, and exp(5.05) its square at every T."""
    mean, variance = normal(0.0, 0.7, 1)
    assert mean == pytest.approx(0.0, abs=1e-9)
    assert variance == pytest.approx(math.exp(5.05), rel=1e-5)


def test_the_numbers_that_are_said_of_five_steps() -> None:
    """The last step moves by 0.49 alpha grad_a Q; beyond alpha k = 5 all samples overshoot."""
    sampler = Steps.of(5)
    assert sampler.share[0] / math.sqrt(sampler.alpha[0]) == pytest.approx(0.49, abs=0.005)
    assert sampler.exact == pytest.approx(1.13, abs=0.005)
    assert sampler.growing == pytest.approx(2.14, abs=0.005)
    assert share_at_bounds(1.0, 0.3, 5) == 0.0
    assert share_at_bounds(5.0, 0.3, 5) == 1.0


def test_the_boundary_moves_up_with_the_number_of_steps() -> None:
    exact = [Steps.of(steps).exact for steps in (1, 2, 5, 10, 20, 50, 200)]
    assert exact == sorted(exact)
    assert share_at_bounds(5.0, 0.3, 20) == 0.0


def test_the_denoiser_is_what_eq_10_asks_for() -> None:
    action = torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_()
    alpha, k, maximum = 3.0, 0.4, 0.2
    (-k * (action - maximum).square()).sum().backward()
    assert action.grad is not None
    found: Tensor = overshoot.ExactDenoiser(alpha * k, maximum)(action.detach(), 1)
    torch.testing.assert_close(found, -alpha * action.grad)


def test_k_of_the_linear_quadratic_task_is_that_of_its_own_recursion() -> None:
    """Without a discount and with the horizon's steps left, Q's a-part is R dt + B' P_1 B."""
    next_cost = lq.riccati()[1][1]
    expected = lq.TIME_STEP * lq.ACTION_COST + lq.B.T @ next_cost @ lq.B
    assert linear_quadratic_k(1.0, lq.HORIZON) == pytest.approx(expected.item(), rel=1e-9)
    assert linear_quadratic_k(0.0) == pytest.approx(0.1)
    assert linear_quadratic_k(0.9) == pytest.approx(linear_quadratic_k(0.9, 2_000), rel=1e-12)
