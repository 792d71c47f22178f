"""A part of some results, and the same results under other labels of their agents."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qsm_bench.results import Results

if TYPE_CHECKING:
    import pandas as pd


def part_of(results: Results, agents: Collection[str], tasks: Collection[str]) -> Results:
    """The cells and rows of these agents on these tasks; what was asked for stays as it is."""

    def rows(table: "pd.DataFrame") -> "pd.DataFrame":
        return table[table["agent"].isin(agents) & table["task"].isin(tasks)]

    return replace(
        results,
        cells=[c for c in results.cells if c["agent"] in agents and c["task"] in tasks],
        evaluations=rows(results.evaluations),
        training=rows(results.training),
        diagnostics=rows(results.diagnostics),
        slices=rows(results.slices),
    )


def relabeled(results: Results, labels: Mapping[str, str]) -> Results:
    """The results with other labels of agents; those that are not in ``labels`` keep theirs."""

    def table(rows: "pd.DataFrame") -> "pd.DataFrame":
        return rows.assign(agent=[labels.get(agent, agent) for agent in rows["agent"]])

    def names(agents: list[str]) -> list[str]:
        return [labels.get(agent, agent) for agent in agents]

    asked = {**results.experiment, "agents": names(results.experiment["agents"])}
    if "stages" in asked:
        asked["stages"] = {**asked["stages"], "agents": names(asked["stages"]["agents"])}
    return replace(
        results,
        experiment=asked,
        cells=[{**c, "agent": labels.get(c["agent"], c["agent"])} for c in results.cells],
        evaluations=table(results.evaluations),
        training=table(results.training),
        diagnostics=table(results.diagnostics),
        slices=table(results.slices),
        damaged=tuple(replace(d, agent=labels.get(d.agent, d.agent)) for d in results.damaged),
    )
