"""Scores that others have published, to stand beside ours: results/published/ says whose."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
COLUMNS = ("source", "agent", "task", "action_repeat", "steps", "seeds")
SPREAD = ("mean", "std", "median", "min", "max")
"""Over seeds."""


@dataclass(frozen=True)
class Source:
    """Where scores come from, and how they came about."""

    label: str
    url: str
    commit: str
    files: str
    step: str
    """What a step of it is."""
    protocol: str
    differs: str
    """What keeps its scores from being measurements of our own protocol."""


@dataclass(frozen=True)
class Published:
    """Scores of other people's runs."""

    sources: Mapping[str, Source]
    scores: pd.DataFrame
    """A row a source, agent, task and step: ``COLUMNS`` and ``SPREAD``; steps are decisions."""

    def within(self, budgets: Mapping[str, int]) -> "Published":
        """The scores on tasks in ``budgets``, at steps that those reach."""
        reach = self.scores["task"].map(budgets).fillna(0)
        scores = self.scores[self.scores["steps"] <= reach]
        kept = set(scores["source"])
        sources = {name: source for name, source in self.sources.items() if name in kept}
        return Published(sources, scores.reset_index(drop=True))


def published_scores(folder: Path = PUBLISHED) -> Published:
    """Read ``folder``; empty where the package was installed without it."""
    if not (folder / "scores.csv").exists():
        return Published({}, pd.DataFrame(columns=[*COLUMNS, *SPREAD]))
    sources: dict[str, dict[str, Any]] = json.loads((folder / "sources.json").read_text("utf-8"))
    return Published(
        {name: Source(**source) for name, source in sources.items()},
        pd.read_csv(folder / "scores.csv"),
    )
