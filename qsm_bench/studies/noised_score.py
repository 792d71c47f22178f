"""What a denoiser is to predict on a known Q of one action in [-1, 1], and the law of its samples.

The policy that is asked for has the density p(a) = exp(Q(a) / tau) / Z on the action box. Its
actions, noised to t, have the density p_t, and a denoiser that has learned it predicts

    eps*(a^t) = -sqrt(1 - abar_t) grad log p_t(a^t)
              = (a^t - sqrt(abar_t) E[a | a^t]) / sqrt(1 - abar_t)

where the mean is over clean actions: p(a | a^t) is in proportion to p(a) exp(-(a^t - sqrt(abar_t)
a)^2 / (2 (1 - abar_t))) (MaxEntDP, arXiv 2502.11612, and SDAC, arXiv 2502.00361, estimate it by
drawing a; iDEM and DQS, arXiv 2410.01312, by gradients of Q there). Eq. 10 of Q-score matching has
the gradient of Q at a^t itself in its place. With K = 1 draw, at a = a^t, iDEM's estimate without
its factor 1 / sqrt(abar_t) is that, and has the factor sqrt(1 - abar_t) that eq. 10 lacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from agents.common.diffusion import Denoiser, DiffusionPolicy, Schedule
from qsm_bench.statistics.selection import FloatArray

Value = Callable[[Tensor], Tensor]

POINTS = 401
"""The midpoints of so many cells of the action box are the clean actions of every integral."""
MAXIMUM = 0.3
"""Where the parabola's maximum is."""
MODES = -0.5, 0.5


def parabola(action: Tensor) -> Tensor:
    """Q = -5 (a - MAXIMUM)^2."""
    return -5 * (action - MAXIMUM).square()


def slope(action: Tensor) -> Tensor:
    """Q = 5 a, whose maximum is at a bound."""
    return 5 * action


def two_modes(action: Tensor) -> Tensor:
    """Q = log(exp(-10 (a + 1/2)^2) + exp(-10 (a - 1/2)^2)), with two equal maxima."""
    return torch.stack([-10 * (action - mode).square() for mode in MODES]).logsumexp(dim=0)


CRITICS: Mapping[str, Value] = {"parabola": parabola, "slope": slope, "two modes": two_modes}
QSM, ROOT, EXACT = TARGETS = "qsm", "with the root", "exact score"
"""What can be asked of a denoiser: eq. 10, the same with sqrt(1 - abar_t), and eps*.

All have the temperature tau at t = 1. QSM has alpha = sqrt(1 - abar_1) / tau.
"""
DRAWN = "exact samples"
"""Samples of exp(Q / tau) itself: how near so many can come."""


@dataclass(frozen=True)
class Target:
    """What is asked of a denoiser at every a^t and t; the policy's sampler can run it."""

    name: str
    value: Value
    tau: float
    schedule: Schedule

    def at_observation(self, observation: Tensor, copies: int = 1) -> "Target":
        return self

    def __call__(self, action: Tensor, t: int) -> Tensor:
        """The noise to predict in a^t, of any shape."""
        noise = float((1 - self.schedule.abar[t]).sqrt())
        if self.name == EXACT:
            mean = self.clean_mean(action, t)
            return (action - float(self.schedule.abar[t].sqrt()) * mean) / noise
        first = float((1 - self.schedule.abar[1]).sqrt())
        size = first if self.name == QSM else noise
        return -size / self.tau * gradient(self.value, action)

    def clean_mean(self, action: Tensor, t: int) -> Tensor:
        """E[a | a^t] by the midpoint rule, in the shape of a^t."""
        abar = float(self.schedule.abar[t])
        distance = action.unsqueeze(-1) - abar**0.5 * self.points
        weight = (self.log_density - distance.square() / (2 * (1 - abar))).softmax(dim=-1)
        mean: Tensor = weight @ self.points
        return mean

    @cached_property
    def points(self) -> Tensor:
        """The clean actions of the integral, [POINTS] float64."""
        return torch.from_numpy(midpoints())

    @cached_property
    def log_density(self) -> Tensor:
        """The logarithm of p there, up to a constant: [POINTS]."""
        return self.value(self.points) / self.tau


def midpoints() -> FloatArray:
    """The midpoints of POINTS cells of the action box, [POINTS]."""
    points: FloatArray = (2 * np.arange(POINTS, dtype=np.float64) + 1) / POINTS - 1
    return points


def gradient(value: Value, action: Tensor) -> Tensor:
    """grad_a Q at actions of any shape."""
    at = action.detach().clone().requires_grad_()
    return torch.autograd.grad(value(at).sum(), at)[0]


def make_target(name: str, critic: str, tau: float, steps: int) -> Target:
    """One of the TARGETS on one of the CRITICS, with T = ``steps``."""
    return Target(name, CRITICS[critic], tau, Schedule(steps, torch.device("cpu")))


def draw(target: Target, repetitions: int, samples: int) -> FloatArray:
    """Actions of the policy's own sampler, clip included: [repetitions, samples].

    The noise depends on these two numbers and T alone, so all targets have the same.
    """
    steps = target.schedule.steps
    shape = (repetitions, steps, samples, 1)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy = DiffusionPolicy(cast(Denoiser, target), target.schedule)
    actions: FloatArray = policy.sample(torch.zeros(repetitions, 1, 1), noise).squeeze(-1).numpy()
    return actions


def draw_exactly(critic: str, tau: float, repetitions: int, samples: int) -> FloatArray:
    """Samples of exp(Q / tau) on the action box, [repetitions, samples]."""
    edges = np.linspace(-1, 1, POINTS + 1)
    uniform = np.random.default_rng(0).uniform(size=(repetitions, samples))
    drawn: FloatArray = np.interp(uniform, np.append(0.0, shares(critic, tau).cumsum()), edges)
    return drawn


def shares(critic: str, tau: float) -> FloatArray:
    """The probability of each cell under exp(Q / tau), [POINTS]."""
    points = torch.from_numpy(midpoints())
    found: FloatArray = (CRITICS[critic](points) / tau).softmax(dim=0).numpy()
    return found


def distance(actions: FloatArray, critic: str, tau: float) -> FloatArray:
    """The Wasserstein distance of samples [repetitions, N] from exp(Q / tau): [repetitions].

    It is the area between the two distribution functions: how far the samples' mass would have to
    be moved, in units of the action.
    """
    points, width = midpoints(), 2 / POINTS
    wanted = shares(critic, tau).cumsum() - shares(critic, tau) / 2
    found = [np.searchsorted(np.sort(row), points, side="right") / len(row) for row in actions]
    area: FloatArray = np.abs(np.array(found) - wanted).sum(axis=1) * width
    return area


def measure_distances(
    taus: tuple[float, ...], lengths: tuple[int, ...], repetitions: int, samples: int
) -> pd.DataFrame:
    """How far the samples of each target are from exp(Q / tau).

    Columns: critic, tau, T, agent (one of TARGETS, or DRAWN), repetition, distance.
    """
    rows = []
    for critic in CRITICS:
        for tau in taus:
            exact = distance(draw_exactly(critic, tau, repetitions, samples), critic, tau)
            for steps in lengths:
                found = {
                    name: distance(
                        draw(make_target(name, critic, tau, steps), repetitions, samples),
                        critic,
                        tau,
                    )
                    for name in TARGETS
                }
                rows += [
                    {
                        "critic": critic,
                        "tau": tau,
                        "T": steps,
                        "agent": agent,
                        "repetition": repetition,
                        "distance": float(each),
                    }
                    for agent, distances in {**found, DRAWN: exact}.items()
                    for repetition, each in enumerate(distances)
                ]
    return pd.DataFrame(rows)


def predictions(critic: str, tau: float, steps: int, times: tuple[int, ...]) -> pd.DataFrame:
    """What each target asks for along the action axis. Columns: critic, t, agent, action, value."""
    action = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
    places = action.numpy()
    return pd.concat(
        [
            pd.DataFrame({"critic": critic, "t": t, "agent": name, "action": places}).assign(
                value=make_target(name, critic, tau, steps)(action, t).numpy()
            )
            for t in times
            for name in TARGETS
        ],
        ignore_index=True,
    )


def prediction_errors(critic: str, tau: float, steps: int) -> pd.DataFrame:
    """How far a target is from eps* where the noised actions of exp(Q / tau) are.

    Columns: critic, t, agent (QSM or ROOT), error: the root mean square of the difference over
    that of eps*, both over p_t.
    """
    exact = make_target(EXACT, critic, tau, steps)
    # Every eighth clean action is enough to average over.
    clean, chance = exact.points[4::8], torch.from_numpy(shares(critic, tau))[4::8]
    # Normal noise by the midpoint rule, too.
    noise = torch.linspace(-4.5, 4.5, 37, dtype=torch.float64)
    weight = chance.unsqueeze(-1) * (-noise.square() / 2).softmax(dim=0)
    rows = []
    for t in range(1, steps + 1):
        abar = float(exact.schedule.abar[t])
        noised = abar**0.5 * clean.unsqueeze(-1) + (1 - abar) ** 0.5 * noise
        wanted = exact(noised, t)
        for name in (QSM, ROOT):
            off = make_target(name, critic, tau, steps)(noised, t) - wanted
            error = ((weight * off.square()).sum() / (weight * wanted.square()).sum()).sqrt()
            rows.append({"critic": critic, "t": t, "agent": name, "error": float(error)})
    return pd.DataFrame(rows)


def temperature_ratio(steps: int) -> float:
    """QSM's temperature at t = T over that at t = 1: sqrt((1 - abar_T) / (1 - abar_1))."""
    abar = Schedule(steps, torch.device("cpu")).abar
    return float(((1 - abar[-1]) / (1 - abar[1])).sqrt())
