"""Scores that others have published, which come with the program, to be shown next to ours."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from qsm_bench.errors import UserError, first_fault
from qsm_bench.files import MIB, read, read_json
from qsm_bench.shipped import shipped
from qsm_bench.tables import parse_table

PUBLISHED = shipped("published")
COLUMNS = ("source", "agent", "task", "action_repeat", "steps", "seeds")
MEAN = ("mean", "std", "median", "min", "max")
"""The columns of a source that gives means over seeds."""
IQM = ("iqm", "ci_low", "ci_high")
"""Those of one that gives interquartile means over seeds, with 95 % intervals."""
ALL = (*COLUMNS, *MEAN, *IQM)
TEXTS, COUNTS = COLUMNS[:3], COLUMNS[3:]
LARGEST = 1e15
"""The largest magnitude that a score may have."""


@dataclass(frozen=True)
class Source:
    """Where published scores come from, and how they were measured."""

    label: str
    url: str
    commit: str
    files: str
    step: str
    """What this source calls a step, in words."""
    protocol: str
    differs: str
    """How its protocol differs from ours, in words."""


@dataclass(frozen=True)
class Published:
    """The published scores and their sources."""

    sources: Mapping[str, Source]
    scores: pd.DataFrame
    """A row for each source, agent, task and step, with the columns ``ALL``.

    A step is one decision. A row has either the values of ``MEAN`` or those of ``IQM``; the others
    are missing.
    """
    fault: str = ""
    """Why the scores cannot be read, if they cannot; otherwise empty."""

    def within(self, budgets: Mapping[str, int]) -> "Published":
        """The scores on the tasks in ``budgets`` (task -> steps), up to the task's steps."""
        reach = self.scores["task"].map(budgets).fillna(0)
        scores = self.scores[self.scores["steps"] <= reach]
        kept = set(scores["source"])
        sources = {name: source for name, source in self.sources.items() if name in kept}
        return Published(sources, scores.reset_index(drop=True), self.fault)

    def points(self) -> pd.DataFrame:
        """The scores with the columns ``statistic``, ``value``, ``low`` and ``high`` as well.

        The statistic is ``mean``, with the lowest and the highest seed, or ``IQM``, with its
        interval.
        """
        columns = {"value": ("mean", "iqm"), "low": ("min", "ci_low"), "high": ("max", "ci_high")}
        scores, is_mean = self.scores, self.scores["mean"].notna()
        return scores.assign(
            statistic=is_mean.map({True: "mean", False: "IQM"}),
            **{name: scores[a].where(is_mean, scores[b]) for name, (a, b) in columns.items()},
        )


def published_scores(folder: Path = PUBLISHED) -> Published:
    """Read the scores in ``folder``. There are none if it has no file of them.

    If a file is damaged, there are no scores, and ``fault`` names the file in one line.
    """
    nothing = Published({}, pd.DataFrame(columns=[*ALL]))
    if not os.path.lexists(folder / "scores.csv"):
        return nothing
    try:
        sources = _sources(folder / "sources.json")
        return Published(sources, _scores(folder / "scores.csv", sources))
    except UserError as error:
        return replace(nothing, fault=str(error))


def _sources(file: Path) -> dict[str, Source]:
    content = read_json(file, MIB)
    try:
        return TypeAdapter(dict[str, Source]).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_fault(error)}") from error


def _scores(file: Path, sources: Mapping[str, Source]) -> pd.DataFrame:
    text = read(file, MIB)
    try:
        table = parse_table(text, texts=TEXTS, whole=COUNTS)
        if tuple(table.columns) != ALL:
            raise ValueError(f"its columns are not {', '.join(ALL)}")
        if not (table[list(COUNTS)] > 0).all(axis=None):
            raise ValueError(f"a number in {', '.join(COUNTS)} is not above 0")
        if (table[[*MEAN, *IQM]].abs() > LARGEST).any(axis=None):
            raise ValueError(f"a score is beyond +-{LARGEST:g}")
        given = table[[*MEAN, *IQM]].notna()
        is_mean = [name in MEAN for name in given]
        if not ((given == is_mean).all(axis=1) | (given != is_mean).all(axis=1)).all():
            raise ValueError("a row has not all values of a mean alone, or all of an IQM alone")
        if unknown := sorted(set(table["source"]) - set(sources)):
            raise ValueError(f"it has scores of {unknown[0]!r}, which sources.json does not name")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    return table
