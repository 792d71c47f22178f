"""Langevin dynamics: a Gaussian in closed form, step size included, and the known Q."""

import numpy as np
import pytest
from scipy import linalg, stats

from qsm_bench.studies import langevin

CHAINS = 20_000


@pytest.mark.parametrize("noise", [langevin.NOISE, 1.0])
@pytest.mark.parametrize("step", [0.3, 0.1, 0.02])
def test_a_quadratic_q_gives_the_gaussian_of_eulers_method(step: float, noise: float) -> None:
    """With drift -k x, the variance v of the next step is (1 - h k)^2 v + noise^2 h.

    So v = noise^2 h / (1 - (1 - h k)^2): with noise sqrt(2), 2 / (k (2 - h k)), not 1 / k.
    """
    curvature = 3.0
    ends = langevin.simulate(lambda x: -curvature * x, step, CHAINS, 0, duration=6.0, noise=noise)
    variance = noise**2 * step / (1 - (1 - step * curvature) ** 2)
    error = variance * np.sqrt(2 / CHAINS)
    assert abs(ends.var() - variance) < 4 * error
    assert abs(ends.mean()) < 4 * np.sqrt(variance / CHAINS)
    assert stats.kstest(ends / np.sqrt(variance), "norm").pvalue > 1e-3


def test_the_gradient_is_that_of_q() -> None:
    action, small = np.linspace(-2, 2, 41), 1e-6
    slope = (langevin.known_q(action + small) - langevin.known_q(action - small)) / (2 * small)
    np.testing.assert_allclose(langevin.known_gradient(action), slope, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_shares_are_those_of_the_mixture(alpha: float) -> None:
    """exp(Q) is a mixture of two Gaussians, and its square one of three: the middle one from the
    product of both bumps, exp(-(x - M)^2 / (2 w^2)) exp(-(x + M)^2 / (2 w^2)) =
    exp(-M^2 / w^2) exp(-x^2 / w^2).
    """
    m, w, high, low = langevin.MAXIMUM, langevin.WIDTH, langevin.HIGH, langevin.LOW
    both = 2 * high * low * np.exp(-((m / w) ** 2))
    parts = {1.0: [(high, -m), (low, m)], 2.0: [(high**2, -m), (low**2, m), (both, 0.0)]}[alpha]
    edges = np.linspace(-langevin.EDGE, langevin.EDGE, langevin.BINS + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    total = sum(weight for weight, _ in parts)
    expected = sum(
        weight / total * np.diff(stats.norm(at, w / np.sqrt(alpha)).cdf(edges))
        for weight, at in parts
    )
    np.testing.assert_allclose(langevin.bin_shares(alpha), expected, atol=1e-6)


def test_the_dynamics_run_long_enough_to_forget_their_start() -> None:
    """The relaxation time is -1 / the second eigenvalue of the generator.

    On a grid the generator jumps from x to its neighbor y at the rate sqrt(p(y) / p(x)) / width^2,
    which has the stationary density p; made symmetric, all rates next to the diagonal are equal.
    """
    points = np.linspace(-2.0, 2.0, 800)
    rate = 1 / (points[1] - points[0]) ** 2
    half = np.sqrt(np.exp(langevin.ALPHA * np.diff(langevin.known_q(points))))
    leave = np.zeros(len(points))
    leave[:-1] -= rate * half
    leave[1:] -= rate / half
    values = linalg.eigvalsh_tridiagonal(leave, np.full(len(half), rate))
    assert values[-1] == pytest.approx(0.0, abs=1e-6)
    assert pytest.approx(21 * -1 / values[-2], rel=0.02) == langevin.DURATION


def test_the_distance_is_none_to_itself_and_one_to_what_is_elsewhere() -> None:
    shares = langevin.bin_shares(2.0)
    assert langevin.distance(shares, shares) == 0.0
    left, right = np.eye(langevin.BINS)[[0, 5]]
    assert langevin.distance(left, right) == 1.0
    assert langevin.distance(np.stack([left, right]), right).tolist() == [1.0, 0.0]


def test_a_histogram_counts_what_is_beyond_its_edges() -> None:
    shares = langevin.histogram(np.array([-9.0, -langevin.EDGE + 1e-9, 0.01, 9.0]))
    assert shares[[0, langevin.BINS // 2, -1]].tolist() == [0.5, 0.25, 0.25]


def test_exact_samples_have_the_distance_of_counts() -> None:
    """A share of n samples is normal around p, and the mean of |x - p| is sqrt(2 p (1 - p) / pi n).

    Bins with few samples are skewed, so this is not exact.
    """
    shares = langevin.bin_shares(2.0)
    expected = 0.5 * np.sqrt(2 * shares * (1 - shares) / (np.pi * CHAINS)).sum()
    drawn = langevin.exact_distances(shares, CHAINS, 500, seed=0)
    assert drawn.shape == (500,)
    assert drawn.mean() == pytest.approx(expected, rel=0.02)
