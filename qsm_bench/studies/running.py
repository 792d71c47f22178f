"""Run a study: train its cells in an experiment each, write its report, remember its verdict.

<results>/study-<name>-<budget>-<cells>/    the experiments, as any other
<reports>/studies/<name>/                   index.html, report.md, figures, numbers, verdict.json
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from qsm_bench.errors import UserError, first_fault, naming
from qsm_bench.executors import Executor
from qsm_bench.files import MIB, read_json
from qsm_bench.process import configure_process
from qsm_bench.provenance import describe_commit
from qsm_bench.report import runs
from qsm_bench.report.document import Block, Bullets, Code, Document, Section, Text, write_document
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.folder import replacing
from qsm_bench.results import Results, load_results
from qsm_bench.run import prepare, train
from qsm_bench.signals import ReceivedSignal
from qsm_bench.statistics.selection import agents_of
from qsm_bench.store import ExperimentStore
from qsm_bench.studies.study import Budget, Cells, Outcome, Study, Verdict
from qsm_bench.suites import Suite

FOLDER = "studies"
VERDICT_FILE = "verdict.json"


class PublishedVerdict(BaseModel):
    """What ``verdict.json`` beside a study's report says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    budget: Budget
    outcome: Outcome
    why: str


def train_cells(
    study: Study,
    budget: Budget,
    *,
    executor: Executor,
    device: str,
    results: Path,
    command: str,
    console: Console,
    received: ReceivedSignal,
) -> dict[str, Results] | None:
    """Train what is missing of a study's experiments; return them, or None if one did not finish.

    Raises UserError for what cannot be run as it was asked.
    """
    study.check_installed()
    finished: dict[str, Results] = {}
    every = study.cells(budget)
    gone_on_from = {cells.after for cells in every}
    for cells in every:
        name = experiment_name(study, budget, cells)
        if cells.after:
            begin_as_copy(results, finished[cells.after].name, name)
        prepared = prepare(
            cells.agents,
            Suite(cells.name, study.title, tuple(cells.tasks.split(",")), cells.protocol),
            protocol=None,
            name=name,
            seeds=range(cells.seeds),
            stages=None,
            seeds_per_job="auto",
            settings=cells.settings,
            device=device,
            compiled="auto",
            executor=executor,
            checkpoint_every=None,
            keep_replay=cells.name in gone_on_from,
            results=results,
        )
        prepared.refuse_unrunnable()
        prepared.refuse_what_does_not_fit()
        prepared.rehearse()
        outcome = train(prepared, command, console, received)
        if received or outcome.unfinished or outcome.queued:
            return None
        finished[cells.name] = load_results(results, name)
    return finished


def experiment_name(study: Study, budget: Budget, cells: Cells) -> str:
    """The name of the experiment that has these cells of a study."""
    return f"study-{study.name}-{budget}-{cells.name}"


def begin_as_copy(results: Path, earlier: str, name: str) -> None:
    """Let an experiment that is not there begin as a copy of one that is to be given more steps.

    What was asked for is not copied: the run that gives it more steps writes that anew.
    """
    folder, part = results / name, results / f".{name}.part"
    if os.path.lexists(folder):
        return
    store = ExperimentStore(results, earlier)
    of_the_run = store.file, store.lock_file, store.holder_file
    not_copied = shutil.ignore_patterns(*(file.name for file in of_the_run))
    with store.lock(), naming(folder):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        shutil.copytree(store.folder, part, ignore=not_copied)
        part.rename(folder)


def write_study(
    study: Study, budget: Budget, results: Mapping[str, Results], reports: Path
) -> tuple[Path, PublishedVerdict]:
    """Write the report of a study into <reports>/studies/<name>/, replacing an older one.

    Returns the path of index.html, and the verdict. Raises UserError where ``write_report`` does.
    """
    configure_process()
    folder = reports / FOLDER / study.name
    agents = dict.fromkeys(agent for part in results.values() for agent in agents_of(part))
    with naming(folder), replacing(folder) as fresh:
        drawing = Drawing.into(fresh, [*agents, *study.lines])
        found = study.find(budget, results, drawing)
        verdict = _published(study, budget, found.verdict)
        answer: list[Block] = [Bullets([f"{verdict.outcome.capitalize()}. {verdict.why}"])]
        document = Document(
            title=study.title,
            lead=study.claim,
            sections=[
                Section("The answer", [*answer, *_test(study)]),
                *found.sections,
                Section("What this does not show", [Bullets(study.limits)]),
                _what_ran(study, budget, results),
            ],
        )
        write_document(document, fresh)
        text = json.dumps(verdict.model_dump(), indent=2) + "\n"
        (fresh / VERDICT_FILE).write_text(text, encoding="utf-8")
    return folder / "index.html", verdict


def _test(study: Study) -> list[Block]:
    changed = [Text(f"The test was changed after a first run. {study.changed}")]
    return [Text(f"The test: {study.test}"), *(changed if study.changed else [])]


def _published(study: Study, budget: Budget, verdict: Verdict) -> PublishedVerdict:
    if budget == "tiny":
        why = f"The tiny budget only shows that the study runs. {verdict.why}"
        verdict = Verdict("cannot tell", why)
    return PublishedVerdict(
        study=study.name, budget=budget, outcome=verdict.outcome, why=verdict.why
    )


def _what_ran(study: Study, budget: Budget, results: Mapping[str, Results]) -> Section:
    blocks: list[Block] = [
        Text(f"The {budget} budget, with qsm_bench at commit {describe_commit() or 'unknown'}:"),
        Code(f"python -m qsm_bench study {study.name} --budget {budget}"),
    ]
    for part in results.values():
        blocks += [Text(f"The experiment {part.name}:"), *runs.what_ran(part).blocks]
    return Section("What ran", blocks)


def published_verdict(study: Study, reports: Path) -> PublishedVerdict | None:
    """The verdict of the report that is there; None if there is none.

    Raises UserError if its file is damaged.
    """
    file = reports / FOLDER / study.name / VERDICT_FILE
    if not os.path.lexists(file):
        return None
    try:
        return PublishedVerdict.model_validate(read_json(file, MIB))
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_fault(error)}; run the study again") from error
