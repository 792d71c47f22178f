"""What an experiment can show, before it is run: how large a difference it would detect."""

from collections.abc import Sequence
from functools import cache
from math import sqrt
from statistics import NormalDist

import numpy as np

from qsm_bench.counting import count
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    detectable_improvement,
    is_exact,
    smallest_p,
)

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
    only, so their scale does not matter. Of more runs than ``is_exact`` allows, the probability
    that is seen is taken as normal, too. None if no outcome of so few runs gives a verdict.
    """
    needed = detectable_improvement(seeds, seeds, tasks, level / pairs)
    if np.isnan(needed):
        return None
    if not is_exact(seeds, seeds):
        deviation = sqrt((2 * seeds + 1) / (12 * seeds**2 * tasks))
        return needed + NormalDist().inv_cdf(POWER) * deviation
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
    plan = f"With {count(seeds, 'seed')} on {count(tasks, 'task')}"
    found = "are told apart in 4 of 5 experiments if the true probability of improvement is"
    if now is not None:
        detected = f"{plan}, {_two_of(agents)} {found} {now:.2f} or more"
        return f"{detected}; with {2 * seeds} seeds: {more:.2f}."
    if more is not None:
        return f"{_nothing(plan, agents)}; with {2 * seeds} seeds, they {found} {more:.2f} or more."
    return f"{_nothing(plan, agents)}, and none can with {2 * seeds} seeds."


def warning(agents: int, tasks: int, counts: Sequence[int], shares: Sequence[float]) -> str | None:
    """What is wrong with a plan whose first stages can give no verdict, whatever the returns are.

    The stages have ``counts`` seeds at their ends and are tested at ``shares``; a plan without
    stages is one of a single one. Up to the first stage that can give a verdict, all pairs are
    open, so their number is known.
    """
    pairs = agents * (agents - 1) // 2
    if not pairs:
        return None
    enough = [
        smallest_p(seeds, seeds, tasks) <= share / pairs
        for seeds, share in zip(counts, shares, strict=True)
    ]
    in_vain = counts[: [*enough, True].index(True)]
    if not in_vain:
        return None
    if len(counts) == 1:
        return sentence(agents, counts[0], tasks, shares[0])
    which = "stage 1" if len(in_vain) == 1 else f"stages 1 to {len(in_vain)}"
    return (
        f"No outcome of {which} can tell {_two_of(agents)} apart: begin with more than "
        f"{count(in_vain[-1], 'seed')}."
    )


def _nothing(plan: str, agents: int) -> str:
    return f"{plan} no outcome can tell {_two_of(agents)} apart"


def _two_of(agents: int) -> str:
    return "the two agents" if agents == 2 else f"two of the {agents} agents"


def _observed(noise: FloatArray, shift: float) -> FloatArray:
    """The probability of improvement that each simulated experiment shows, [simulations]."""
    better, worse = noise[0] + shift, noise[1]
    total = np.zeros(noise.shape[1])
    for run in range(noise.shape[3]):  # one run against all others at a time: little memory
        total += (better[:, :, run, np.newaxis] > worse).mean(axis=(1, 2))
    shown: FloatArray = total / noise.shape[3]
    return shown
