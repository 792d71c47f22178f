"""A process of its own for a test, without the seconds that starting Python and torch takes."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch._dynamo  # noqa: F401 - or each copy would import it for its first optimizer

from qsm_bench import worker
from qsm_bench.executors import Work, processes
from qsm_bench.executors.processes import Place, run_locally
from qsm_bench.job_folder import JobFolder


def fork(work: Callable[[], object]) -> int:
    """Call ``work`` in a copy of this process, which then ends; return its id at once."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(process: int) -> int:
    """Wait for a forked process; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_jobs(
    folders: Sequence[JobFolder],
    *,
    workers: int = 8,
    checkpoint_every: int = 10,
    on_poll: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[JobFolder, str]:
    """Run jobs on this machine; return those that did not finish, and why."""
    work = Work(folders[0].path.parent, checkpoint_every, "", on_poll, stop)
    return run_locally(folders, work, workers=workers)


@contextmanager
def made_up_jobs(job: type) -> Iterator[None]:
    """Let the processes of jobs be objects of a class with the methods of Popen, and no more."""
    with (
        patch.multiple(
            processes,
            _start=job,
            _end=lambda *_: ("finished", ""),
            reap_adopted=lambda _: None,
            POLL_SECONDS=0,
        ),
        patch.object(JobFolder, "mark", lambda *_, **__: True),
        patch.object(processes.Orphans, "hold", lambda *_: False),
    ):
        yield


class ForkedJob:
    """A job in a forked process, with the methods of Popen that the executor uses."""

    stdin = None

    def __init__(self, folder: JobFolder, work: Work, place: Place) -> None:
        def train() -> None:
            with folder.log_file.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            worker.work(
                folder.path,
                checkpoint_every=work.checkpoint_every,
                command=work.command,
                job=folder.job,
                cores=place.cores,
            )

        self.pid = fork(train)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def crowding() -> float:
    """Return how many times longer a time limit must be while others use the machine too."""
    return max(1.0, 2.0 * os.getloadavg()[0] / (os.cpu_count() or 1))
