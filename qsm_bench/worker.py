"""A job's own process: ``python -m qsm_bench.worker CELL_FOLDER``.

The manifest in the folder is the whole order, and the folder is where everything goes; nothing
is shared with the process that started it, so a job can run wherever the folder can be reached.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout

from agents.registry import AgentError
from envs import EnvironmentDiedError, TaskError
from qsm_bench.environment import describe_commit, describe_hardware, describe_versions
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted
from qsm_bench.files import write_atomically
from qsm_bench.process import FAILED, INTERRUPTED, REFUSED, settle
from qsm_bench.store import Cell, Manifest
from qsm_bench.training import Training


class Progress:
    """Tells, at most once a second, where the job stands."""

    def __init__(self, cell: Cell, training: Training) -> None:
        self.cell = cell
        self.training = training
        self.began = time.monotonic()
        self.written = 0.0
        self.first_step = training.step
        self.first_updates = training.updates
        self.first_train_seconds = training.train_seconds

    def __call__(self) -> None:
        if time.monotonic() - self.written >= 1.0:
            self.write()

    def write(self) -> None:
        """Tell it now."""
        now = self.written = time.monotonic()
        training, job = self.training, self.training.job
        steps = training.step - self.first_step
        updates = training.updates - self.first_updates
        train_seconds = training.train_seconds - self.first_train_seconds
        # Warm-up steps cost next to nothing: once there are updates, they set the pace.
        pace = (
            (now - self.began) / updates
            if updates
            else (now - self.began) / steps
            if steps
            else None
        )
        told = {
            "step": training.step,
            "steps": job.steps,
            "return": training.last_return,
            "updates_per_second": len(job.seeds) * updates / train_seconds
            if train_seconds and updates
            else None,
            "seconds_left": pace * (job.steps - training.step) if pace else None,
            "diverged": training.diverged,
            "pid": os.getpid(),
        }
        with suppress(OSError):  # a full disk is for the checkpoint to find
            write_atomically(self.cell.progress_file, json.dumps(told))


def work(
    folder: Annotated[Path, typer.Argument()],
    checkpoint_every: Annotated[int, typer.Option()],
    command: Annotated[str, typer.Option()] = "",
    parent: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Run the job of a cell to its end, or until SIGTERM."""
    cell = Cell(folder)
    manifest = cell.read_manifest()
    parent = parent or os.getppid()
    stopped = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    with suppress(OSError, ValueError):  # where standard error is no file
        faulthandler.enable()
    settle()
    try:
        with FileLock(cell.lock_file, timeout=0):
            _run(
                cell,
                manifest,
                checkpoint_every,
                command,
                # An orphan stops too: nobody is left to show it or to count its core.
                lambda: stopped or os.getppid() != parent,
            )
    except Timeout:
        print(f"{folder} is being written by another process", file=sys.stderr)
        raise SystemExit(FAILED) from None


def _run(
    cell: Cell,
    manifest: Manifest,
    checkpoint_every: int,
    command: str,
    stop: Callable[[], bool],
) -> None:
    manifest.status, manifest.reason, manifest.log_tail = "running", None, ()
    manifest.versions, manifest.commit = describe_versions(), describe_commit()
    manifest.hardware = describe_hardware(manifest.job.device)
    manifest.started = manifest.started or _now()
    manifest.command = command or manifest.command
    cell.write_manifest(manifest)
    training: Training | None = None
    try:
        training = Training(manifest.job, cell, checkpoint_every=checkpoint_every, stop=stop)
        progress = Progress(cell, training)
        training.run(progress)
        progress.write()
        training.sync()
        manifest.status = "finished"
        manifest.checksums = cell.checksums()
        _note(training, manifest)
        cell.write_manifest(manifest)
        training.checkpoint.drop_replay()
    except Interrupted:
        manifest.status = "interrupted"
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        manifest.status = "failed"
        manifest.reason = " ".join(f"{type(error).__name__}: {error}".split())
        expected = isinstance(error, (UserError, TaskError, AgentError))
        if expected:
            manifest.reason = str(error)
        elif isinstance(error, OSError) and error.strerror:
            manifest.reason = f"{error.filename or cell.folder}: {error.strerror}"
        traceback.print_exc()
        manifest.log_tail = cell.log_tail()
        again = not expected or isinstance(error, EnvironmentDiedError)
        raise SystemExit(FAILED if again else REFUSED) from None
    finally:
        if training:
            _note(training, manifest)
            training.close()
        manifest.finished = _now()
        cell.write_manifest(manifest)


def _note(training: Training, manifest: Manifest) -> None:
    """Write into the manifest how far the job has come."""
    manifest.step, manifest.updates = training.step, training.updates
    manifest.diverged = dict(training.diverged)
    manifest.train_seconds = round(training.train_seconds, 2)
    manifest.evaluation_seconds = round(training.evaluation_seconds, 2)
    manifest.checkpoint_seconds = round(training.checkpoint_seconds, 2)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    typer.run(work)
