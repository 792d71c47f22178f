"""The entropy of samples by a mixture of Gaussians, against closed forms and another's fit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.common.mixture_entropy import (
    EM_ROUNDS,
    FLOOR,
    Mixture,
    estimate_entropy,
    expect,
    fit_mixture,
    joint_entropy,
    maximize,
    nearest_center,
)

OF_UNIT_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def in_one_dimension(weight: Tensor, mean: Tensor, deviation: Tensor) -> Mixture:
    return Mixture(weight, mean.unsqueeze(-1), deviation.square().view(-1, 1, 1))


def by_quadrature(weight: Tensor, mean: Tensor, deviation: Tensor) -> float:
    """The entropy of a mixture in one dimension, by the trapezoidal rule."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).unsqueeze(-1)
    density = (torch.distributions.Normal(mean, deviation).log_prob(x).exp() * weight).sum(dim=-1)
    return float(torch.trapezoid(torch.special.entr(density), x.squeeze(-1)))


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_of_a_known_mixture_it_is_the_entropy_or_up_to_log_3_more(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, spread, logits = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    weight, deviation = logits.softmax(dim=0), 0.1 + 0.5 * spread.abs()
    entropy = by_quadrature(weight, mean, deviation)
    estimate = joint_entropy(in_one_dimension(weight, mean, deviation)).item()
    assert entropy - 1e-6 < estimate < entropy + math.log(3) + 1e-6


def test_the_bounds_are_reached() -> None:
    weight = torch.full((3,), 1 / 3, dtype=torch.float64)
    deviation = torch.full((3,), 0.2, dtype=torch.float64)
    same = joint_entropy(in_one_dimension(weight, torch.zeros(3).double(), deviation))
    one = OF_UNIT_NORMAL + math.log(0.2)
    assert same.item() == pytest.approx(one + math.log(3), abs=1e-9)
    mean = torch.tensor([-6.0, 0.0, 6.0], dtype=torch.float64)
    apart = joint_entropy(in_one_dimension(weight, mean, deviation))
    assert apart.item() == pytest.approx(by_quadrature(weight, mean, deviation), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_gaussian_has_the_entropy_of_its_covariance(size: int) -> None:
    samples = normal(4, 50, size) @ normal(size, size) + 3
    found = estimate_entropy(samples, components=1)
    for each, estimate in zip(samples, found, strict=True):
        covariance = torch.cov(each.T, correction=0).view(size, size)
        covariance = covariance + FLOOR * torch.eye(size, dtype=torch.float64)
        wanted = OF_UNIT_NORMAL * size + 0.5 * torch.logdet(covariance)
        torch.testing.assert_close(estimate, wanted)


@pytest.mark.parametrize(
    ("size", "error"), [(1, 0.57), (2, 0.56), (6, 0.05), (21, -2.4)], ids=lambda x: str(x)
)
def test_the_error_of_three_gaussians_fitted_to_200_samples_of_one(size: int, error: float) -> None:
    """A few dimensions have it split, for at most log 3; many have it overfitted."""
    sets = 200 if size < 21 else 40
    found = estimate_entropy(0.1 * torch.randn(sets, 200, size))
    wanted = size * (OF_UNIT_NORMAL + math.log(0.1))
    assert found.mean().item() - wanted == pytest.approx(error, abs=0.05 + 0.01 * size)


@pytest.mark.parametrize("size", [1, 2])
def test_of_many_samples_of_one_gaussian_it_stays_within_the_bounds(size: int) -> None:
    found = estimate_entropy(normal(3, 20_000, size)) - size * OF_UNIT_NORMAL
    assert (found > -0.02).all()
    assert (found < math.log(3) + 0.02).all()


def test_modes_that_are_apart_are_found() -> None:
    centers = 0.7 * torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    picked = torch.randint(3, (20, 200))
    found = estimate_entropy(centers[picked] + 0.05 * torch.randn(20, 200, 2))
    # Each mode's covariance is that of 67 samples: its log det is 5 / 67 too small on average.
    wanted = 2 * (OF_UNIT_NORMAL + math.log(0.05)) + math.log(3) - 0.5 * 5 / 67
    assert found.mean().item() == pytest.approx(wanted, abs=0.03)


def log_likelihood(samples: Tensor, mixture: Mixture) -> Tensor:
    normals = torch.distributions.MultivariateNormal(
        mixture.mean.unsqueeze(-2), mixture.covariance.unsqueeze(-3)
    )
    log_density = normals.log_prob(samples.unsqueeze(-3))
    of_each: Tensor = (mixture.weight.log().unsqueeze(-1) + log_density).logsumexp(dim=-2)
    return of_each.sum(dim=-1)


def test_no_round_makes_the_samples_less_likely() -> None:
    samples = torch.cat([normal(5, 60, 2), 3 + 0.3 * normal(5, 30, 2)], dim=1)
    mixture = maximize(samples.mT, nearest_center(samples.mT, 3))
    likelihoods = [log_likelihood(samples, mixture)]
    for _ in range(EM_ROUNDS):
        mixture = maximize(samples.mT, expect(samples.mT, mixture))
        likelihoods.append(log_likelihood(samples, mixture))
    gained = torch.stack(likelihoods).diff(dim=0)
    # But for what FLOOR adds to variances.
    assert gained.min() > -1e-3
    assert gained[0].min() > 0.01


def test_a_component_is_as_likely_as_its_density_says() -> None:
    samples = normal(1, 7, 2)
    mixture = fit_mixture(normal(1, 40, 2), 3)
    share = expect(samples.mT, mixture)
    for k in range(3):
        law = torch.distributions.MultivariateNormal(mixture.mean[0, k], mixture.covariance[0, k])
        log_density = mixture.weight[0, k].log() + law.log_prob(samples[0])
        wanted = (log_density - log_likelihood_of_each(samples, mixture)).exp()
        torch.testing.assert_close(share[0, k], wanted)


def log_likelihood_of_each(samples: Tensor, mixture: Mixture) -> Tensor:
    return torch.stack([log_likelihood(x.view(1, 1, -1), mixture)[0] for x in samples[0]])


@pytest.mark.parametrize("size", [1, 3])
def test_another_library_fits_the_same_from_the_same_start(size: int) -> None:
    other = pytest.importorskip("sklearn.mixture")
    samples = normal(6, 80, size)
    samples[:, :30] += 1.5
    start = maximize(samples.mT, nearest_center(samples.mT, 3))
    ours = fit_mixture(samples, 3)
    for i, each in enumerate(samples.numpy()):
        theirs = other.GaussianMixture(
            3,
            tol=0,
            max_iter=EM_ROUNDS,
            weights_init=start.weight[i].numpy(),
            means_init=start.mean[i].numpy(),
            precisions_init=start.covariance[i].inverse().numpy(),
        )
        with pytest.warns(UserWarning, match="did not converge"):
            theirs.fit(each)
        for mine, found in [
            (ours.weight[i], theirs.weights_),
            (ours.mean[i], theirs.means_),
            (ours.covariance[i], theirs.covariances_),
        ]:
            torch.testing.assert_close(mine, torch.from_numpy(found), rtol=1e-6, atol=1e-8)


def test_samples_that_are_moved_turned_and_stretched_have_their_entropy_and_the_stretch() -> None:
    samples = normal(5, 100, 3)
    turn, _ = torch.linalg.qr(normal(3, 3))
    moved = 4.0 * samples @ turn + 10
    torch.testing.assert_close(
        estimate_entropy(moved), estimate_entropy(samples) + 3 * math.log(4), rtol=0, atol=1e-4
    )


def test_no_set_of_samples_reaches_another() -> None:
    samples = torch.randn(2, 3, 50, 4)
    together = estimate_entropy(samples)
    spoiled = samples.clone()
    spoiled[0, 1] = float("nan")
    beside = estimate_entropy(spoiled)
    assert beside[0, 1].isnan()
    beside[0, 1] = together[0, 1]
    assert torch.equal(beside, together)
    for i in range(2):
        torch.testing.assert_close(estimate_entropy(samples[i]), together[i])


@pytest.mark.parametrize("size", [1, 3])
def test_samples_that_coincide_have_the_floors_entropy(size: int) -> None:
    found = estimate_entropy(torch.full((2, 20, size), 0.7))
    wanted = torch.full((2,), size * (OF_UNIT_NORMAL + 0.5 * math.log(FLOOR)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    assert found[0].item() / size == pytest.approx(-5.5, abs=0.02)
