"""What an experiment can show, before it is run: how large a difference it would detect."""

from functools import cache
from math import sqrt
from statistics import NormalDist

import numpy as np

from qsm_bench.counting import count
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.significance import FALSE_ALARMS, detectable_improvement

POWER = 0.8
"""The share of experiments in which the difference shall be detected: 4 of 5."""
SIMULATIONS = 4_000
STEPS = 12
"""Halvings of the interval in which the difference is searched."""


@cache
def improvement_detected(
    seeds: int, tasks: int, pairs: int, level: float = FALSE_ALARMS
) -> float | None:
    """The true probability of improvement at which two agents get a verdict with ``POWER``.

    Both have ``seeds`` runs on each of ``tasks`` tasks, and ``pairs`` pairs of agents are compared,
    of which the first verdict is the hardest (Holm's procedure at ``level``). Returns are simulated
    as normal, with equal deviations and the same difference on every task; the test looks at ranks
    only, so their scale does not matter. None if no outcome of so few runs gives a verdict.
    """
    needed = detectable_improvement(seeds, seeds, tasks, level / pairs)
    if np.isnan(needed):
        return None
    noise = np.random.default_rng(0).standard_normal((2, SIMULATIONS, tasks, seeds))
    low, high = 0.0, 10.0  # in standard deviations; at 10 no run of the worse agent is ahead
    for _ in range(STEPS):
        shift = (low + high) / 2
        if (_observed(noise, shift) >= needed - 1e-12).mean() < POWER:
            low = shift
        else:
            high = shift
    return NormalDist().cdf(high / sqrt(2))


def sentence(agents: int, seeds: int, tasks: int, level: float = FALSE_ALARMS) -> str:
    """What the plan at hand can show with tests at ``level``, and what twice the seeds could."""
    pairs = agents * (agents - 1) // 2
    now, more = (improvement_detected(n, tasks, pairs, level) for n in (seeds, 2 * seeds))
    plan = f"{count(seeds, 'seed')} on {count(tasks, 'task')}"
    which = "the two agents" if agents == 2 else f"two of the {agents} agents"
    if now is None:
        text = f"With {plan} no outcome can tell {which} apart"
    else:
        text = (
            f"With {plan}, {which} are told apart in 4 of 5 experiments if the true "
            f"probability of improvement is {now:.2f} or more"
        )
    with_more = "none can either" if more is None else f"{more:.2f}"
    return f"{text}; with {2 * seeds} seeds: {with_more}."


def _observed(noise: FloatArray, shift: float) -> FloatArray:
    """The probability of improvement that each simulated experiment shows, [simulations]."""
    better, worse = noise[0] + shift, noise[1]
    total = np.zeros(noise.shape[1])
    for run in range(noise.shape[3]):  # one run against all others at a time: little memory
        total += (better[:, :, run, np.newaxis] > worse).mean(axis=(1, 2))
    shown: FloatArray = total / noise.shape[3]
    return shown
