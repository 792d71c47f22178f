"""An experiment beside a record: the record's runs are compared with it where that is fair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm_bench.comparable import protocol_differences
from qsm_bench.errors import UserError
from qsm_bench.experiment import Experiment
from qsm_bench.protocol import Protocol
from qsm_bench.record import LoadedRecord
from qsm_bench.relabeling import part_of, relabeled
from qsm_bench.results import ReferenceCurve, Results

if TYPE_CHECKING:
    import pandas as pd

Conditions = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each task, its cells or jobs: ``protocol``, ``gymnasium_id`` and ``score_range`` count."""

STAGED = "the stages of this experiment were declared for its own agents"
STAGED_THERE = "there, agents stopped at stages, because of their results"


def place_beside(results: Results, loaded: LoadedRecord) -> Results:
    """Put the agents of a record beside those of an experiment, each as "NAME (record)".

    On a task where protocol and environment are the experiment's own, but for the length, their
    runs stand in the statistics; on another task they are curves to look at. ``Results.beside``
    says which, and why. An agent whose runs are the experiment's own, number for number, is left
    out. Raises UserError if the two share no task, or are the same experiment or runs.
    """
    refuse_itself(results.root / results.name, loaded)
    apart = find_differences(
        conditions_of(results.cells), loaded, staged="stages" in results.experiment
    )
    joined = [task for task, reason in apart.items() if not reason]
    same = same_runs(results, loaded.results)
    labels = {
        agent: f"{agent} ({loaded.record.name})"
        for agent in loaded.record.agents
        if agent not in same
    }
    if not labels:
        raise UserError(f"{results.name} has the runs of this record, number for number")
    theirs = relabeled(part_of(loaded.results, labels, joined), labels)
    drawn = part_of(loaded.results, labels, [task for task in apart if task not in joined])
    return replace(
        results,
        experiment={
            **results.experiment,
            "agents": [*results.experiment["agents"], *(labels.values() if joined else [])],
        },
        cells=[*results.cells, *theirs.cells],
        evaluations=_appended(results.evaluations, theirs.evaluations),
        training=_appended(results.training, theirs.training),
        diagnostics=_appended(results.diagnostics, theirs.diagnostics),
        slices=_appended(results.slices, theirs.slices),
        notes=(*results.notes, *theirs.notes),
        references=tuple(_curves(relabeled(drawn, labels))),
        recorded=tuple(labels.values()),
        beside=(
            _introduction(loaded),
            *differences_text(apart, loaded),
            *ends_text(conditions_of(results.cells), joined, loaded),
            *(f"{agent} is left out of it: its runs are those of {agent} here." for agent in same),
        ),
    )


def refuse_itself(folder: Path, loaded: LoadedRecord) -> None:
    """Raise UserError if the folder of an experiment is the record."""
    if folder.resolve() == loaded.place.resolve():
        raise UserError(f"{folder.name} is this record itself: give the report without --beside")


def same_runs(own: Results, theirs: Results) -> list[str]:
    """The agents of which both have a run with the same numbers: it is one run, not two."""
    keys = ["agent", "task", "seed", "step", "episode"]
    both = own.evaluations.merge(theirs.evaluations, on=keys, suffixes=("", "_there"))
    both = both.assign(equal=both["return"] == both["return_there"])
    equal = both.groupby(["agent", "task", "seed"])["equal"].all()
    return list(dict.fromkeys(str(key[0]) for key in equal.index[equal]))


def conditions_of(cells: Sequence[Mapping[str, Any]]) -> Conditions:
    """The cells of an experiment, by task."""
    return {
        task: [cell for cell in cells if cell["task"] == task]
        for task in dict.fromkeys(cell["task"] for cell in cells)
    }


def conditions_asked(experiment: Experiment) -> Conditions:
    """The jobs of an experiment that is to be run, by task."""
    return conditions_of([job.model_dump(mode="json") for job in experiment.jobs])


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
    if staged or "stages" in loaded.results.experiment:
        return dict.fromkeys(shared, STAGED if staged else STAGED_THERE)
    return {
        task: next(filter(None, (_difference(cell, theirs[task][0]) for cell in own[task])), "")
        for task in shared
    }


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


def ends_text(own: Conditions, joined: Sequence[str], loaded: LoadedRecord) -> list[str]:
    """Say where the record's runs end before the experiment's, which then stop there, too."""
    end = loaded.record.protocol.steps
    longer = [task for task in joined if max(_steps(cell) for cell in own[task]) > end]
    if not longer:
        return []
    return [
        f"They end at step {end:,}: on {', '.join(longer)} all agents are compared there. Without "
        "--beside, your own are compared where they end."
    ]


def _difference(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    different: dict[str, tuple[Any, Any]] = {
        name: (theirs[name], own[name])
        for name in ("gymnasium_id", "score_range")
        if _plain(theirs[name]) != _plain(own[name])
    }
    protocols = (Protocol(**theirs["protocol"]), Protocol(**own["protocol"]))
    different |= protocol_differences(*protocols)
    if different:
        return "; ".join(
            f"{name} is {_shown(there)} there and {_shown(here)} here"
            for name, (there, here) in different.items()
        )
    there, here = protocols
    first = min(there.eval_every, there.steps), min(here.eval_every, here.steps)
    if max(first) > min(there.steps, here.steps):
        return (
            f"they were never evaluated at the same step: there first at {first[0]:,}, here first "
            f"at {first[1]:,}"
        )
    return ""


def _steps(cell: Mapping[str, Any]) -> int:
    steps: int = cell["protocol"]["steps"]
    return steps


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _introduction(loaded: LoadedRecord) -> str:
    asked = loaded.results.experiment.get("seeds_asked", [])
    added = f" Its seeds were added in turns: {', then '.join(map(str, asked))}." if asked else ""
    return f"({loaded.record.name}) marks the runs of a record: {loaded.record.summary}.{added}"


def _appended(own: "pd.DataFrame", theirs: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    tables = [table for table in (own, theirs) if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else own


def _curves(apart: Results) -> "list[ReferenceCurve]":
    """The mean return of every run at every evaluation, on tasks that are not compared."""
    keys = ["agent", "task", "step", "seed"]
    means = apart.evaluations.groupby(keys, sort=False)["return"].mean()
    return [
        ReferenceCurve(str(key[0]), str(key[1]), curve)
        for key, curve in means.reset_index().groupby(["agent", "task"], sort=False)
    ]
