"""The plan of an experiment in stages: declared before its first run, and never changed.

Seeds are added stage by stage, and each stage is tested at its share of the false alarms. So what
is found at any stage is found with the promised share of false alarms over all of them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from qsm_bench.errors import UserError, first_fault
from qsm_bench.groups import MOST_SEEDS, seeds_text

FALSE_ALARMS = 0.05
"""The largest share of experiments on equal agents in which any verdict names a better one."""

DECLARED_LATE = "declared_after_runs"
"""In ``experiment.json``, next to a plan that was written when there were runs already."""


class Stages(BaseModel):
    """What was declared before the first run, as ``experiment.json`` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seeds: tuple[tuple[int, ...], ...]
    """The seeds that each stage adds, in order."""
    shares: tuple[float, ...]
    """The share of false alarms at which each stage is tested; together ``FALSE_ALARMS``."""
    agents: tuple[str, ...]
    """The labels of all agents: every pair of them is tested."""
    tasks: tuple[str, ...]
    steps: int
    """The steps of every run."""

    @classmethod
    def declare(
        cls,
        seeds: Sequence[int],
        counts: Sequence[int],
        agents: Sequence[str],
        tasks: Sequence[str],
        steps: int,
    ) -> "Stages":
        """Return the plan in which the stages have the first ``counts`` of ``seeds``.

        A stage's share of the false alarms is its share of the seeds. ``refuse_counts`` has seen
        ``counts``.
        """
        edges = [0, *counts]
        return cls(
            seeds=tuple(tuple(seeds[begin:end]) for begin, end in pairwise(edges)),
            shares=tuple(
                FALSE_ALARMS * (end - begin) / counts[-1] for begin, end in pairwise(edges)
            ),
            agents=tuple(agents),
            tasks=tuple(tasks),
            steps=steps,
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """How many seeds an agent has at the end of each stage."""
        return tuple(len(self.seeds_until(number)) for number in range(len(self.seeds)))

    def seeds_until(self, number: int) -> tuple[int, ...]:
        """The seeds of the stages up to ``number``, which counts from 0."""
        return tuple(seed for stage in self.seeds[: number + 1] for seed in stage)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of all stages."""
        return self.seeds_until(len(self.seeds))

    def refuse_difference(self, name: str, asked: "Stages") -> None:
        """Raise UserError with the first difference of a plan that is asked for from this one."""
        differences = (
            ("stages of seeds", text_of(self.counts), text_of(asked.counts)),
            ("seeds", *(seeds_text(plan.all_seeds) for plan in (self, asked))),
            ("agents", *(", ".join(sorted(plan.agents)) for plan in (self, asked))),
            ("tasks", *(", ".join(sorted(plan.tasks)) for plan in (self, asked))),
            ("steps", f"{self.steps:,}", f"{asked.steps:,}"),
        )
        for what, declared, now in differences:
            if declared != now:
                raise UserError(
                    f"experiment {name!r} was declared before its first run with {what} "
                    f"{declared}, and now has {now}: keep to the plan, or choose another --name"
                )


def text_of(counts: Iterable[int]) -> str:
    """Numbers of seeds as ``--seeds`` has them: ``5,10,20``."""
    return ",".join(map(str, counts))


def parse_counts(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: a number of seeds, or one for each stage.

    Raises UserError for anything but rising numbers from 1 to ``MOST_SEEDS``.
    """
    parts = [part.strip() for part in text.split(",")]
    are_numbers = all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts)
    counts = tuple(map(int, parts)) if are_numbers else ()
    if not _right(counts):
        raise UserError(f"--seeds {_short(text)} is not right: {RIGHT_COUNTS}")
    return counts


def refuse_counts(counts: Any, seeds: int | None = None) -> None:
    """Raise UserError unless these are the rising numbers of seeds of one stage or more.

    With ``seeds``, the last must be this number.
    """
    if not isinstance(counts, Sequence) or isinstance(counts, str) or not _right(counts):
        raise UserError(f"stages {_short(counts)} are not right: {RIGHT_COUNTS}")
    if seeds not in (None, counts[-1]):
        raise UserError(f"stages {_short(counts)}: the last must be the number of seeds, {seeds}")


RIGHT_COUNTS = (
    f"give a number of seeds from 1 to {MOST_SEEDS:,}, or rising ones, one for each stage, such as "
    "5,10,20"
)


def _right(counts: Sequence[Any]) -> bool:
    """Whether these are rising numbers of seeds, of one at least."""
    numbers = all(type(count) is int and 1 <= count <= MOST_SEEDS for count in counts)
    return numbers and len(counts) > 0 and all(a < b for a, b in pairwise(counts))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_stages(asked: Mapping[str, Any]) -> Stages | None:
    """Return the plan in the content of an ``experiment.json``; None if none was declared.

    Raises ValueError, in one line, if it is no plan, or not that of this experiment.
    """
    if "stages" not in asked:
        return None
    try:
        stages = Stages.model_validate_json(json.dumps(asked["stages"]))
    except ValidationError as error:
        raise ValueError(f"stages: {first_fault(error)}") from None
    fault = _fault(stages, asked)
    if fault:
        raise ValueError(f"stages: {fault}")
    return stages


def _fault(stages: Stages, asked: Mapping[str, Any]) -> str | None:
    """What is wrong with a plan, if anything."""
    seeds = stages.all_seeds
    if not all(stages.seeds) or not seeds:
        return "a stage without seeds"
    if len(stages.shares) != len(stages.seeds):
        return "each stage must have one share"
    declared = [FALSE_ALARMS * len(stage) / len(seeds) for stage in stages.seeds]
    if not all(map(math.isclose, stages.shares, declared)):
        return f"the shares must be those of the seeds, of {FALSE_ALARMS} in all"
    if seeds != tuple(seed for group in asked["groups"] for seed in group):
        return "their seeds must be those of the groups"
    if any(
        not any(set(group) <= set(stage) for stage in stages.seeds) for group in asked["groups"]
    ):
        return "a group has seeds of two stages"
    for what, planned in (("agents", stages.agents), ("tasks", stages.tasks)):
        if len(set(planned)) < len(planned) or not set(asked[what]) <= set(planned):
            return f"{what} must be different, and have all those of the experiment"
    if stages.steps < 1:
        return "steps must be 1 or more"
    return None
