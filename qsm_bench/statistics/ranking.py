"""The agents in one order, and the groups of agents that cannot be told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from string import ascii_lowercase

import networkx as nx
import numpy as np
import pandas as pd

from qsm_bench.statistics.estimates import bootstrap, interquartile_mean
from qsm_bench.statistics.selection import AREA_UNDER_CURVE, FINAL, Comparison, FloatArray
from qsm_bench.statistics.significance import (
    names_better,
    probability_of_improvement,
    with_tasks,
)

Groups = tuple[tuple[str, ...], ...]
BOUNDS = ("value", "low", "high", "area", "area_low", "area_high")
"""The columns of a ranking at the end, and those of the area under the curve."""


@dataclass(frozen=True)
class Ranking:
    """The agents, best first by their value at the end."""

    measure: str
    """What the values are, such as ``IQM of normalized scores``."""
    table: pd.DataFrame
    """A row for each agent. Columns: agent, those of ``BOUNDS`` (NaN where there is none), groups
    (the letters of the agent's groups), better_than (the agents that it is better than, as a
    text), seeds (on each task), tasks."""
    groups: Groups
    """The largest groups of agents of which no two have a verdict, each in the order of the table.
    An agent that differs from all others is a group of its own."""
    better_than: Mapping[str, tuple[str, ...]]
    """For each agent, those that it may be called better than."""
    all_tested: bool
    """Whether every two agents were tested. Two that were not have no verdict."""

    @property
    def named_groups(self) -> list[tuple[tuple[str, ...], str]]:
        """Each group with its letter."""
        return [(group, _letter(i)) for i, group in enumerate(self.groups)]

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents, best first."""
        return tuple(self.table["agent"])


def ranking(comparison: Comparison, aggregates: pd.DataFrame, pairs: pd.DataFrame) -> Ranking:
    """Rank the agents. ``aggregates`` and ``pairs`` are the comparison's tables.

    The values are interquartile means (IQM) of normalized scores. If no task has scores of all
    agents, but they share one task, the values are IQMs of the returns there. Otherwise, an agent's
    value is its probability of improvement, averaged over the other agents with a common task; it
    has no interval.
    """
    shared = comparison.shared_tasks(*comparison.agents)
    if not aggregates.empty:
        measure, values = "IQM of normalized scores", _of_scores(aggregates)
    elif len(shared) == 1 and comparison.agents:
        measure, values = f"IQM of returns on {shared[0]}", _of_returns(comparison, shared[0])
    else:
        measure, values = "mean probability of improvement", _of_improvement(comparison)
    values = values.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    agents = list(values["agent"])
    groups = groups_without_verdict(agents, pairs)
    named = pairs[names_better(pairs)]
    better_than = {
        agent: tuple(a for a in agents if a in set(named["worse"][named["better"] == agent]))
        for agent in agents
    }
    letters = {
        agent: "".join(_letter(i) for i, group in enumerate(groups) if agent in group)
        for agent in agents
    }
    table = values.assign(
        groups=[letters[agent] for agent in agents],
        better_than=[", ".join(better_than[agent]) for agent in agents],
    )
    columns = ["agent", *BOUNDS, "groups", "better_than", "seeds", "tasks"]
    tested = int(pairs["p"].notna().sum()) == comb(len(agents), 2)
    return Ranking(measure, table[columns], groups, better_than, tested)


def groups_without_verdict(agents: Sequence[str], pairs: pd.DataFrame) -> Groups:
    """The largest groups of ``agents`` of which no two have a verdict, in the agents' order.

    ``pairs`` has the columns better, worse and verdict. A pair that is not in it has no verdict.
    """
    graph = nx.complete_graph(agents)
    decided = pairs[pairs["verdict"].astype(bool)]
    graph.remove_edges_from(zip(decided["better"], decided["worse"], strict=True))
    return _cliques(graph, agents)


def open_groups(agents: Sequence[str], pairs: pd.DataFrame) -> Groups:
    """The largest groups of two ``agents`` or more of which every two were tested in vain.

    ``pairs`` has the columns better, worse, p and verdict. Groups are in the agents' order.
    """
    rows = pairs[pairs["p"].notna() & ~pairs["verdict"].astype(bool)]
    return _cliques(nx.Graph(zip(rows["better"], rows["worse"], strict=True)), agents)


def _cliques(graph: "nx.Graph[str]", agents: Sequence[str]) -> Groups:
    """The largest groups of which every two are joined, in the agents' order."""
    rank = {agent: i for i, agent in enumerate(agents)}
    found = [sorted(rank[agent] for agent in group) for group in nx.find_cliques(graph)]
    return tuple(tuple(agents[i] for i in group) for group in sorted(found))


def _of_scores(aggregates: pd.DataFrame) -> pd.DataFrame:
    iqms = aggregates[aggregates["statistic"] == "IQM"]
    final, area = (iqms[iqms["measured"] == when] for when in (FINAL, AREA_UNDER_CURVE))
    area = area[["agent", "value", "low", "high"]]
    area.columns = pd.Index(["agent", "area", "area_low", "area_high"])
    return final.merge(area, on="agent", how="left", validate="one_to_one")


def _of_returns(comparison: Comparison, task: str) -> pd.DataFrame:
    rows = []
    for agent in comparison.agents:
        returns = comparison.runs[agent, task].returns
        scores = (returns[:, [-1]], returns.mean(axis=1, keepdims=True))
        bounds = [float(bound[0]) for runs in scores for bound in bootstrap(_iqm, runs)]
        rows.append((agent, *bounds, len(returns), 1))
    return pd.DataFrame(rows, columns=["agent", *BOUNDS, "seeds", "tasks"])


def _of_improvement(comparison: Comparison) -> pd.DataFrame:
    against: dict[str, list[float]] = {agent: [] for agent in comparison.agents}
    for first, second, tasks in with_tasks(comparison, [*combinations(comparison.agents, 2)]):
        runs = [comparison.final_returns(agent, tasks) for agent in (first, second)]
        probability = float(probability_of_improvement(*runs)[0])
        against[first].append(probability)
        against[second].append(1 - probability)
    rows = []
    for agent, probabilities in against.items():
        value = np.mean(probabilities) if probabilities else np.nan
        seeds = [len(runs.seeds) for (a, _), runs in comparison.runs.items() if a == agent]
        rows.append((agent, value, *[np.nan] * 5, min(seeds), len(seeds)))
    return pd.DataFrame(rows, columns=["agent", *BOUNDS, "seeds", "tasks"])


def _iqm(scores: FloatArray) -> FloatArray:
    return np.atleast_1d(interquartile_mean(scores.ravel()))


def _letter(index: int) -> str:
    return ascii_lowercase[index % 26] + (str(index // 26) if index >= 26 else "")
