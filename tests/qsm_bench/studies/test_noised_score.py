"""What a denoiser is to predict on a known Q, against closed forms, and the law of its samples."""

import math

import numpy as np
import pytest
import torch

from qsm_bench.studies import noised_score
from qsm_bench.studies.noised_score import (
    CRITICS,
    DRAWN,
    EXACT,
    MAXIMUM,
    QSM,
    ROOT,
    TARGETS,
    distance,
    draw,
    draw_exactly,
    gradient,
    make_target,
    measure_distances,
    parabola,
    prediction_errors,
    predictions,
    shares,
    temperature_ratio,
)
from qsm_bench.studies.overshoot import sample


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_on_a_narrow_parabola_the_exact_score_is_the_normal_law_s(steps: int) -> None:
    """Far from the bounds, exp(Q / tau) is N(MAXIMUM, tau / 10), noised to another normal."""
    tau = 0.1
    target = make_target(EXACT, "parabola", tau, steps)
    for t in range(1, steps + 1):
        abar = float(target.schedule.abar[t])
        action = math.sqrt(abar) * torch.linspace(0.2, 0.4, 5, dtype=torch.float64)
        variance = abar * tau / 10 + 1 - abar
        expected = math.sqrt(1 - abar) * (action - math.sqrt(abar) * MAXIMUM) / variance
        torch.testing.assert_close(target(action, t), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_on_a_slope_the_exact_score_is_that_of_a_truncated_normal(t: int) -> None:
    """In the box p(a | a^t) is N(m, v), v = (1 - abar) / abar, m = a^t / sqrt(abar) + 5 v."""
    from scipy.stats import truncnorm

    target = make_target(EXACT, "slope", 1.0, 5)
    abar = float(target.schedule.abar[t])
    deviation = math.sqrt((1 - abar) / abar)
    mean = 0.5 / math.sqrt(abar) + 5 * deviation**2
    low, high = (-1 - mean) / deviation, (1 - mean) / deviation
    clean = truncnorm.mean(low, high, loc=mean, scale=deviation)
    expected = (0.5 - math.sqrt(abar) * clean) / math.sqrt(1 - abar)
    action = torch.tensor(0.5, dtype=torch.float64)
    assert float(target(action, t)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_exact_target_is_minus_the_score_of_the_noised_density(critic: str) -> None:
    """By a difference of log p_t, which is a sum over clean actions."""
    target = make_target(EXACT, critic, 0.7, 5)
    action = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)
    for t in (1, 4):
        abar = float(target.schedule.abar[t])

        def log_density(at: torch.Tensor, abar: float = abar) -> torch.Tensor:
            apart = at.unsqueeze(-1) - math.sqrt(abar) * target.points
            return (target.log_density - apart.square() / (2 * (1 - abar))).logsumexp(dim=-1)

        score = (log_density(action + 1e-5) - log_density(action - 1e-5)) / 2e-5
        expected = -math.sqrt(1 - abar) * score
        torch.testing.assert_close(target(action, t), expected, rtol=1e-5, atol=1e-6)


def test_the_root_is_all_that_the_other_two_differ_by() -> None:
    action = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for critic, value in CRITICS.items():
        plain, rooted = (make_target(name, critic, 0.5, 5) for name in (QSM, ROOT))
        deviation = (1 - plain.schedule.abar).sqrt()
        torch.testing.assert_close(plain(action, 1), rooted(action, 1))
        torch.testing.assert_close(plain(action, 1), plain(action, 4))
        for t in range(1, 6):
            # score = -eps / sqrt(1 - abar_t) = grad_a Q / tau
            score = -rooted(action, t) / float(deviation[t])
            torch.testing.assert_close(score, gradient(value, action) / 0.5)
        ratio = float(rooted(action[:1], 5) / plain(action[:1], 5))
        assert ratio == pytest.approx(temperature_ratio(5))


def test_the_gradient_is_that_of_q() -> None:
    action = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(gradient(parabola, action), -10 * (action - MAXIMUM))


def test_the_temperatures_of_eq_10_differ_the_more_the_longer_the_chain() -> None:
    assert temperature_ratio(1) == pytest.approx(1.0)
    ratios = [temperature_ratio(steps) for steps in (1, 2, 5, 20)]
    assert ratios == sorted(ratios)


def test_on_the_parabola_eq_10_is_the_study_of_overshoot_s() -> None:
    """Its product alpha k has alpha = sqrt(1 - abar_1) / tau and k = 5."""
    target = make_target(QSM, "parabola", 2.0, 5)
    product = 5 * float((1 - target.schedule.abar[1]).sqrt()) / 2
    noise = torch.randn(
        (3, 5, 20, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    expected = sample(product, MAXIMUM, 5, noise).view(3, 20).numpy()
    np.testing.assert_allclose(draw(target, 3, 20), expected, rtol=1e-6)


def test_the_distance_is_how_far_mass_has_to_be_moved() -> None:
    drawn = draw_exactly("two modes", 1.0, 2, 50_000)
    assert (distance(drawn, "two modes", 1.0) < 0.01).all()
    # Of a law that is one point, nearly, it is the mean distance to it.
    narrow = distance(np.array([[0.9] * 3, [0.3, 0.3, 0.9]]), "parabola", 1e-5)
    np.testing.assert_allclose(narrow, [0.6, 0.2], atol=0.01)
    assert shares("slope", 1.0).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("critic", CRITICS)
def test_an_exact_score_leads_to_the_law_that_was_asked_for(critic: str) -> None:
    """The longer the chain the nearer, so the exact target and the sampler fit each other.

    Where the law reaches a bound, the clip in every step leaves a difference at any T.
    """
    short, long = (draw(make_target(EXACT, critic, 1.0, t), 1, 4_000) for t in (5, 100))
    near = float(distance(long, critic, 1.0)[0])
    assert near < (0.75 if critic == "slope" else 0.4) * float(distance(short, critic, 1.0)[0])
    assert near < 0.05


def test_what_is_measured_has_every_target_and_exact_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noised_score, "POINTS", 51)
    found = measure_distances((0.5, 1.0), (1, 2), 2, 10)
    assert len(found) == 3 * 2 * 2 * (len(TARGETS) + 1) * 2
    assert set(found["agent"]) == {*TARGETS, DRAWN}
    assert found["distance"].between(0, 2).all()
    asked = predictions("slope", 1.0, 5, (1, 5)).set_index(["agent", "t"])["value"].sort_index()
    assert asked[QSM, 5].to_numpy() == pytest.approx(asked[ROOT, 1].to_numpy())
    errors = prediction_errors("slope", 1.0, 2).set_index(["agent", "t"])["error"]
    assert errors[QSM, 1] == pytest.approx(errors[ROOT, 1])
    assert errors[QSM, 2] != pytest.approx(errors[ROOT, 2], rel=0.1)
