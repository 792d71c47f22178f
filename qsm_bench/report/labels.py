"""Shorter labels: settings that all columns share leave them, and are said once."""

import re

from qsm_bench.experiment import split_outside_brackets
from qsm_bench.relabeling import relabeled
from qsm_bench.results import Results
from qsm_bench.statistics.selection import agents_of


def without_shared_settings(results: Results) -> tuple[Results, list[str]]:
    """The results under labels without the settings that all of them have, and these settings.

    A setting is ``name=value`` as the label has it. Labels of imported curves stay, and do not
    count. Nothing changes where there is only one other label, or if two would become the same; nor
    beside a record, whose agents do not have these settings.
    """
    if results.beside.asked:
        return results, []
    columns = [agent for agent in agents_of(results) if agent not in results.elsewhere]
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


def _parts(label: str) -> tuple[str, list[str]]:
    """An agent's name, and the settings in the brackets after it."""
    match = re.fullmatch(r"([^\[\]]+)\[(.*)\]", label, re.DOTALL)
    settings = split_outside_brackets(match[2]) if match else []
    if not match or not all("=" in setting for setting in settings):
        return label, []
    return match[1], list(settings)


def _label(name: str, settings: list[str]) -> str:
    return f"{name}[{','.join(settings)}]" if settings else name
