"""An experiment beside a record: the record's runs are compared with it where that is fair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.comparable import protocol_differences
from qsm_bench.errors import UserError
from qsm_bench.experiment import Experiment
from qsm_bench.protocol import Protocol
from qsm_bench.record import LoadedRecord
from qsm_bench.relabeling import part_of, relabeled
from qsm_bench.results import Beside, ReferenceCurve, Results
from qsm_bench.statistics.power import Rivals
from qsm_bench.statistics.selection import agents_of, evaluated_steps

if TYPE_CHECKING:
    import pandas as pd

Conditions = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each task, its cells or jobs: ``protocol``, ``gymnasium_id`` and ``score_range`` count."""

STAGED = "the stages of this experiment were declared for its own agents"
STAGED_THERE = "there, agents stopped at stages, because of their results"


@refusing_wrong_types
def place_beside(results: Results, loaded: LoadedRecord) -> Results:
    """Put the agents of a record beside those of an experiment, each as "NAME (record)".

    On a task where protocol and environment are the experiment's own, but for the length, their
    runs stand in the statistics; on another task they are curves to look at. ``Results.beside``
    says which, and why. An agent whose runs are the experiment's own, number for number, is left
    out. Raises UserError if the two share no task, are the same experiment, or have agents of one
    label.
    """
    refuse_itself(results.root / results.name, loaded)
    if results.damaged and not results.cells:
        raise UserError(
            f"{results.name} has nothing to compare: none of its jobs can be read, the first "
            f"because {results.damaged[0].fault}"
        )
    apart = find_differences(
        conditions_of(results.cells), loaded, staged="stages" in results.experiment
    )
    joined = [task for task, reasons in apart.items() if not reasons]
    same = same_runs(results, loaded.results)
    labels = {
        agent: f"{agent} ({loaded.record.name})"
        for agent in loaded.record.agents
        if agent not in same
    }
    twice = [
        f"{agent} ({loaded.record.name}) is left out: runs of it are those of {own} here, number "
        "for number, and no run is counted twice."
        for agent, own in same.items()
    ]
    if not labels:
        return replace(results, beside=Beside(loaded.asked, sentences=tuple(twice)))
    there = {*agents_of(results), *(curve.name for curve in results.curves_elsewhere)}
    if taken := [label for label in labels.values() if label in there]:
        raise UserError(
            f"{results.name} has an agent {taken[0]!r} already, which record "
            f"{loaded.record.name!r} would bring: publish the record under another name"
        )
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
        beside=Beside(
            loaded.asked,
            tuple(labels.values()),
            tuple(_curves(relabeled(drawn, labels))),
            (
                _introduction(loaded),
                *differences_text(apart, conditions_of(results.cells), loaded),
                *ends_text(results, loaded.results, joined),
                *twice,
            ),
        ),
    )


def refuse_itself(folder: Path, loaded: LoadedRecord) -> None:
    """Raise UserError if the folder of an experiment is the record."""
    if folder.resolve() == loaded.place.resolve():
        raise UserError(f"{folder.name} is this record itself: give the report without --beside")


def same_runs(own: Results, theirs: Results) -> dict[str, str]:
    """Their agents of which a run has the numbers of one of ours: it is one run, not two.

    Each is given with the agent here that has it: of the same label, or of another for the same
    trainer, whose settings are equal as far as both have them (older runs lack those that a trainer
    got later). Two trainers whose actions both stay at a bound have equal returns, too,
    and are two. Runs whose returns are all the same number, such as 0 where nothing was learned,
    are not taken for one.
    """
    keys = ["task", "seed", "step", "episode"]
    both = theirs.evaluations.merge(own.evaluations, on=keys, suffixes=("", "_here"))
    both = both.assign(equal=both["return"] == both["return_here"])
    runs = both.groupby(["agent", "agent_here", "task", "seed"])
    same = runs["equal"].all() & (runs["return"].nunique() > 1)
    trained, trained_here = (
        {(cell["agent"], cell["task"]): cell for cell in cells}
        for cells in (theirs.cells, own.cells)
    )
    return {
        there: here
        for there, here, task, _ in same.index[same]
        if there == here or _alike(trained[there, task], trained_here[here, task])
    }


def _alike(cell: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two cells are of one trainer, and no setting that both have differs."""
    settings, others = cell["settings"], other["settings"]
    return cell["agent_name"] == other["agent_name"] and all(
        settings[name] == others[name] for name in settings.keys() & others.keys()
    )


def conditions_of(cells: Sequence[Mapping[str, Any]]) -> Conditions:
    """The cells of an experiment, by task."""
    return {
        task: [cell for cell in cells if cell["task"] == task]
        for task in dict.fromkeys(cell["task"] for cell in cells)
    }


def conditions_asked(experiment: Experiment) -> Conditions:
    """The jobs of an experiment that is to be run, by task."""
    return conditions_of([job.model_dump(mode="json") for job in experiment.jobs])


def find_differences(
    own: Conditions, loaded: LoadedRecord, *, staged: bool
) -> dict[str, tuple[str, ...]]:
    """What keeps an experiment from being compared with a record, on each task that both have.

    Without a reason they are compared. An experiment that is ``staged`` tests its own agents alone.
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
        return dict.fromkeys(shared, (STAGED if staged else STAGED_THERE,))
    return {
        task: next(filter(None, (_differences(cell, theirs[task][0]) for cell in own[task])), ())
        for task in shared
    }


def rivals_in(loaded: LoadedRecord, apart: Mapping[str, tuple[str, ...]]) -> Rivals | None:
    """What of a record an experiment is compared with; None if nothing is."""
    joined = sum(not reasons for reasons in apart.values())
    agents = loaded.record.agents
    return Rivals(len(agents), min(map(len, agents.values())), joined) if joined else None


def differences_text(
    apart: Mapping[str, tuple[str, ...]], own: Conditions, loaded: LoadedRecord
) -> list[str]:
    """Sentences on which of the record's tasks are compared, and one for each difference."""
    name, theirs = loaded.record.name, conditions_of(loaded.results.cells)
    begins = {task: evaluated_steps(theirs[task][0])[0] for task in apart}
    ends = {task: max(evaluated_steps(cell)[-1] for cell in own[task]) for task in apart}
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for task, reasons in apart.items():
        groups.setdefault((reasons, begins[task] <= ends[task]), []).append(task)
    absent = [task for task in own if task not in theirs]
    sentences = [f"{name} has no runs on {', '.join(absent)}."] if absent else []
    for (reasons, drawn), tasks in groups.items():
        if not reasons:
            sentences.append(f"The runs of {name} are compared on {', '.join(tasks)}.")
            continue
        first, *others = reasons
        how = "Outside of the statistics, as dashed curves, are" if drawn else "Not shown are"
        sentences.append(f"{how} the runs of {name} on {', '.join(tasks)}: {first}.")
        sentences += [f"Also, {reason}." for reason in others]
    return sentences


def ends_text(own: Results, theirs: Results, joined: Sequence[str]) -> list[str]:
    """Say where the experiment's runs are compared before they end, as the record has no more."""
    here, there = conditions_of(own.cells), conditions_of(theirs.cells)
    compared: dict[int, list[str]] = {}
    for task in joined:
        last = last_common_evaluation([*here[task], *there[task]])
        if last < last_common_evaluation(here[task]):
            compared.setdefault(last, []).append(task)
    return [
        f"On {', '.join(tasks)} all agents are compared at step {last:,}, the last at which all "
        "were evaluated. Without --beside, your own are compared at a later one."
        for last, tasks in compared.items()
    ]


def last_common_evaluation(cells: Sequence[Mapping[str, Any]]) -> int:
    """The last step at which all these cells are evaluated; 0 if there is none."""
    steps = [set(evaluated_steps(cell)) for cell in cells]
    return max(set.intersection(*steps), default=0)


def _differences(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, ...]:
    different: dict[str, tuple[Any, Any]] = {
        name: (theirs[name], own[name])
        for name in ("gymnasium_id", "score_range")
        if _plain(theirs[name]) != _plain(own[name])
    }
    protocols = (Protocol(**theirs["protocol"]), Protocol(**own["protocol"]))
    different |= protocol_differences(*protocols)
    if different:
        return tuple(
            f"{name} is {_shown(there)} there and {_shown(here)} here"
            for name, (there, here) in different.items()
        )
    if not last_common_evaluation([theirs, own]):
        first = [evaluated_steps(cell)[0] for cell in (theirs, own)]
        return (
            f"they were never evaluated at the same step: there first at {first[0]:,}, here first "
            f"at {first[1]:,}",
        )
    return ()


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
