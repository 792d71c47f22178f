"""What an experiment can show, before it is run: how large a difference it would detect."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, sqrt
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


@dataclass(frozen=True)
class Rivals:
    """The agents of a record that those of a plan are compared with."""

    agents: int
    seeds: int
    """Of the agent that has the fewest."""
    tasks: int
    """Those on which they are compared."""

    def pairs(self, agents: int) -> int:
        """The number of pairs of ``agents`` others and of each of them with each of these."""
        return comb(agents, 2) + agents * self.agents


@cache
def improvement_detected(
    seeds: int, tasks: int, pairs: int, level: float = FALSE_ALARMS, others: int | None = None
) -> float | None:
    """The true probability of improvement at which two agents get a verdict with ``POWER``.

    One has ``seeds`` runs on each of ``tasks`` tasks, the other as many or ``others``, and
    ``pairs`` pairs of agents are compared, of which the first verdict is the hardest (Holm's
    procedure at ``level``). Returns are simulated as normal, with equal deviations and the same
    difference on every task; the test looks at ranks only, so their scale does not matter. Of more
    runs than ``is_exact`` allows, the probability that is seen is taken as normal, too. None if no
    outcome of so few runs gives a verdict.
    """
    others = others or seeds
    needed = detectable_improvement(seeds, others, tasks, level / pairs)
    if np.isnan(needed):
        return None
    if not is_exact(seeds, others):
        deviation = sqrt((seeds + others + 1) / (12 * seeds * others * tasks))
        return needed + NormalDist().inv_cdf(POWER) * deviation
    rng = np.random.default_rng(0)
    better, worse = (rng.standard_normal((SIMULATIONS, tasks, n)) for n in (seeds, others))
    low, high = 0.0, 10.0  # in standard deviations; at 10 no run of the worse agent is ahead
    for _ in range(STEPS):
        shift = (low + high) / 2
        if (_observed(better + shift, worse) >= needed - 1e-12).mean() < POWER:
            low = shift
        else:
            high = shift
    return NormalDist().cdf(high / sqrt(2))


def sentence(
    agents: int, seeds: int, tasks: int, level: float = FALSE_ALARMS, rivals: Rivals | None = None
) -> str:
    """What the plan at hand can show with tests at ``level``, and what twice the seeds could.

    Beside a record it is what it can show of an agent of the plan and one of its ``rivals``.
    """
    them, of_yours, others, pairs = _two_of(agents), "", None, comb(agents, 2)
    plan = f"With {count(seeds, 'seed')} on {count(tasks, 'task')}"
    if rivals:
        tasks, others, pairs = rivals.tasks, rivals.seeds, rivals.pairs(agents)
        them, of_yours = "an agent of yours and one of the record's", " of yours"
        plan = (
            f"With {count(seeds, 'seed')} of yours and {others} of the record's on "
            f"{count(tasks, 'task')}"
        )
    now, more = (improvement_detected(n, tasks, pairs, level, others) for n in (seeds, 2 * seeds))
    found = "are told apart in 4 of 5 experiments if the true probability of improvement is"
    twice = f"with {2 * seeds} seeds{of_yours}"
    if now is not None:
        return f"{plan}, {them} {found} {now:.2f} or more; {twice}: {more:.2f}."
    nothing = f"{plan} no outcome can tell {them} apart"
    if more is not None:
        return f"{nothing}; {twice}, they {found} {more:.2f} or more."
    return f"{nothing}, and none can {twice}."


def warning_beside(agents: int, seeds: int, rivals: Rivals) -> str | None:
    """Say so if no outcome can tell an agent of the plan and one of its rivals apart."""
    level = FALSE_ALARMS / rivals.pairs(agents)
    if smallest_p(seeds, rivals.seeds, rivals.tasks) <= level:
        return None
    return sentence(agents, seeds, rivals.tasks, rivals=rivals)


def warning(agents: int, tasks: int, counts: Sequence[int], shares: Sequence[float]) -> str | None:
    """What is wrong with a plan whose first stages can give no verdict, whatever the returns are.

    The stages have ``counts`` seeds at their ends and are tested at ``shares``; a plan without
    stages is one of a single one. Up to the first stage that can give a verdict, all pairs are
    open, so their number is known.
    """
    pairs = comb(agents, 2)
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


def _two_of(agents: int) -> str:
    return "the two agents" if agents == 2 else f"two of the {agents} agents"


def _observed(better: FloatArray, worse: FloatArray) -> FloatArray:
    """The probability of improvement that each simulated experiment shows.

    Of returns [simulations, tasks, seeds] each, with as many seeds or others: [simulations].
    """
    total = np.zeros(len(better))
    for run in range(better.shape[2]):  # one run against all others at a time: little memory
        total += (better[:, :, run, np.newaxis] > worse).mean(axis=(1, 2))
    shown: FloatArray = total / better.shape[2]
    return shown
