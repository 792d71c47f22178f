"""The results of an experiment, read from its folder into tables."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from qsm_bench.errors import UserError
from qsm_bench.store import ExperimentStore, Manifest
from qsm_bench.tables import trusted

if TYPE_CHECKING:
    import pandas as pd

EVALUATION_COLUMNS = ("seed", "step", "episode", "return", "length")
TRAINING_COLUMNS = ("seed", "step", "wall_clock", "training_return")
SLICE_COLUMNS = ("seed", "step", "state", "action", "q", "share")


@dataclass(frozen=True)
class Results:
    """Everything statistics and reports read."""

    name: str
    experiment: dict[str, Any]
    cells: list[dict[str, Any]]
    """The manifests, flat: the job's fields beside the rest."""
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


def load_results(root: Path, name: str) -> Results:
    """Read an experiment, finished or not. Raises UserError if there is none of that name."""
    store = ExperimentStore(root, name)
    experiment = store.read()
    cells = list(store.cells())
    manifests = [cell.standing() for cell in cells]
    notes: list[str] = []
    return Results(
        name=name,
        experiment=experiment,
        cells=[
            {**m.job.model_dump(mode="json"), **m.model_dump(mode="json", exclude={"job"})}
            for m in manifests
        ],
        evaluations=_table([c.evaluations_file for c in cells], manifests, EVALUATION_COLUMNS),
        training=_table(
            [c.training_file for c in cells],
            manifests,
            TRAINING_COLUMNS,
            notes,
        ),
        diagnostics=_table([c.diagnostics_file for c in cells], manifests, ("seed", "step")),
        slices=_table([c.slices_file for c in cells], manifests, SLICE_COLUMNS),
        notes=tuple(notes),
    )


def _table(
    files: Sequence[Path],
    manifests: Sequence[Manifest],
    columns: Sequence[str],
    notes: list[str] | None = None,
) -> "pd.DataFrame":
    import pandas as pd

    tables = []
    for file, manifest in zip(files, manifests, strict=True):
        text = _rows(file, manifest)
        if text:
            if notes is not None:
                text, blank = trusted(text, len(columns))
                if blank:
                    notes.append(untrusted(file, blank))
            try:
                table = pd.read_csv(io.BytesIO(text))
            except ValueError as error:
                raise UserError(f"{file} cannot be read: {error}") from error
            table.insert(0, "agent", manifest.job.agent)
            table.insert(1, "task", manifest.job.task)
            tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["agent", "task", *columns])
    return pd.concat(tables, ignore_index=True)


def untrusted(file: Path, rows: int) -> str:
    """Say that the metrics in the last ``rows`` of a training table are left out."""
    return (
        f"{file}: the metrics in its last {rows:,} rows stand under no certain name, as "
        "qsm_bench up to November 2026 wrote them; they are left out. Run the cell anew under "
        "another --name to have them."
    )


def _rows(file: Path, manifest: Manifest) -> bytes:
    """A table's text: a finished cell's as it was written, another's up to its last whole row."""
    try:
        text = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if manifest.status != "finished":
        return text[: text.rfind(b"\n") + 1]
    if crc32(text) != manifest.checksums.get(file.name, crc32(text)):
        raise UserError(f"{file} is damaged: it is not what its job wrote")
    return text
