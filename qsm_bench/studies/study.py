"""What a study is: a claim of the paper, the experiments that try it, and the test that decides."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from qsm_bench.protocol import Protocol
from qsm_bench.report.document import Section
from qsm_bench.report.drawing import Drawing
from qsm_bench.results import Results

Budget = Literal["tiny", "quick", "full"]
"""tiny shows that a study runs, and nothing else; quick is for a laptop; full is the paper's."""
Outcome = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """What the test said."""

    outcome: Outcome
    why: str
    """The figures behind it, in one or two sentences."""


@dataclass(frozen=True)
class Cells:
    """An experiment that a study trains, in the words of ``run_experiment``."""

    name: str
    agents: str
    tasks: str
    protocol: Protocol
    seeds: int
    settings: Sequence[str] = ()
    after: str | None = None
    """The name of shorter cells, else the same, listed before: these go on from where they end."""


@dataclass(frozen=True)
class Findings:
    """What a study has found."""

    verdict: Verdict
    sections: Sequence[Section]


class Study(ABC):
    """One study. Its file has an instance called ``STUDY``."""

    name: ClassVar[str]
    title: ClassVar[str]
    claim: ClassVar[str]
    """What the paper claims, in our words, with its figure, theorem or section."""
    test: ClassVar[str]
    """When the claim holds, when it does not, and when the study cannot tell: set before it ran."""
    changed: ClassVar[str] = ""
    """What of the test was changed after a run had been seen, why, and what it had said."""
    limits: ClassVar[Sequence[str]]
    """What the study does not show."""
    minutes: ClassVar[Mapping[Budget, float]]
    """About how long it takes on two cores."""
    lines: ClassVar[Sequence[str]] = ()
    """What the figures have a style for, beside the agents of its cells."""

    def cells(self, budget: Budget) -> Sequence[Cells]:
        """The experiments to train first; none if it computes all by itself."""
        return ()

    def check_installed(self) -> None:
        """Raise UserError if a package is missing that only this study needs."""
        return

    @abstractmethod
    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        """Compute the verdict and the report's sections; ``results`` are by the name of the cells.

        Everything random has a fixed seed: the same results give the same report.
        """
