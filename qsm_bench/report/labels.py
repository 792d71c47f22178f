"""Shorter labels: settings that all columns share leave them, and are said once."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from qsm_bench.experiment import split_outside_brackets
from qsm_bench.results import Results
from qsm_bench.statistics.selection import agents_of
from qsm_bench.statistics.settling import ELSEWHERE


def without_shared_settings(results: Results) -> tuple[Results, list[str]]:
    """The results under labels without the settings that all of them have, and these settings.

    A setting is ``name=value`` as the label has it. Labels of agents that were measured elsewhere
    stay, and do not count. Nothing changes where there is only one other label, or if two would
    become the same.
    """
    columns = [agent for agent in agents_of(results) if not agent.endswith(ELSEWHERE)]
    parts = {agent: _parts(agent) for agent in columns}
    shared = [
        setting
        for setting in next(iter(parts.values()), ("", []))[1]
        if all(setting in settings for _, settings in parts.values())
    ]
    labels = {
        agent: _label(name, [setting for setting in settings if setting not in shared])
        for agent, (name, settings) in parts.items()
    }
    others = {*agents_of(results)} - {*columns}
    if len(columns) < 2 or not shared or len({*labels.values()} - others) < len(columns):
        return results, []
    return relabeled(results, labels), shared


def relabeled(results: Results, labels: Mapping[str, str]) -> Results:
    """The results with other labels of agents; those that are not in ``labels`` keep theirs."""

    def table(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(agent=[labels.get(agent, agent) for agent in rows["agent"]])

    return replace(
        results,
        experiment={
            **results.experiment,
            "agents": [labels.get(agent, agent) for agent in results.experiment["agents"]],
        },
        cells=[{**c, "agent": labels.get(c["agent"], c["agent"])} for c in results.cells],
        evaluations=table(results.evaluations),
        training=table(results.training),
        diagnostics=table(results.diagnostics),
        slices=table(results.slices),
        damaged=tuple(replace(d, agent=labels.get(d.agent, d.agent)) for d in results.damaged),
    )


def _parts(label: str) -> tuple[str, list[str]]:
    """An agent's name, and the settings in the brackets after it."""
    match = re.fullmatch(r"([^\[\]]+)\[(.*)\]", label, re.DOTALL)
    settings = split_outside_brackets(match[2]) if match else []
    if not match or not all("=" in setting for setting in settings):
        return label, []
    return match[1], list(settings)


def _label(name: str, settings: list[str]) -> str:
    return f"{name}[{','.join(settings)}]" if settings else name
