"""What runs inside a task of SLURM: some jobs of an experiment, as on a machine of their own."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from qsm_bench.errors import UserError
from qsm_bench.executors.executor import Work
from qsm_bench.executors.processes import run_locally
from qsm_bench.executors.slurm_queue import slurm
from qsm_bench.job_folder import JobFolder
from qsm_bench.machine import visible_gpus
from qsm_bench.signals import remember_signals


@dataclass(frozen=True)
class SlurmTask:
    """Some jobs that share a task, ``width`` at a time. It is pickled for the task to run."""

    folder: Path
    jobs: tuple[JobFolder, ...]
    device: str
    width: int
    checkpoint_every: int
    command: str
    requeue: bool

    def __call__(self) -> None:
        """Run the jobs. Before the time limit they are saved, and the task is queued again."""
        jobs = [job for job in self.jobs if not (_resumed() and _has_failed(job))]
        gpus = visible_gpus() if self.device == "cuda" else ()
        with _time_limit() as limit, remember_signals() as received:
            work = Work(
                self.folder,
                self.checkpoint_every,
                self.command,
                stop=lambda: bool(received) or limit.near,
            )
            unfinished = run_locally(jobs, work, workers=self.width, gpus=gpus)
            for job, reason in unfinished.items():
                print(f"not finished: {job.path}: {reason}", flush=True)
            if limit.near and self.requeue and not received:
                slurm("scontrol", "requeue", _own_name())


class TimeLimit:
    """Whether SLURM has said, by SIGUSR1, that the time limit is near."""

    def __init__(self) -> None:
        self.said = False

    @property
    def near(self) -> bool:
        """Whether the limit is near."""
        # The main thread holds the signal back. Another thread may get it, or none.
        return self.said or signal.SIGUSR1 in signal.sigpending()

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.said = True


@contextmanager
def _time_limit() -> Iterator[TimeLimit]:
    """Hear SIGUSR1 in here, and start processes that are not killed by it.

    SLURM sends it to every process of the task. What this thread blocks, its children block too.
    """
    limit = TimeLimit()
    before = signal.signal(signal.SIGUSR1, limit.hear)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield limit
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that is held back ends here
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)


def _own_name() -> str:
    """The name of this task for SLURM's commands."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _resumed() -> bool:
    """Whether the task was queued again after it had begun."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def _has_failed(job: JobFolder) -> bool:
    with suppress(UserError):  # a damaged one is told of when it is to be started
        return job.read_manifest().status == "failed"
    return False
