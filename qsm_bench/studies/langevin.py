"""Langevin dynamics on a known Q of one action (eq. 19), and how far it is from exp(alpha Q).

We write dX = alpha grad_a Q(X) dt + sqrt(2) dW, whose stationary density is exp(alpha Q) / Z. With
a noise of dW alone, the density is exp(2 alpha Q) / Z: alpha then counts twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAXIMUM, WIDTH = 0.5, 0.3
HIGH, LOW = 0.6, 0.4
"""Q(a) = log(HIGH bump(a + MAXIMUM) + LOW bump(a - MAXIMUM)), bump(x) = exp(-x^2 / (2 WIDTH^2))."""
NOISE = 2.0**0.5
DURATION = 10.0
"""The dynamics run for so long: 21 times their relaxation time (a test computes that)."""
ALPHA = 2.0
EXACT_DRAWS = 2_000
QUANTILE = 0.99
"""Exact samples are compared by this quantile of their distances, and by 1 - QUANTILE."""
FIRST_SEED = 100
LANGEVIN, EXACT = "Langevin dynamics", "exact samples"
EDGE, BINS = 1.6, 40
"""Histograms have this many bins from -EDGE to EDGE; the outermost have all that is beyond."""


def known_q(action: Array) -> Array:
    """Q of actions, in any shape: a maximum near -MAXIMUM, and a lower one near +MAXIMUM."""
    left, right = (-((action + m) ** 2) / (2 * WIDTH**2) for m in (MAXIMUM, -MAXIMUM))
    q: Array = np.logaddexp(np.log(HIGH) + left, np.log(LOW) + right)
    return q


def known_gradient(action: Array) -> Array:
    """grad_a Q of actions, in closed form; linear far from the maxima, so that Euler is stable."""
    pull = np.tanh(MAXIMUM * action / WIDTH**2 + 0.5 * np.log(LOW / HIGH))
    gradient: Array = (MAXIMUM * pull - action) / WIDTH**2
    return gradient


def bin_shares(alpha: float) -> Array:
    """The share of exp(alpha Q) / Z in each bin, by the midpoint rule: [BINS]."""
    fine, beyond = 200 * BINS, 2.5
    width = 2 * beyond * EDGE / fine
    points = -beyond * EDGE + width * (np.arange(fine, dtype=np.float64) + 0.5)
    return histogram(points, np.exp(alpha * known_q(points)))


def histogram(points: Array, weights: Array | None = None) -> Array:
    """The share of points [N] in each bin: [BINS]."""
    place = np.floor((points + EDGE) * BINS / (2 * EDGE)).clip(0, BINS - 1).astype(int)
    counts = np.bincount(place, weights=weights, minlength=BINS)
    shares: Array = counts / counts.sum()
    return shares


def distance(first: Array, second: Array) -> Array:
    """The total-variation distance of shares [..., BINS]: [...]."""
    total: Array = 0.5 * np.abs(first - second).sum(axis=-1)
    return total


def exact_distances(shares: Array, samples: int, times: int, seed: int) -> Array:
    """The distances of so many exact samples from their own shares, drawn ``times`` times."""
    counts = np.random.default_rng(seed).multinomial(samples, shares, size=times)
    return distance(counts / samples, shares)


def known_drift(action: Array) -> Array:
    """ALPHA grad_a Q."""
    return ALPHA * known_gradient(action)


def simulate(
    drift: Callable[[Array], Array],
    step: float,
    chains: int,
    seed: int,
    *,
    duration: float = DURATION,
    noise: float = NOISE,
) -> Array:
    """Where independent chains are after ``duration``, by Euler's method: [chains].

    They start uniformly in [-1, 1]. X <- X + step drift(X) + noise sqrt(step) z.
    """
    stream = np.random.default_rng(seed)
    position = stream.uniform(-1.0, 1.0, chains)
    for _ in range(round(duration / step)):
        position += step * drift(position)
        position += noise * step**0.5 * stream.standard_normal(chains)
    return position


@dataclass(frozen=True)
class Moved:
    """What Langevin dynamics gave at each step."""

    chains: int
    shares: Mapping[float, Array]
    """The histogram for each step, the largest step first: [BINS]."""
    expected: Array
    """The shares of exp(alpha Q): [BINS]."""
    exact: tuple[float, float]
    """The quantiles 1 - QUANTILE and QUANTILE of the distances of exact samples."""
    distances: pd.DataFrame
    """A row for each step, of LANGEVIN and of EXACT: agent, step, value, low, high."""
    unit_noise: tuple[float, float]
    """With a noise of dW at the smallest step: the distance from exp(alpha Q), exp(2 alpha Q)."""


def follow(steps: Sequence[float], chains: int) -> Moved:
    """Simulate with each step, the largest first, and draw as many exact samples."""
    expected = bin_shares(ALPHA)
    shares = {
        step: histogram(simulate(known_drift, step, chains, FIRST_SEED + i))
        for i, step in enumerate(steps)
    }
    drawn = exact_distances(expected, chains, EXACT_DRAWS, FIRST_SEED - 1)
    exact = float(np.quantile(drawn, 1 - QUANTILE)), float(np.quantile(drawn, QUANTILE))
    distances = _distances(shares, expected, float(drawn.mean()), exact)
    return Moved(chains, shares, expected, exact, distances, _unit_noise(steps[-1], chains))


def _distances(
    shares: Mapping[float, Array], expected: Array, mean: float, exact: tuple[float, float]
) -> pd.DataFrame:
    simulated = pd.DataFrame(
        {
            "agent": LANGEVIN,
            "step": list(shares),
            "value": [float(distance(each, expected)) for each in shares.values()],
            "low": np.nan,
            "high": np.nan,
        }
    )
    drawn = simulated.assign(agent=EXACT, value=mean, low=exact[0], high=exact[1])
    return pd.concat([simulated, drawn], ignore_index=True)


def _unit_noise(step: float, chains: int) -> tuple[float, float]:
    ends = histogram(simulate(known_drift, step, chains, FIRST_SEED - 2, noise=1.0))
    once, twice = (float(distance(ends, bin_shares(alpha))) for alpha in (ALPHA, 2 * ALPHA))
    return once, twice
