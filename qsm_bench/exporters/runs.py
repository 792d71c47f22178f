"""An experiment as single runs: what one agent did on one task with one seed."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from qsm_bench.merging import jobs_of
from qsm_bench.results import Results

RETURN = "eval/return"
KEYS = ["agent", "task", "seed", "step"]


@dataclass(frozen=True)
class Point:
    """What a run measured at a step."""

    step: int
    seconds: float
    """The seconds since the job began."""
    values: Mapping[str, float]
    """The values by tag: eval/return, train/<metric> and diagnostics/<measure>.

    A return is NaN after the run diverged or failed. Values that were not measured are left out.
    """


@dataclass(frozen=True)
class Run:
    """One seed of one cell."""

    agent: str
    task: str
    seed: int
    cell: Mapping[str, Any]
    """The cell's manifest, as ``Results.cells`` has it."""
    points: tuple[Point, ...]
    """In the order of their steps."""

    @property
    def job(self) -> Mapping[str, Any]:
        """How the job stands that the run is of: its status and reason."""
        return next(job for job in jobs_of(self.cell) if self.seed in job["seeds"])

    @property
    def began(self) -> datetime:
        """When its job began. Where that is not known it is 1970, when a clock's count begins."""
        for stretch in self.cell["stretches"]:
            if self.seed not in stretch.get("seeds", [self.seed]):
                continue
            with suppress(TypeError, ValueError, OverflowError):
                return datetime.fromisoformat(stretch["started"]).astimezone(UTC)
        return datetime.fromtimestamp(0, UTC)

    @property
    def fault(self) -> str | None:
        """What became of the run, if it did not go well, in one line."""
        for seed, step in self.cell.get("diverged", {}).items():
            if int(seed) == self.seed:
                return f"diverged at step {step}"
        for seed, failure in self.cell.get("failed_seeds", {}).items():
            if int(seed) == self.seed:
                return f"failed at step {failure['step']}: {failure['reason']}"
        if self.job["status"] == "failed":
            return f"failed: {self.job['reason'] or 'no reason was noted'}"
        return None


def mean_returns(results: Results) -> pd.DataFrame:
    """Mean return over an evaluation's episodes: agent, task, seed, step, return.

    It is NaN where an episode's is, as of a run that diverged. An evaluation that lacks an episode,
    as it is just being written, is left out.
    """
    episodes = {(c["agent"], c["task"]): c["eval_episodes"] for c in results.cells}
    grouped = results.evaluations.dropna(subset=["length"]).groupby(KEYS, sort=False)["return"]
    means = grouped.mean().where(grouped.count() == grouped.size())
    table = means.astype(float).reset_index()
    wanted = [episodes[cell] for cell in zip(table["agent"], table["task"], strict=True)]
    return table[grouped.size().to_numpy() >= wanted]


def runs_of(results: Results) -> list[Run]:
    """Every seed of every cell that has measured anything, cell by cell."""
    measured: dict[tuple[str, str, int], dict[int, dict[str, float]]] = {}
    for agent, task, seed, step, value in mean_returns(results).itertuples(index=False, name=None):
        measured.setdefault((agent, task, seed), {}).setdefault(step, {})[RETURN] = value
    for prefix, table in (("train", results.training), ("diagnostics", results.diagnostics)):
        names = [str(name) for name in table.columns if name not in KEYS]
        columns = [table[name].to_numpy(dtype=float) for name in names]
        keys = table[KEYS].itertuples(index=False, name=None)
        for (agent, task, seed, step), *row in zip(keys, *columns, strict=True):
            values = measured.setdefault((agent, task, seed), {}).setdefault(step, {})
            values |= {f"{prefix}/{n}": float(v) for n, v in zip(names, row, strict=True) if v == v}
    return [
        Run(cell["agent"], cell["task"], seed, cell, _points(points))
        for cell in results.cells
        for seed in cell["seeds"]
        if (points := measured.get((cell["agent"], cell["task"], seed)))
    ]


def _points(measured: Mapping[int, Mapping[str, float]]) -> tuple[Point, ...]:
    points, seconds = [], 0.0
    for step in sorted(measured):
        values = measured[step]
        seconds = max(seconds, values.get("train/wall_clock", seconds))
        points.append(Point(int(step), seconds, values))
    return tuple(points)
