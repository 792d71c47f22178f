"""Curves that others have measured: imported into an experiment, and shown beside its own.

external/<label>/<task>.csv    step, return, seed
                 <task>.json   what was declared of it
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from pydantic import BaseModel, ConfigDict, ValidationError

from qsm_bench.errors import UserError, did_you_mean, first_fault
from qsm_bench.experiment import EXTERNAL_FOLDER
from qsm_bench.files import MIB, read, read_json, refuse_foreign, write_atomically
from qsm_bench.job_folder import TABLE_LIMIT
from qsm_bench.protocol import MOST_STEPS
from qsm_bench.store import ExperimentStore, as_folder
from qsm_bench.tables import as_csv, parse_table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "return", "seed")
TDMPC2 = {"env_step": "step", "return": "reward", "seed": "seed"}
"""The columns of TD-MPC2's published results, whose steps are environment steps."""
LARGEST = 1e15
"""No return lies beyond it."""


class Declaration(BaseModel):
    """What was said of a curve when it was imported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    task: str
    source: str
    """The name of the file that it was read from."""
    columns: dict[str, str]
    """Which of its columns holds step or env_step, return, and seed."""
    equal_protocol: bool
    """Whether it was declared that it was measured under the experiment's own protocol."""
    checksum: int
    """CRC-32 of the table."""


@dataclass(frozen=True)
class ExternalCurve:
    """What somebody else measured on a task."""

    declared: Declaration
    rows: "pd.DataFrame"
    """step, return, seed, in the order of seeds and steps; steps are decisions."""

    @property
    def name(self) -> str:
        """Its label, marked, as a report shows it."""
        return f"{self.declared.label} (external)"

    @property
    def task(self) -> str:
        """The task that it was measured on."""
        return self.declared.task


@dataclass(frozen=True)
class External:
    """All that was imported into an experiment."""

    curves: tuple[ExternalCurve, ...] = ()
    faults: tuple[str, ...] = ()
    """A line for every file that cannot be read, and is left out."""


def import_curves(
    store: ExperimentStore,
    source: Path,
    label: str,
    *,
    task: str | None = None,
    columns: Mapping[str, str] = TDMPC2,
    equal_protocol: bool = False,
) -> list[ExternalCurve]:
    """Read curves and keep them in an experiment, in the place of earlier ones of that label.

    ``source`` is a CSV file of one task, which its name says unless ``task`` does; or a folder with
    a file <task>.csv for each task, of which those of the experiment's tasks are read. Raises
    UserError, and writes nothing, if a file is not such a table, if the label is an agent's of the
    experiment, if no file fits its tasks, or if it is a record.
    """
    asked = store.read()
    store.refuse_published()
    _refuse_label(label, asked["agents"])
    if sorted(columns) not in (sorted(COLUMNS), sorted(TDMPC2)):
        raise UserError(
            f"--columns {_pairs(columns)!r} is not right: it names step or env_step, return and "
            "seed, as in step=frames,return=score,seed=run"
        )
    files = _files(store.folder.name, source, asked["tasks"], task)
    repeats = _action_repeats(store)
    curves = []
    for name, file in files.items():
        try:
            rows = _rows(read(file, TABLE_LIMIT), columns, repeats.get(name, 1))
        except ValueError as error:
            raise UserError(f"{file} cannot be imported: {error}") from error
        declared = Declaration(
            label=label,
            task=name,
            source=file.name,
            columns=dict(columns),
            equal_protocol=equal_protocol,
            checksum=crc32(_text(rows)),
        )
        curves.append(ExternalCurve(declared, rows))
    _write(store.folder / EXTERNAL_FOLDER / as_folder(label), curves)
    return curves


def load_external(store: ExperimentStore) -> External:
    """Read all that was imported; what is damaged is named and left out."""
    asked = store.read()
    curves: list[ExternalCurve] = []
    faults: list[str] = []
    for file in _declarations(store.folder / EXTERNAL_FOLDER, faults):
        try:
            curves.append(_load(file, asked["agents"], asked["tasks"]))
        except UserError as error:
            faults.append(f"{error}; import it again, or delete it")
    return External(tuple(curves), tuple(faults))


def parse_columns(text: str) -> dict[str, str]:
    """Read ``step=a,return=b,seed=c``. Raises UserError for text of another form."""
    columns = {}
    for pair in text.split(","):
        key, equals, column = pair.partition("=")
        if not (equals and key.strip() and column.strip()) or key.strip() in columns:
            raise UserError(
                f"--columns {text!r} is not right: write it as step=frames,return=score,seed=run"
            )
        columns[key.strip()] = column.strip()
    return columns


def _pairs(columns: Mapping[str, str]) -> str:
    return ",".join(f"{key}={column}" for key, column in columns.items())


def _refuse_label(label: str, agents: Sequence[str]) -> None:
    if not label.strip() or not label.isprintable() or len(label) > 200:
        raise UserError(
            f"--agent {label!r} is not right: a label has 1 to 200 printable characters"
        )
    if label in agents:
        raise UserError(f"--agent {label!r} is an agent of the experiment: choose another label")


def _files(name: str, source: Path, tasks: Sequence[str], task: str | None) -> dict[str, Path]:
    """The file of each task. Raises UserError if there is none."""
    if task is not None and task not in tasks:
        raise UserError(f"{name} has no task {task!r}: {did_you_mean(task, tasks)}")
    if not os.path.lexists(source):
        raise UserError(f"{source} is not there")
    if not source.is_dir():
        found = task or next((t for t in tasks if as_folder(t) == source.stem), None)
        if found is None:
            raise UserError(
                f"{source} is not named like a task of {name}: say which with --task, one of "
                f"{', '.join(tasks)}"
            )
        return {found: source}
    if task is not None:
        raise UserError(f"--task is for a file, and {source} is a folder: name a file in it")
    files = {t: source / f"{as_folder(t)}.csv" for t in tasks}
    there = {t: file for t, file in files.items() if os.path.lexists(file)}
    if not there:
        wanted = ", ".join(file.name for file in files.values())
        raise UserError(f"{source} has no file of a task of {name}: it would be {wanted}")
    return there


def _action_repeats(store: ExperimentStore) -> dict[str, int]:
    repeats = {}
    for folder in store.job_folders():
        with suppress(UserError):
            job = folder.read_manifest().job
            repeats[job.task] = job.protocol.action_repeat
    return repeats


def _rows(text: bytes, columns: Mapping[str, str], repeat: int) -> "pd.DataFrame":
    """Return the rows of a CSV file as step, return and seed. Raises ValueError, in one line."""
    import numpy as np
    import pandas as pd

    table = parse_table(text, whole=(), only=list(dict.fromkeys(columns.values())))
    steps = table[columns.get("step") or columns["env_step"]]
    seeds, returns = table[columns["seed"]], table[columns["return"]]
    for what, values, most in (("step", steps, MOST_STEPS), ("seed", seeds, 2**53)):
        wrong = values[~((values >= 0) & (values <= most) & (np.mod(values, 1) == 0))]
        if len(wrong):
            raise ValueError(f"{what} {wrong.iloc[0]:g} is no whole number from 0 to {most:,}")
    if "env_step" in columns:
        wrong = steps[steps % repeat != 0]
        if len(wrong):
            raise ValueError(
                f"environment step {wrong.iloc[0]:g} is within a decision: the experiment holds "
                f"an action for {repeat}"
            )
        steps = steps // repeat
    if (returns.abs() > LARGEST).any():
        raise ValueError(f"a return is beyond +-{LARGEST:g}")
    rows = pd.DataFrame(
        {"step": steps.astype("int64"), "return": returns.astype(float), "seed": seeds}
    ).astype({"seed": "int64"})
    if rows.empty:
        raise ValueError("it has no rows")
    twice = rows[rows.duplicated(["seed", "step"])]
    if len(twice):
        raise ValueError(
            f"it has seed {twice['seed'].iloc[0]}, step {twice['step'].iloc[0]} twice: give the "
            "mean return of each evaluation"
        )
    return rows.sort_values(["seed", "step"], ignore_index=True)


def _text(rows: "pd.DataFrame") -> bytes:
    return as_csv([{str(k): v for k, v in r.items()} for r in rows.to_dict("records")]).encode()


def _write(folder: Path, curves: Sequence[ExternalCurve]) -> None:
    """Write each curve's table, and what was declared of it after that."""
    try:
        for parent in (folder.parent, folder):
            refuse_foreign(parent, folder=True, remedy="delete it")
        folder.mkdir(parents=True, exist_ok=True)
        for curve in curves:
            file = folder / f"{as_folder(curve.declared.task)}.csv"
            write_atomically(file, _text(curve.rows))
            write_atomically(
                file.with_name(f"{as_folder(curve.declared.task)}.json"),
                curve.declared.model_dump_json(indent=2) + "\n",
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error


def _declarations(folder: Path, faults: list[str]) -> Iterator[Path]:
    """Yield what is declared of every curve; of a folder that is none, ``faults`` says so."""
    if not os.path.lexists(folder):
        return
    try:
        refuse_foreign(folder, folder=True, remedy="delete it")
        for label in sorted(folder.iterdir()):
            refuse_foreign(label, folder=True, remedy="delete it")
            yield from sorted(label.glob("*.json"))
    except UserError as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"{folder} cannot be read: {error.strerror}")


def _load(file: Path, agents: Sequence[str], tasks: Sequence[str]) -> ExternalCurve:
    """Read one curve. Raises UserError if it is not one that was imported."""
    try:
        declared = Declaration.model_validate(read_json(file, MIB))
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_fault(error)}") from error
    _refuse_label(declared.label, agents)
    if (as_folder(declared.label), as_folder(declared.task)) != (file.parent.name, file.stem):
        raise UserError(f"{file} is damaged: it is of another label or task")
    if declared.task not in tasks:
        raise UserError(f"{file} is of {declared.task!r}, which is no task of the experiment")
    table = file.with_name(f"{file.stem}.csv")
    text = read(table, TABLE_LIMIT)
    if crc32(text) != declared.checksum:
        raise UserError(f"{table} is damaged: it is not what was imported")
    try:
        return ExternalCurve(declared, _rows(text, {name: name for name in COLUMNS}, 1))
    except ValueError as error:
        raise UserError(f"{table} is damaged: {error}") from error
