"""The results of an experiment, read from its folder into tables.

A folder may come from anybody, so every table is held against its job. A job with a file
that its job cannot have written is damaged: it is left out, and named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.errors import UserError
from qsm_bench.external import External, ExternalCurve, load_external
from qsm_bench.files import read
from qsm_bench.job_folder import TABLE_LIMIT, JobFolder
from qsm_bench.manifest import LaterFormatError, Manifest
from qsm_bench.merging import merge_jobs
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import parse_table, without_uncertain

if TYPE_CHECKING:
    import pandas as pd

EVALUATION_COLUMNS = ("seed", "step", "episode", "return", "length")
TRAINING_COLUMNS = ("seed", "step", "wall_clock", "training_return")
DIAGNOSTICS_COLUMNS = ("seed", "step")
SLICE_COLUMNS = ("seed", "step", "state", "action", "q", "share")


@dataclass(frozen=True)
class Damaged:
    """A job that cannot be read."""

    agent: str
    task: str
    seeds: tuple[int, ...]
    """Those of the job; the agent's other jobs on the task may be readable."""
    fault: str
    """One line: the file, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class ReferenceCurve:
    """A cell of a record that is drawn beside an experiment's own, and in no statistic."""

    name: str
    """What the report calls its agent."""
    task: str
    rows: "pd.DataFrame"
    """step, return, seed."""


@dataclass(frozen=True)
class Beside:
    """What a record has put beside an experiment's own results."""

    asked: str = ""
    """What the record was asked for by: a name or a path."""
    agents: tuple[str, ...] = ()
    """The labels of its agents."""
    references: tuple[ReferenceCurve, ...] = ()
    """Its cells that are only drawn."""
    sentences: tuple[str, ...] = ()
    """What is said of it."""


@dataclass(frozen=True)
class Results:
    """Everything statistics and reports read."""

    name: str
    experiment: dict[str, Any]
    cells: list[dict[str, Any]]
    """The manifests, flat: the fields of the job and of its protocol beside the rest."""
    evaluations: "pd.DataFrame"
    """agent, task, seed, step, episode, return, length."""
    training: "pd.DataFrame"
    """agent, task, seed, step, wall_clock, training_return, metrics."""
    diagnostics: "pd.DataFrame"
    """agent, task, seed, step, measures; of the agents that show them."""
    slices: "pd.DataFrame"
    """agent, task, seed, step, state, action, q, share: the critic along an action axis."""
    notes: tuple[str, ...] = ()
    """What of the tables cannot be trusted and is left blank, a line for each."""
    damaged: tuple[Damaged, ...] = ()
    """The jobs that cannot be read, and stand in no table."""
    root: Path = Path("results")
    """The folder that holds the experiment's."""
    external: External = field(default_factory=External)
    """What others have measured, where it was imported."""
    beside: Beside = Beside()
    """The record that these results stand beside, if any."""

    @property
    def budgets(self) -> dict[str, int]:
        """The steps of each task: of its longest run, where agents have unequal ones."""
        steps: dict[str, int] = {}
        for cell in self.cells:
            steps[cell["task"]] = max(cell["steps"], steps.get(cell["task"], 0))
        return steps

    @property
    def curves_elsewhere(self) -> "list[ExternalCurve | ReferenceCurve]":
        """All curves of somebody else that are no cells here: imported, or of a record."""
        return [*self.external.curves, *self.beside.references]

    @property
    def elsewhere(self) -> set[str]:
        """The labels of all that was measured elsewhere: no seeds can be added to it here."""
        return {*self.beside.agents, *(curve.name for curve in self.curves_elsewhere)}


@dataclass(frozen=True)
class JobResults:
    """What one readable job holds."""

    manifest: Manifest
    evaluations: "pd.DataFrame"
    training: "pd.DataFrame"
    diagnostics: "pd.DataFrame"
    slices: "pd.DataFrame"
    notes: tuple[str, ...]


@refusing_wrong_types
def load_results(root: str | Path, name: str) -> Results:
    """Read an experiment, finished or not. Raises UserError if there is none of that name."""
    root = Path(root).absolute()
    store = ExperimentStore(root, name)
    experiment = store.read()
    readable: list[JobResults] = []
    damaged: list[Damaged] = []
    for folder in store.job_folders():
        try:
            readable.append(read_job(folder))
        except LaterFormatError:
            raise
        except UserError as error:
            damaged.append(
                Damaged(folder.agent or "", folder.task or "", folder.seeds or (), str(error))
            )
    return Results(
        name=name,
        experiment=experiment,
        cells=merge_jobs([job.manifest for job in readable]),
        evaluations=_together([job.evaluations for job in readable], EVALUATION_COLUMNS),
        training=_together([job.training for job in readable], TRAINING_COLUMNS),
        diagnostics=_together([job.diagnostics for job in readable], DIAGNOSTICS_COLUMNS),
        slices=_together([job.slices for job in readable], SLICE_COLUMNS),
        notes=tuple(note for job in readable for note in job.notes),
        external=load_external(store),
        damaged=tuple(damaged),
        root=root,
    )


def read_job(folder: JobFolder) -> JobResults:
    """Read a job's manifest and tables.

    Raises UserError if they are not what a job writes: the line says what to do.
    """
    manifest = folder.read_current()
    notes: list[str] = []
    try:
        return JobResults(
            manifest,
            _table(folder.evaluations_file, manifest, EVALUATION_COLUMNS, ("episode",), more=False),
            _table(folder.training_file, manifest, TRAINING_COLUMNS, notes=notes),
            _table(folder.diagnostics_file, manifest, DIAGNOSTICS_COLUMNS),
            _table(folder.slices_file, manifest, SLICE_COLUMNS, ("state", "action"), more=False),
            tuple(notes),
        )
    except UserError as error:
        raise UserError(f"{error}; {folder.advice}") from error


def _together(tables: Sequence["pd.DataFrame"], columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame(columns=["agent", "task", *columns])
    return pd.concat(tables, ignore_index=True)


def _table(
    file: Path,
    manifest: Manifest,
    columns: Sequence[str],
    keys: Sequence[str] = (),
    *,
    more: bool = True,
    notes: list[str] | None = None,
) -> "pd.DataFrame":
    """Return a job's table, with the columns agent and task before its own.

    It has ``columns`` first and, with ``more``, further ones. A row is known by seed, step and
    ``keys``. Raises UserError if the job cannot have written it.
    """
    import pandas as pd

    text = _rows(file, manifest)
    if not text:
        return pd.DataFrame(columns=["agent", "task", *columns])
    if notes is not None:
        text, blank = without_uncertain(text, len(columns))
        if blank:
            notes.append(note_of_uncertain(file, blank))
    try:
        table = parse_table(text)
        names = list(table.columns)
        if names[: len(columns)] != list(columns) or (not more and len(names) > len(columns)):
            raise ValueError(f"its columns are not {', '.join(columns)}")
        _refuse_foreign_rows(table, manifest, ["seed", "step", *keys])
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    table.insert(0, "agent", manifest.job.agent)
    table.insert(1, "task", manifest.job.task)
    return table


def _refuse_foreign_rows(table: "pd.DataFrame", manifest: Manifest, keys: list[str]) -> None:
    """Raise ValueError if a row is of no seed, step or episode of the job, or stands twice."""
    job = manifest.job
    strange = table.loc[~table["seed"].isin(job.seeds), "seed"]
    if len(strange):
        raise ValueError(f"the job has no seed {strange.iloc[0]}")
    strange = table.loc[~table["step"].between(1, job.protocol.steps), "step"]
    if "episode" in keys:
        due = job.protocol.evaluated_steps(manifest.lengths)
        strange = table.loc[~table["step"].isin(due), "step"]
        episodes = table.loc[
            ~table["episode"].between(0, job.protocol.eval_episodes - 1), "episode"
        ]
        if len(episodes):
            raise ValueError(f"the job has no episode {episodes.iloc[0]}")
        if (table["length"] < 0).any():
            raise ValueError("an episode has a negative length")
    if len(strange):
        raise ValueError(f"the job has no such row at step {strange.iloc[0]}")
    twice = table[table.duplicated(keys)]
    if len(twice):
        row = ", ".join(f"{key} {twice.iloc[0][key]:g}" for key in keys)
        raise ValueError(f"it has {row} twice")


def note_of_uncertain(file: Path, rows: int) -> str:
    """Say that the metrics in the last ``rows`` of a training table are left out."""
    return (
        f"{file}: the metrics in its last {rows:,} rows stand under no certain name, as "
        "qsm_bench up to November 2026 wrote them; they are left out. Run the job anew under "
        "another --name to have them."
    )


def _rows(file: Path, manifest: Manifest) -> bytes:
    """Return a table's text: of a job that is not finished, up to its last whole row."""
    finished = manifest.status == "finished"
    known = manifest.checksums.get(file.name)
    if not file.exists():
        if finished and (known is not None or file.name == "evaluations.csv"):
            raise UserError(f"{file} is missing")
        return b""
    text = read(file, TABLE_LIMIT)
    if not finished:
        return text[: text.rfind(b"\n") + 1]
    if known not in (None, crc32(text)):
        raise UserError(f"{file} is damaged: it is not what its job wrote")
    return text
