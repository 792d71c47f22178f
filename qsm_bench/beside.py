"""An experiment beside a record: the record's runs are compared with it where that is fair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qsm_bench.comparable import protocol_differences
from qsm_bench.errors import UserError
from qsm_bench.experiment import Experiment
from qsm_bench.protocol import Protocol
from qsm_bench.record import LoadedRecord
from qsm_bench.relabeling import relabeled
from qsm_bench.results import ReferenceCurve, Results

if TYPE_CHECKING:
    import pandas as pd

Conditions = Mapping[str, Mapping[str, Any]]
"""For each task, what must be equal: ``protocol``, ``gymnasium_id`` and ``score_range``."""

STAGED = "the stages of this experiment were declared for its own agents"


def place_beside(results: Results, loaded: LoadedRecord) -> Results:
    """Put the agents of a record beside those of an experiment, each as "NAME (record)".

    On a task where protocol and environment are the experiment's own, but for the length, their
    runs stand in the statistics; on another task they are curves to look at. ``Results.beside``
    says which, and why. Raises UserError if the two share no task, or are the same experiment.
    """
    if (results.root / results.name).resolve() == loaded.place.resolve():
        raise UserError(f"{results.name} is this record itself: give the report without --beside")
    staged = "stages" in results.experiment
    apart = find_differences(conditions_of(results.cells), loaded, staged=staged)
    joined = [task for task, reason in apart.items() if not reason]
    labels = {agent: f"{agent} ({loaded.record.name})" for agent in loaded.record.agents}
    theirs = relabeled(loaded.results, labels)
    return replace(
        results,
        experiment={
            **results.experiment,
            "agents": [
                *results.experiment["agents"],
                *(theirs.experiment["agents"] if joined else []),
            ],
        },
        cells=[*results.cells, *(cell for cell in theirs.cells if cell["task"] in joined)],
        evaluations=_appended(results.evaluations, theirs.evaluations, joined),
        training=_appended(results.training, theirs.training, joined),
        diagnostics=_appended(results.diagnostics, theirs.diagnostics, joined),
        slices=_appended(results.slices, theirs.slices, joined),
        notes=(*results.notes, *theirs.notes),
        references=tuple(_curves(theirs, [task for task in apart if task not in joined])),
        recorded=tuple(labels.values()),
        beside=(_introduction(loaded), *differences_text(apart, loaded)),
    )


def conditions_of(cells: Sequence[Mapping[str, Any]]) -> Conditions:
    """What must be equal on each task, from the cells of an experiment."""
    return {cell["task"]: cell for cell in cells}


def conditions_asked(experiment: Experiment) -> Conditions:
    """What must be equal on each task of an experiment that is to be run."""
    return {job.task: job.model_dump(mode="json") for job in experiment.jobs}


def find_differences(own: Conditions, loaded: LoadedRecord, *, staged: bool) -> dict[str, str]:
    """What keeps an experiment from being compared with a record, on each task that both have.

    It is empty where nothing does. An experiment that is ``staged`` tests its own agents alone.

    Raises UserError if they share no task.
    """
    theirs = conditions_of(loaded.results.cells)
    shared = [task for task in own if task in theirs]
    if not shared:
        raise UserError(
            f"record {loaded.record.name!r} has no task of this experiment: it has "
            f"{', '.join(loaded.record.tasks)}"
        )
    return {task: STAGED if staged else _difference(own[task], theirs[task]) for task in shared}


def differences_text(apart: Mapping[str, str], loaded: LoadedRecord) -> list[str]:
    """Sentences on which of the record's tasks are compared, and why others are not."""
    name = loaded.record.name
    sentences = []
    for reason in dict.fromkeys(apart.values()):
        tasks = ", ".join(task for task, why in apart.items() if why == reason)
        sentences.append(
            f"Outside of the statistics, as dashed curves, are the runs of {name} on {tasks}: "
            f"{reason}."
            if reason
            else f"The runs of {name} are compared on {tasks}."
        )
    return sentences


def _difference(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    different: dict[str, tuple[Any, Any]] = {
        name: (theirs[name], own[name])
        for name in ("gymnasium_id", "score_range")
        if _plain(theirs[name]) != _plain(own[name])
    }
    protocols = (Protocol(**theirs["protocol"]), Protocol(**own["protocol"]))
    different |= protocol_differences(*protocols)
    return "; ".join(
        f"{name} is {_shown(there)} there and {_shown(here)} here"
        for name, (there, here) in different.items()
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _introduction(loaded: LoadedRecord) -> str:
    return f"({loaded.record.name}) marks the runs of a record: {loaded.record.summary}."


def _appended(own: "pd.DataFrame", theirs: "pd.DataFrame", tasks: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    tables = [table for table in (own, theirs[theirs["task"].isin(tasks)]) if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else own


def _curves(theirs: Results, tasks: Sequence[str]) -> "list[ReferenceCurve]":
    """The mean return of every run at every evaluation, on tasks that are not compared."""
    rows = theirs.evaluations[theirs.evaluations["task"].isin(tasks)]
    means = rows.groupby(["agent", "task", "step", "seed"], sort=False)["return"].mean()
    return [
        ReferenceCurve(str(key[0]), str(key[1]), curve)
        for key, curve in means.reset_index().groupby(["agent", "task"], sort=False)
    ]
