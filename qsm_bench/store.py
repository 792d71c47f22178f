"""The results on disk: one folder an experiment, one a cell; written by append or atomic rename.

results/<experiment>/experiment.json
results/<experiment>/<agent>/<task>/manifest.json     what ran, and how it went
                                    evaluations.csv   seed, step, episode, return, length
                                    training.csv      seed, step, wall clock, metrics
                                    diagnostics.csv   seed, step, measures of policy and critic
                                    slices.csv        seed, step, state, action, q, share: the last
                                    progress.json     where a running job stands
                                    log.txt           what the job printed
                                    checkpoint/       agent state and replay log
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from zlib import crc32

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from qsm_bench.errors import UserError, near
from qsm_bench.experiment import Experiment, Job
from qsm_bench.files import write_atomically
from qsm_bench.heartbeat import Heartbeat, life, moment, named
from qsm_bench.stretches import Stretch, from_top_level

FORMAT = 1
"""Of the folder's files. A store of a later one is refused; files of before it had a name are 1.

It rises when an earlier version would misread what this one writes. A field that is only added,
with a default, leaves it as it is: an earlier version refuses the manifest in a line that names
the field, and this one reads a manifest without it."""

GONE = "its process is gone"
"""Why a cell was cut off whose process nobody has seen end."""

Status = Literal["pending", "running", "finished", "failed", "interrupted"]


class SeedFailure(BaseModel):
    """What ended one seed of a job, while the others went on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    reason: str
    """In one line."""


class Manifest(BaseModel):
    """What a cell is and how it went."""

    model_config = ConfigDict(extra="forbid")

    job: Job
    format: int = FORMAT
    status: Status = "pending"
    reason: str | None = None
    """Why it failed, in one line."""
    log_tail: tuple[str, ...] = ()
    """The last lines that a failed job printed."""
    retried: str | None = None
    """Why it was started a second time, from its checkpoint."""
    diverged: dict[int, int] = {}
    """Seeds whose loss turned non-finite, each with its step; from there on returns are NaN."""
    failed_seeds: dict[int, SeedFailure] = {}
    """Seeds whose environment failed; from there on their returns are NaN."""
    warnings: tuple[str, ...] = ()
    """What a user should know of the run, a line each."""
    step: int = 0
    updates: int = 0
    """Gradient updates of each seed so far."""
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    stretches: tuple[Stretch, ...] = ()
    """Every stretch of the run, in order: where it was cut off, the next one begins."""
    checksums: dict[str, int] = {}
    """CRC-32 of a finished cell's tables, by file name."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, content: Any) -> Any:
        return from_top_level(content)

    def end_stretch(self, told: dict[str, Any]) -> None:
        """Give the last stretch, if it was cut off, the end that its last sign of life tells."""
        if self.stretches and self.stretches[-1].ended is None:
            *earlier, last = self.stretches
            at, step = moment(told), told.get("step")
            ended = at.astimezone(UTC).isoformat(timespec="seconds") if at else last.started
            reached = step if type(step) is int and 0 <= step <= self.job.steps else 0
            end = {"ended": ended, "last_step": max(last.first_step, last.last_step, reached)}
            self.stretches = (*earlier, last.model_copy(update=end))


class Cell:
    """The folder of one (agent, task) cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_file = folder / "manifest.json"
        self.evaluations_file = folder / "evaluations.csv"
        self.training_file = folder / "training.csv"
        self.diagnostics_file = folder / "diagnostics.csv"
        self.slices_file = folder / "slices.csv"
        self.progress_file = folder / "progress.json"
        self.log_file = folder / "log.txt"
        self.lock_file = folder / ".lock"
        self.checkpoint = folder / "checkpoint"

    def read_manifest(self) -> Manifest:
        """The cell's manifest. Raises UserError if the file is missing or is not one."""
        return _read_manifest(self.manifest_file)

    def standing(self) -> Manifest:
        """The manifest as it is now: what runs by it, and has no process any more, was cut off.

        For whoever only reads. Raises UserError as ``read_manifest`` does.
        """
        manifest = self.read_manifest()
        told = self.read_progress()
        if manifest.status == "running" and life(told) == "gone":
            manifest.status, manifest.reason = "interrupted", GONE
            manifest.end_stretch(told)
            if manifest.stretches:
                manifest.step = max(manifest.step, manifest.stretches[-1].last_step)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.manifest_file, manifest.model_dump_json(indent=2) + "\n", sync=True)

    def read_progress(self) -> dict[str, Any]:
        """Where the job stands, as its worker last said; empty before that."""
        return read_sign(self.progress_file)

    def log_tail(self, lines: int = 5) -> tuple[str, ...]:
        """The last lines the job printed."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 10_000))
                return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ()

    def checksums(self) -> dict[str, int]:
        """Of the tables that are there."""
        tables = (
            self.evaluations_file,
            self.training_file,
            self.diagnostics_file,
            self.slices_file,
        )
        return {file.name: crc32(file.read_bytes()) for file in tables if file.exists()}


class ExperimentStore:
    """The folder of one experiment."""

    def __init__(self, root: Path, name: str) -> None:
        # Absolute, before a task or an agent can change the working directory.
        self.folder = root.absolute() / name
        self.file = self.folder / "experiment.json"
        self.holder_file = self.folder / ".holder"

    def cell(self, agent: str, task: str) -> Cell:
        """The folder of a cell; a label or Gymnasium id may hold characters a path may not."""
        return Cell(self.folder / _as_folder(agent) / _as_folder(task))

    def is_finished(self, job: Job) -> bool:
        """Whether the job's cell is there and finished. Raises UserError if it cannot be read."""
        cell = self.cell(job.agent, job.task)
        return cell.manifest_file.exists() and cell.read_manifest().status == "finished"

    def existing_cell(self, agent: str, task: str) -> Cell:
        """The folder of a cell that was asked for. Raises UserError if it was not."""
        asked = self.read()
        for what, value, known in (
            ("agent", agent, asked["agents"]),
            ("task", task, asked["tasks"]),
        ):
            if value not in known:
                raise UserError(f"{self.folder.name} has no {what} {value!r}: {near(value, known)}")
        return self.cell(agent, task)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for one writer.

        Raises UserError that names the process that has it, or says why it cannot be written.
        """
        lock = FileLock(self.folder / ".lock", timeout=0)
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"experiment {self.folder.name!r} is being run by "
                    f"{self.holder() or 'another process'}: wait for it, or choose another --name"
                ) from None
        try:
            with Heartbeat(self.holder_file):
                yield
        finally:
            with suppress(OSError):
                self.holder_file.unlink(missing_ok=True)
            lock.release()

    def holder(self) -> str | None:
        """Who is running the experiment now, in words; None if nobody is.

        The lock is not touched: whoever asks must not be in the way of one who wants to run.
        """
        told = read_sign(self.holder_file)
        return named(told) if life(told) != "gone" else None

    def cells(self) -> Iterator[Cell]:
        """The cells on disk, in the order they were asked for."""
        asked = self.read()
        for task in asked["tasks"]:
            for agent in asked["agents"]:
                cell = self.cell(agent, task)
                if cell.manifest_file.exists():
                    yield cell

    def read(self) -> dict[str, Any]:
        """What was asked. Raises UserError if there is no such experiment."""
        if not self.file.exists():
            known = sorted(p.parent.name for p in self.folder.parent.glob("*/experiment.json"))
            hint = near(self.folder.name, known) if known else "none has been run yet"
            raise UserError(f"no experiment {self.folder.name!r} in {self.folder.parent}: {hint}")
        try:
            asked: dict[str, Any] = json.loads(self.file.read_text("utf-8"))
            _refuse_later(self.file, asked)
            for names in (asked["agents"], asked["tasks"]):
                if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
                    raise TypeError("agents and tasks must be lists of names")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file} cannot be read: {error!r}") from error
        return asked

    def add_column(self, agent: str) -> None:
        """Name a column that something other than ``run`` has filled, so that reports show it."""
        asked = self.read()
        asked["agents"] = list(dict.fromkeys([*asked["agents"], agent]))
        write_atomically(self.file, json.dumps(asked, indent=2) + "\n")

    def prepare(self, experiment: Experiment, command: str) -> list[Cell]:
        """Lay out the cells of ``experiment``, or find them as an earlier run left them.

        Agents and tasks may be added to an experiment; a cell that is there must be the same job.
        Raises UserError with the difference if it is not; nothing is written then.
        """
        asked = self.read() if self.file.exists() else {"agents": [], "tasks": []}
        jobs = list(experiment.jobs())
        cells = [self.cell(job.agent, job.task) for job in jobs]
        for cell, job in zip(cells, jobs, strict=True):
            if cell.manifest_file.exists():
                _refuse_difference(experiment.name, cell.read_manifest().job, job)
        asked |= {
            "format": FORMAT,
            "name": experiment.name,
            "agents": list(
                dict.fromkeys([*asked["agents"], *(a.label for a in experiment.agents)])
            ),
            "tasks": list(dict.fromkeys([*asked["tasks"], *experiment.tasks])),
            "seeds": list(jobs[0].seeds),
            "steps": experiment.steps,
            "warmup_steps": experiment.warmup_steps,
            "batch_size": experiment.batch_size,
            "replay_capacity": jobs[0].replay_capacity,
            "eval_every": experiment.eval_every,
            "eval_episodes": experiment.eval_episodes,
            "device": experiment.device,
            "compiled": experiment.compiled,
            "command": command,
        }
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(asked, indent=2) + "\n")
            for cell, job in zip(cells, jobs, strict=True):
                if not cell.manifest_file.exists():
                    cell.write_manifest(Manifest(job=job))
        return cells


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Tell in one line why a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _refuse_later(file: Path, content: Any) -> None:
    """Raise UserError if a file is of a later format than this version reads."""
    written = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if isinstance(written, int) and written > FORMAT:
        raise UserError(
            f"{file} was written by a later version of qsm_bench, in format {written}; this one "
            f"reads formats up to {FORMAT}: upgrade qsm_bench"
        )


def _as_folder(name: str) -> str:
    folder = quote(name, safe=" []=,.+-_:")
    return folder if folder.strip(".") else folder.replace(".", "%2E")


def read_sign(file: Path) -> dict[str, Any]:
    """The content of a small file that another process may write; empty if it has none."""
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _read_manifest(file: Path) -> Manifest:
    try:
        text = file.read_text("utf-8")
        with suppress(ValueError):
            _refuse_later(file, json.loads(text))
        return Manifest.model_validate_json(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{file} is not a manifest of this version: {where}: {first['msg']}"
        ) from error


def _refuse_difference(name: str, there: Job, asked: Job) -> None:
    old, new = there.model_dump(mode="json"), asked.model_dump(mode="json")
    old |= {f"settings.{key}": value for key, value in old.pop("settings").items()}
    new |= {f"settings.{key}": value for key, value in new.pop("settings").items()}
    changed = [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"experiment {name!r} has {asked.agent} on {asked.task} with another configuration "
            f"({'; '.join(changed)}): choose another --name"
        )
