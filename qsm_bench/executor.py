"""Runs jobs in local processes, as many at a time as there are workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from qsm_bench.errors import UserError
from qsm_bench.process import REFUSED
from qsm_bench.store import Cell, Status

POLL_SECONDS = 0.2
GRACE_SECONDS = 4.0
"""For a job to save itself after Ctrl-C; it is killed then, and has its last checkpoint."""


def run_locally(
    cells: Sequence[Cell],
    *,
    workers: int,
    checkpoint_every: int,
    command: str,
    watch: Callable[[], None],
) -> dict[Cell, str]:
    """Run the cells' jobs; return those that did not finish, and why.

    A job that dies takes no other with it: it is started once more, from its checkpoint, and then
    recorded as failed. One that cannot be done as it was asked would fail again: it is recorded at
    once. ``watch`` is called several times a second. On KeyboardInterrupt the jobs are asked to
    stop, save themselves, and the interrupt is raised again.
    """
    waiting = list(cells)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    died: dict[Cell, str] = {}
    unfinished: dict[Cell, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                try:
                    _mark(cell, status="pending", retried=died.get(cell))
                    running[cell] = _start(cell, checkpoint_every, command)
                except (OSError, UserError) as error:
                    unfinished[cell] = f"it cannot be started: {error}"
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                exit_status = running.pop(cell).returncode
                status, reason = _end(cell, exit_status)
                if status == "failed" and exit_status != REFUSED and cell not in died:
                    died[cell] = reason
                    waiting.insert(0, cell)
                elif status != "finished":
                    unfinished[cell] = reason
                    if status == "failed":
                        _record_failure(cell, reason)
            watch()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(running)
        raise
    return unfinished


def _start(cell: Cell, checkpoint_every: int, command: str) -> subprocess.Popen[bytes]:
    # One thread a job: as many jobs as cores beat one job on all cores.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with cell.log_file.open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "qsm_bench.worker", str(cell.folder)),
                f"--checkpoint-every={checkpoint_every}",
                f"--command={command}",
                f"--parent={os.getpid()}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | threads,
            # Out of the terminal's process group: Ctrl-C is for the parent to handle.
            start_new_session=True,
        )


def _end(cell: Cell, exit_status: int) -> tuple[Status, str]:
    """How a job whose process has ended came out, and why if it did not finish."""
    last = cell.log_tail(1)
    how = f"exit status {exit_status}"
    if exit_status < 0:
        how = f"signal {signal.Signals(-exit_status).name}"
    ended = f"its process ended by {how}" + (f": {last[0]}" if last else "")
    try:
        manifest = cell.read_manifest()
    except UserError as error:
        return "failed", f"{ended}; {error}"
    if manifest.status == "finished":
        return "finished", ""
    if manifest.status == "interrupted":
        return "interrupted", "it was asked to stop, and is saved"
    if manifest.status == "failed" and manifest.reason:
        return "failed", manifest.reason
    return "failed", ended


def _record_failure(cell: Cell, reason: str) -> None:
    # Where the manifest cannot be written, as on a full disk, run_locally's answer is all there is.
    with suppress(OSError, UserError):
        _mark(cell, status="failed", reason=reason, log_tail=cell.log_tail())


def _mark(cell: Cell, **changes: Any) -> None:
    """Write what a cell's manifest now says, unless another process has the cell."""
    with suppress(Timeout), FileLock(cell.lock_file, timeout=0):
        unsaid = {"reason": None, "log_tail": ()}
        cell.write_manifest(cell.read_manifest().model_copy(update=unsaid | changes))


def _stop(running: dict[Cell, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for cell, process in running.items():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            with suppress(OSError, UserError):
                _mark(cell, status="interrupted")
