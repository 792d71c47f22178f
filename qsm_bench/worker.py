"""A job's own process: ``python -m qsm_bench.worker JOB_FOLDER``.

The manifest in the folder is the whole order, and the folder is where everything goes; nothing
is shared with the process that started it, so a job can run wherever the folder can be reached.
"""

import faulthandler
import operator
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from filelock import FileLock, Timeout

from envs import EnvironmentDiedError
from qsm_bench.errors import reason_of, user_errors
from qsm_bench.evaluation import Interrupted
from qsm_bench.heartbeat import Heartbeat
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.process import FAILED, INTERRUPTED, REFUSED, configure_process
from qsm_bench.provenance import begin_stretch, now
from qsm_bench.signals import StopRequest, lifeline_of_stdin
from qsm_bench.training import Training
from qsm_bench.user_modules import refuse_unnamed_modules


class Moment(NamedTuple):
    """Where a training stood, and when."""

    seconds: float
    step: int
    updates: int
    train_seconds: float


class Progress:
    """Says where a running job stands; the thread that gives its signs of life calls it."""

    def __init__(self) -> None:
        self.training: Training | None = None
        self.began: Moment
        self.updating: Moment | None = None
        """When updates were first seen: the warm-up, and compiling, say nothing of their pace."""

    def follow(self, training: Training) -> None:
        """Say where this training stands from now on."""
        self.began, self.updating = moment(training), None
        self.training = training

    def __call__(self) -> dict[str, Any]:
        """Return where the job stands and how long it will take; nothing before it has begun."""
        training = self.training
        if training is None:
            return {}
        job, now = training.job, moment(training)
        if self.updating is None and now.updates > self.began.updates:
            self.updating = now
        since = self.began
        if self.updating and now.step > self.updating.step:
            since = self.updating
        seconds, steps, updates, train_seconds = map(operator.sub, now, since)
        left = job.protocol.steps - now.step
        return {
            "step": now.step,
            "steps": job.protocol.steps,
            "saved": training.saved,
            "return": training.last_return,
            "updates_per_second": len(job.seeds) * updates / train_seconds
            if train_seconds and updates
            else None,
            "seconds_left": left * seconds / steps if steps else None,
            "diverged": dict(training.status.diverged),
            "failed_seeds": {s: f.model_dump() for s, f in dict(training.status.failed).items()},
        }


def moment(training: Training) -> Moment:
    """Return where the training stands now."""
    return Moment(time.monotonic(), training.step, training.updates, training.train_seconds)


def work(
    path: Annotated[Path, typer.Argument()],
    checkpoint_every: Annotated[int, typer.Option()],
    command: Annotated[str, typer.Option()] = "",
    lifeline: Annotated[bool, typer.Option("--lifeline")] = False,
    cores: Annotated[int | None, typer.Option()] = None,
    job: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Run the job in ``path`` to its end, or until it is asked to stop.

    It must be the one whose identity is ``job``: that is the one that the user has asked for, and
    only that one may import modules of the user's own. With ``lifeline``, the end of standard
    input asks it to stop: see ``StopRequest``.
    """
    folder = JobFolder(path.absolute(), job=job)  # a task may change the working directory
    folder.refuse_foreign(writing=True)
    if job is None:
        refuse_unnamed_modules(folder.read_manifest().job, ())
    with suppress(OSError, ValueError):  # where standard error is no file
        faulthandler.enable()
    configure_process()
    with StopRequest(lifeline_of_stdin() if lifeline else None) as stop:
        try:
            with FileLock(folder.lock_file, timeout=0):
                _run(folder, checkpoint_every, command, stop, cores)
        except Timeout:
            print(f"{path} is being written by another process", file=sys.stderr)
            raise SystemExit(FAILED) from None


def _run(
    folder: JobFolder, checkpoint_every: int, command: str, stop: StopRequest, cores: int | None
) -> None:
    manifest = folder.read_manifest()
    manifest.end_stretch(folder.read_progress())
    progress = Progress()
    with Heartbeat(folder.progress_file, progress) as heartbeat:
        _begin(manifest, command)
        folder.write_manifest(manifest)
        _train(folder, manifest, checkpoint_every, progress, heartbeat, stop, cores)


def _train(
    folder: JobFolder,
    manifest: Manifest,
    checkpoint_every: int,
    progress: Progress,
    heartbeat: Heartbeat,
    stop: StopRequest,
    cores: int | None,
) -> None:
    training: Training | None = None
    try:
        training = Training(
            manifest.job, folder, checkpoint_every=checkpoint_every, stop=stop, cores=cores
        )
        stop.take_signals()  # whatever the environments have made of the signals
        progress.follow(training)
        manifest.stretches[-1].first_step = training.step
        if training.warnings:
            manifest.warnings = training.warnings
            print(*(f"warning: {line}" for line in training.warnings), sep="\n", file=sys.stderr)
        folder.write_manifest(manifest)
        training.run()
        training.tables.sync()
        manifest.status = "finished"
        manifest.checksums = folder.checksums()
        _note(training, manifest)
        heartbeat.write()  # whoever reads that it is finished finds its last return
        folder.write_manifest(manifest)
        training.checkpoint.tidy(keep_replay=manifest.keep_replay)
    except Interrupted:
        manifest.status = "interrupted"
        raise SystemExit(INTERRUPTED) from None
    except (Exception, KeyboardInterrupt) as error:  # Ctrl-C itself is ``stop``'s
        manifest.status = "failed"
        traceback.print_exc()
        expected = isinstance(error, user_errors())
        if expected:
            manifest.reason = str(error)
        elif isinstance(error, OSError) and error.strerror:
            manifest.reason = f"{error.filename or folder.path}: {error.strerror}"
        else:  # a line cannot say it all: the last lines of the log stand beside it
            manifest.reason = reason_of(error)
            manifest.log_tail = folder.log_tail()
        again = not expected or isinstance(error, EnvironmentDiedError)
        raise SystemExit(FAILED if again else REFUSED) from None
    finally:
        if training:
            _note(training, manifest)
            training.close()
        heartbeat.write()
        manifest.stretches[-1].ended = now()
        folder.write_manifest(manifest)


def _begin(manifest: Manifest, command: str) -> None:
    """Note in the manifest that a stretch begins."""
    manifest.status, manifest.reason, manifest.log_tail = "running", None, ()
    stretch = begin_stretch(manifest.job.device, command)
    stretch.first_step = stretch.last_step = manifest.step
    manifest.stretches += (stretch,)


def _note(training: Training, manifest: Manifest) -> None:
    """Note in the manifest how far the job has come."""
    manifest.step, manifest.updates = training.step, training.updates
    manifest.stretches[-1].last_step = training.step
    manifest.diverged = dict(training.status.diverged)
    manifest.failed_seeds = dict(training.status.failed)
    manifest.train_seconds = round(training.train_seconds, 2)
    manifest.evaluation_seconds = round(training.evaluation_seconds, 2)
    manifest.checkpoint_seconds = round(training.checkpoint_seconds, 2)


if __name__ == "__main__":
    typer.run(work)
