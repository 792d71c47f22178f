"""The verdict on a claim of several parts: it holds if all of them do."""

from collections.abc import Sequence
from dataclasses import dataclass

from qsm_bench.studies.study import Outcome, Verdict


@dataclass(frozen=True)
class Part:
    """The verdict on one part of the claim."""

    name: str
    outcome: Outcome
    why: str


def decide(parts: Sequence[Part]) -> Verdict:
    """The verdict on the whole."""
    why = " ".join(f"{part.name}: {part.outcome}. {part.why}" for part in parts)
    outcomes = {part.outcome for part in parts}
    if "does not hold" in outcomes:
        return Verdict("does not hold", why)
    return Verdict("holds" if outcomes == {"holds"} else "cannot tell", why)
