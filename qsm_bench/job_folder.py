"""The folder of one job: its files, its lock, and its manifest as it is true now."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from filelock import FileLock, Timeout

from qsm_bench.counting import count
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job
from qsm_bench.files import MIB, plain_opener, read, read_json, refuse_foreign, write_atomically
from qsm_bench.groups import folder_name
from qsm_bench.heartbeat import liveness, process_name
from qsm_bench.manifest import (
    LaterFormatError,
    Manifest,
    is_open,
    read_manifest,
    refuse_nonsense,
)

GONE = "its process is gone"
"""The reason of a job that was interrupted, and whose process nobody has seen end."""

MANIFEST_FILE = "manifest.json"
TABLE_FILES = ("evaluations.csv", "training.csv", "diagnostics.csv", "slices.csv")
CHECKPOINT_FILES = ("state.pt", "previous.pt", "replay.f32")
TABLE_LIMIT = 1024 * MIB
"""The most bytes of a table that is still read."""


class JobFolder:
    """The folder of one job: an agent, a task and a group of seeds."""

    def __init__(
        self,
        path: Path,
        agent: str | None = None,
        task: str | None = None,
        seeds: tuple[int, ...] | None = None,
        job: str | None = None,
    ) -> None:
        """Name the agent, task, seeds and job that it must be of, if they are known."""
        self.path = path
        self.agent = agent
        self.task = task
        self.seeds = seeds
        self.job = job
        self.manifest_file = path / MANIFEST_FILE
        self.tables = tuple(path / name for name in TABLE_FILES)
        """The paths of the tables, whether they are there or not."""
        self.evaluations_file, self.training_file, self.diagnostics_file, self.slices_file = (
            self.tables
        )
        self.progress_file = path / "progress.json"
        self.log_file = path / "log.txt"
        self.queue_file = path / "queued.json"
        self.lock_file = path / ".lock"
        self.checkpoint = path / "checkpoint"
        self.checkpoint_files = tuple(self.checkpoint / name for name in CHECKPOINT_FILES)
        *_, self.replay_file = self.checkpoint_files

    @property
    def begun(self) -> bool:
        """Whether the folder holds anything of a job; if it has no manifest then, it is damaged."""
        files = (self.manifest_file, self.evaluations_file, self.checkpoint)
        return any(os.path.lexists(file) for file in files)

    @property
    def advice(self) -> str:
        """The advice for a folder that is damaged."""
        return f"delete {self.path} and run again to train this job from the start"

    def refuse_foreign(self, *, writing: bool = False) -> None:
        """Raise UserError if there is a link or anything else but plain files in plain folders."""
        above = [self.path.parent]
        if self.seeds is not None and self.path.name == folder_name(self.seeds):
            above.append(self.path.parent.parent)
        for folder in above:
            refuse_foreign(folder, folder=True, remedy="delete it")
        for folder in (self.path, self.checkpoint):
            refuse_foreign(folder, folder=True, remedy=self.advice)
        for file in (self.manifest_file, *self.tables, *self.checkpoint_files):
            refuse_foreign(file, writing=writing, remedy=self.advice)
        for file in (self.lock_file, self.progress_file, self.log_file, self.queue_file):
            refuse_foreign(file, writing=writing, remedy="delete it: nothing is lost with it")

    def read_manifest(self) -> Manifest:
        """Return the job's manifest.

        Raises UserError, with what to do, where the job is damaged: the file is missing, or it is
        not a manifest, or that of another job, or a link is there.
        """
        self.refuse_foreign()
        try:
            manifest = read_manifest(self.manifest_file)
            refuse_nonsense(self.manifest_file, manifest)
            for what, mine, named in (
                ("agent", self.agent, manifest.job.agent),
                ("task", self.task, manifest.job.task),
                ("seeds", self.seeds, manifest.job.seeds),
            ):
                if mine not in (None, named):
                    raise UserError(
                        f"{self.manifest_file} is of another job: of {what} {named!r}, and "
                        f"{mine!r} is right here"
                    )
            if self.job not in (None, manifest.job.identity):
                raise UserError(f"{self.manifest_file} is of another job than was asked for")
        except LaterFormatError:
            raise
        except UserError as error:
            raise UserError(f"{error}; {self.advice}") from error
        return manifest

    def change_manifest(self, before: Manifest, after: Manifest) -> None:
        """Replace the manifest if it changes. Raises UserError while the job runs."""
        if before == after:
            return
        with self.lock():
            self.write_manifest(after)

    def mark(self, **changes: Any) -> bool:
        """Change the manifest, unless the job is finished or another process has it.

        Return whether it was changed. What an earlier end has left in it is taken back.
        """
        self.refuse_foreign(writing=True)
        with suppress(Timeout), FileLock(self.lock_file, timeout=0):
            manifest = self.read_manifest()
            if manifest.status != "finished":
                manifest.end_stretch(self.read_progress())
                unsaid = {"reason": None, "log_tail": ()}
                self.write_manifest(manifest.model_copy(update=unsaid | changes))
                return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one writer. Raises UserError while another process writes it."""
        try:
            with FileLock(self.lock_file, timeout=0):
                yield
        except Timeout:
            who = process_name(self.read_progress())
            raise UserError(f"{self.path} is still written by {who}: wait for its end") from None

    def delete(self) -> None:
        """Delete what the job has written. Raises UserError while a process writes it."""
        with self.lock():
            notes = (self.progress_file, self.log_file, self.queue_file)
            half_written = self.checkpoint / "state.tmp"
            files = (self.manifest_file, *self.tables, *self.checkpoint_files, half_written)
            for file in (*files, *notes):
                file.unlink(missing_ok=True)
        self.lock_file.unlink(missing_ok=True)
        for folder in (self.checkpoint, self.path, *self.path.parents[:2]):
            remove_if_empty(folder)

    def refuse_without_replay(self, manifest: Manifest, job: Job) -> None:
        """Raise UserError if the job has finished, is to train on and has no replay buffer."""
        finished = manifest.status == "finished"
        if finished and is_open(manifest, job) and not self.replay_file.exists():
            raise UserError(
                f"{job.agent} on {job.task} has finished its "
                f"{count(manifest.job.protocol.steps, 'step')} "
                "and its replay buffer was not kept, so it cannot train on: choose another --name "
                "(a run with --keep-replay can be given more steps later)"
            )

    def read_current(self) -> Manifest:
        """Return the manifest as it is true now, for whoever only reads.

        A job that is running by its manifest, and has no process any more, was interrupted.
        Raises UserError as ``read_manifest`` does.
        """
        manifest = self.read_manifest()
        sign = self.read_progress()
        if manifest.status == "running" and liveness(sign) == "gone":
            manifest = self.read_manifest()  # it may have come to its end in between
        if manifest.status == "running" and liveness(sign) == "gone":
            manifest.status, manifest.reason = "interrupted", GONE
            manifest.end_stretch(sign)
            if manifest.stretches:
                manifest.step = max(manifest.step, manifest.stretches[-1].last_step)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.manifest_file, manifest.model_dump_json(indent=2) + "\n", sync=True)

    def read_progress(self) -> dict[str, Any]:
        """Return the job's last sign of life; it is empty before the first one."""
        return read_sign(self.progress_file)

    def log_tail(self, lines: int = 5) -> tuple[str, ...]:
        """Return the last lines that the job printed."""
        try:
            with open(self.log_file, "rb", opener=plain_opener) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
                return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
        except (OSError, UserError):
            return ()

    def checksums(self) -> dict[str, int]:
        """Return the CRC-32 of each table that is there, by file name."""
        return {f.name: crc32(read(f, TABLE_LIMIT)) for f in self.tables if f.exists()}


def read_sign(file: Path) -> dict[str, Any]:
    """Return the sign of life in a file; it is empty where there is none."""
    try:
        sign = read_json(file, MIB)
    except UserError:
        return {}
    return sign if isinstance(sign, dict) else {}


def remove_if_empty(folder: Path) -> None:
    """Remove a folder; one that holds anything stays."""
    with suppress(OSError):
        folder.rmdir()
