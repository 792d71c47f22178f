"""A claim in several parts, and the verdict on the whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from qsm_bench.report.document import Section, Table
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    permutation_test,
    probability_of_improvement,
)
from qsm_bench.studies.study import Outcome, Verdict


@dataclass(frozen=True)
class Part:
    """The verdict on one part of the claim."""

    name: str
    outcome: Outcome
    why: str


def decide(parts: Sequence[Part]) -> Verdict:
    """The verdict on the whole: it holds if all parts do, and does not if one part does not."""
    why = " ".join(f"{part.name}: {part.outcome}. {part.why}" for part in parts)
    outcomes = {part.outcome for part in parts}
    if "does not hold" in outcomes:
        return Verdict("does not hold", why)
    return Verdict("holds" if outcomes == {"holds"} else "cannot tell", why)


def tell_more(x: FloatArray, y: FloatArray) -> tuple[Outcome, float]:
    """Whether the first of two groups of runs [runs, tasks] has more, and the exact two-sided p.

    It holds where the permutation test finds a difference and the first has more, and does not
    hold where it finds one and the first has less.
    """
    p, _ = permutation_test(x, y)
    chance = float(probability_of_improvement(x, y)[0])
    if p > FALSE_ALARMS or chance == 0.5:
        return "cannot tell", p
    return "holds" if chance > 0.5 else "does not hold", p


def part_section(parts: Sequence[Part]) -> Section:
    """The parts, a row each."""
    data = pd.DataFrame([{"part": p.name, "verdict": p.outcome, "figures": p.why} for p in parts])
    return Section("The parts of the claim", [Table("parts", "The parts, one by one.", data, data)])
