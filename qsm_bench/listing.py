"""What ``list`` shows, a function for each kind of thing: rows of a name and a line."""

import inspect
from collections.abc import Callable
from pathlib import Path

from qsm_bench.counting import count
from qsm_bench.errors import UserError
from qsm_bench.visible import visible

Rows = list[tuple[str, str]]


def _agents(results: Path) -> Rows:
    from agents.registry import registered_agents

    rows = []
    for entry in registered_agents().values():
        first_line, *_ = (inspect.getdoc(entry.agent) or "").splitlines() or [""]
        pairs = ", ".join(f"{key}={value}" for key, value in entry.preset.items())
        rows.append((entry.name, f"{entry.agent.name} with {pairs}" if pairs else first_line))
    return rows


def _suites(results: Path) -> Rows:
    from qsm_bench.suites import SUITES

    return [
        (
            suite.name,
            f"{suite.description}. Tasks: {', '.join(suite.tasks)}. "
            f"{count(len(suite.seeds), 'seed')}, {count(suite.protocol.steps, 'step')}, "
            f"action repeat {suite.protocol.action_repeat}.",
        )
        for suite in SUITES.values()
    ]


def _tasks(results: Path) -> Rows:
    from envs import find_task, task_names

    return [(name, find_task(name).gymnasium_id) for name in task_names()]


def _experiments(results: Path) -> Rows:
    from qsm_bench.progress import summary
    from qsm_bench.store import ExperimentStore, experiment_names

    names = experiment_names(results)
    rows = [(visible(name), summary(ExperimentStore(results, name))) for name in names]
    return rows or [("none", f"no experiment is in {results}")]


def _records(results: Path) -> Rows:
    from qsm_bench.record import known_records

    rows = [(visible(name), _summary(place)) for name, place in known_records(results).items()]
    return rows or [("none", f"no record is in {results} or comes with the program")]


def _summary(place: Path) -> str:
    """What a record is; of one that cannot be read, why."""
    from qsm_bench.record import read_record

    try:
        return visible(read_record(place).summary)
    except UserError as error:
        return visible(str(error))


LISTS: dict[str, Callable[[Path], Rows]] = {
    "agents": _agents,
    "suites": _suites,
    "tasks": _tasks,
    "experiments": _experiments,
    "records": _records,
}
"""What can be listed, each as a function of the folder of results."""
