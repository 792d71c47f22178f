"""Figure 4: the modes of a policy at the first state of cartpole-swingup, and what follows them."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd

from qsm_bench.protocol import Protocol
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import listed, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.selection import Comparison, select_runs
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    sign_test,
)
from qsm_bench.studies import action_modes_report as report
from qsm_bench.studies.initial_state import (
    BOTH_SIDES,
    COMMITTED,
    LOW,
    PROMINENT,
    TRAJECTORIES,
    WIDTH,
    WINDOW,
    Look,
    Play,
    Run,
    look_into,
    play_all,
)
from qsm_bench.studies.parts import Part, decide, part_section, tell_more
from qsm_bench.studies.study import Budget, Cells, Findings, Outcome, Study
from qsm_bench.studies.trainers import small_label
from qsm_bench.suites import SUITES

QSM, QL, SAC = TRAINERS = "qsm", "diffusion_ql", "sac"
TASK = "cartpole-swingup"
LENGTHS: Mapping[Budget, Sequence[int]] = {
    "tiny": (150, 300),
    "quick": (1_500, 3_000, 6_000, 12_000),
    "full": (62_500, 125_000, 250_000, 500_000, 1_000_000),
}
"""The steps after which policies are looked at. There is an experiment for each, which goes on from
where the one before it ended."""
SEEDS: Mapping[Budget, int] = {"tiny": 2, "quick": 10, "full": 10}
OVERSHOT = 0.1
"""A policy overshoots if more of its samples than this share are at a bound at which Q is low."""


class ActionModes(Study):
    """Samples, critic and trajectories at the state in which cartpole-swingup begins."""

    name = "action-modes"
    title = "Where cartpole-swingup begins, QSM's policy has two modes"
    claim = (
        f"Figure 4: in the first state of {TASK}, where the pole hangs down, a push to the left is "
        "as good as one to the right. QSM's policy has a mode for each, and a trajectory commits "
        "to one of them."
    )
    test = (
        "Four parts. All is measured in one state, the same for all runs. A run is looked at "
        "several times, each twice as late as the one before, and its trajectories are those of "
        "the last time. Modes: the mean number of modes of a run's samples over its looks, of qsm "
        f"against sac, by an exact two-sided permutation test at {FALSE_ALARMS:g}. The part holds "
        "if qsm has more, and does not hold if it has fewer. Each other part asks something of "
        "every run of qsm. It holds if the answer is yes for more than half of the runs, by an "
        f"exact two-sided sign test at {FALSE_ALARMS:g}, and does not hold if it is no for more "
        "than half by the same test. Maxima: of the looks at which the critic has several maxima "
        f"along the action, which rise by {PROMINENT:g} of its range above the valley between "
        "them, are there several with a mode in more than half? A run without such a look does "
        f"not count. Bounds: are at most {OVERSHOT:g} of the samples, in the mean over looks, at a "
        f"bound at which Q is more than {LOW:g} of its range below its maximum? That would be "
        f"overshoot. Sides: of {TRAJECTORIES} trajectories from the state, does the less frequent "
        f"side have {BOTH_SIDES:g} or more, and do they commit? The side is the sign of the mean "
        f"push of the first {WINDOW:g} s. They commit if the correlation of two pushes of a "
        f"trajectory is {COMMITTED:g} or more, as where three of four pushes go to its side; "
        "independent pushes have 0. A part that neither holds nor does not cannot tell. The claim "
        "holds if all parts hold, and does not hold if one of them does not; else the study cannot "
        "tell."
    )
    limits = (
        "One state is looked at. It is near the one at which both sides are equally good, and not "
        "exactly there: an episode begins with a small random tilt and speed.",
        f"Modes are those of a density with kernels of deviation {WIDTH:g}: of two closer than "
        "about twice that only one is seen. The modes of diffusion_ql are shown, and no part of "
        "the test is about them.",
        "The policy of sac is a squashed normal, with one mode or with one at each bound, where "
        "its deviation is large: it is no policy that cannot have two.",
        "That modes and maxima are at the same places does not say that their weights are right: "
        "with a large alpha a maximum that is lower by much more than the temperature should have "
        "almost no samples. The part on bounds counts these as overshoot if the maximum is low.",
        "A learned critic may prefer one side, and then a policy that follows it does not go to "
        "both. The part on sides asks all runs of qsm, whatever their critics say.",
        "Commitment is that of the policy in the task. A policy may commit because its actions "
        "depend on where it has already gone, and one with two modes need not commit.",
        "The quick budget has small networks and batches, an action repeat of 2, and the settings "
        "that the project has for small tasks. No setting was tuned for this study. alpha is the "
        "default of qsm.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 8, "full": 3_100}
    lines = TRAINERS

    def cells(self, budget: Budget) -> Sequence[Cells]:
        full = budget == "full"
        trainers = (QSM, SAC) if budget == "tiny" else TRAINERS
        agents = ",".join(trainers if full else map(small_label, trainers))
        protocol = Protocol() if full else SUITES["quick"].protocol
        if budget == "tiny":
            protocol = protocol.but(warmup_steps=100, eval_episodes=1)
        lengths = LENGTHS[budget]
        names = [f"{steps}-steps" for steps in lengths]
        return [
            Cells(
                name,
                agents,
                TASK,
                protocol.but(steps=steps, eval_every=lengths[-1]),
                SEEDS[budget],
                after=before,
            )
            for name, steps, before in zip(names, lengths, [None, *names[:-1]], strict=True)
        ]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        *_, longest = results.values()
        returns = returns_at_the_end(longest)
        looks = {
            steps: look_into(part, returns)
            for steps, part in zip(LENGTHS[budget], results.values(), strict=True)
        }
        plays = play_all(longest, returns)
        measured = measure_looks(looks)
        sides = measure_plays(plays)
        parts = [
            decide_modes(measured),
            decide_maxima(measured),
            decide_bounds(measured),
            decide_sides(sides),
        ]
        sections = [
            part_section(parts),
            report.density(looks, parts, drawing),
            report.measures(measured, returns, select_runs(longest).left_out, drawing),
            report.trajectories(plays, measured, sides, parts[3], drawing),
        ]
        return Findings(decide(parts), sections)


# What is measured.


def returns_at_the_end(results: Results) -> dict[Run, float]:
    """The return of the last evaluation of each run that has not diverged."""
    comparison: Comparison = select_runs(results)
    names = {cell["agent"]: cell["agent_name"] for cell in results.cells}
    return {
        (names[label], seed): float(value)
        for (label, _), curve in comparison.runs.items()
        for seed, value in zip(curve.seeds, curve.returns[:, -1], strict=True)
    }


def measure_looks(looks: Mapping[int, Mapping[Run, Look]]) -> pd.DataFrame:
    """A row for each look, by its steps: agent, seed, step, and ``Look.measures``."""
    return pd.DataFrame(
        [
            {"agent": agent, "seed": seed, "step": steps, **look.measures}
            for steps, found in looks.items()
            for (agent, seed), look in found.items()
        ]
    )


def measure_plays(plays: Mapping[Run, Play]) -> pd.DataFrame:
    """A row for each run: agent, seed, right (the share of trajectories), smaller, commitment."""
    return pd.DataFrame(
        [
            {
                "agent": agent,
                "seed": seed,
                "right": float(play.to_the_right.mean()),
                "smaller": play.smaller_side,
                "commitment": play.commitment,
            }
            for (agent, seed), play in plays.items()
        ]
    )


# What decides.


def decide_modes(measured: pd.DataFrame) -> Part:
    """``measured`` has the columns of ``measure_looks``."""
    of_run = measured.groupby(["agent", "seed"])["modes"].mean()
    if not {QSM, SAC} <= set(of_run.index.unique("agent")):
        return Part("Modes", "cannot tell", f"{QSM} or {SAC} has no runs.")
    x, y = (of_run[agent].to_numpy(float)[:, np.newaxis] for agent in (QSM, SAC))
    outcome, p = tell_more(x, y)
    why = (
        f"The mean number of modes is {number(float(x.mean()))} with {QSM} and "
        f"{number(float(y.mean()))} with {SAC} ({p_value_text(p)})."
    )
    return Part("Modes", outcome, why)


def decide_maxima(measured: pd.DataFrame) -> Part:
    """``measured`` has the columns of ``measure_looks``."""
    of_qsm = measured[measured["agent"] == QSM]
    asked = of_qsm[of_qsm["maxima"] > 1]
    share = (asked["followed"] > 1).astype(float).groupby(asked["seed"]).mean()
    yes = share > 0.5
    outcome, p = most(yes)
    why = (
        f"The critic has several maxima at {len(asked)} of {len(of_qsm)} looks, and several of "
        f"them have a mode at {int((asked['followed'] > 1).sum())}: at more than half of the looks "
        f"in {int(yes.sum())} of {len(yes)} runs that have such looks ({p_value_text(p)})."
    )
    return Part("Maxima", outcome, why)


def decide_bounds(measured: pd.DataFrame) -> Part:
    """``measured`` has the columns of ``measure_looks``."""
    of_run = measured[measured["agent"] == QSM].groupby("seed")[["at_bounds", "overshoot"]].mean()
    yes = of_run["overshoot"] <= OVERSHOT
    outcome, p = most(yes)
    why = (
        f"The share of the samples at a bound at which Q is low is "
        f"{number(of_run['overshoot'].mean())}, of {number(of_run['at_bounds'].mean())} at a "
        f"bound; it is at most {OVERSHOT:g} in {int(yes.sum())} of {len(yes)} runs "
        f"({p_value_text(p)})."
    )
    return Part("Bounds", outcome, why)


def decide_sides(sides: pd.DataFrame) -> Part:
    """``sides`` has the columns of ``measure_plays``."""
    of_qsm = sides[sides["agent"] == QSM]
    both, committed = of_qsm["smaller"] >= BOTH_SIDES, of_qsm["commitment"] >= COMMITTED
    yes = both & committed
    outcome, p = most(yes)
    told = [
        f"both sides occur in {int(both.sum())}",
        f"trajectories commit in {int(committed.sum())}",
        f"both is so in {int(yes.sum())} ({p_value_text(p)})",
    ]
    why = (
        f"Of {len(of_qsm)} runs {listed(told)}. The commitment is "
        f"{number(of_qsm['commitment'].dropna().median())} in the median."
    )
    return Part("Sides", outcome, why)


def most(yes: "pd.Series[bool]") -> tuple[Outcome, float]:
    """Whether the answer is yes for more than half of the runs, or no, and the p of that."""
    p = sign_test(int(yes.sum()), len(yes))
    if p > FALSE_ALARMS:
        return "cannot tell", p
    return ("holds" if 2 * yes.sum() > len(yes) else "does not hold"), p


STUDY = ActionModes()
