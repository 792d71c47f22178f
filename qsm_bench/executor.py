"""Runs jobs in local processes, as many at a time as there are workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from filelock import FileLock, Timeout

from qsm_bench.store import Cell, Status

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0


def run_locally(
    cells: Sequence[Cell],
    *,
    workers: int,
    checkpoint_every: int,
    command: str,
    watch: Callable[[], None],
) -> None:
    """Run the cells' jobs; a job that dies is recorded as failed and takes no other with it.

    ``watch`` is called several times a second. On KeyboardInterrupt the jobs are asked to stop,
    save themselves, and the interrupt is raised again.
    """
    waiting = list(cells)
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                _mark(cell, "pending")
                running[cell] = _start(cell, checkpoint_every, command)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                _record_death(cell, running.pop(cell).returncode)
            watch()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _stop(running)
        raise


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


def _record_death(cell: Cell, status: int) -> None:
    """Mark a job whose process ended without a word as failed."""
    manifest = cell.read_manifest()
    if manifest.status in ("finished", "interrupted", "failed"):
        return
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    last = cell.log_tail(1)
    _mark(cell, "failed", f"its process ended by {how}" + (f": {last}" if last else ""))


def _mark(cell: Cell, status: Status, reason: str | None = None) -> None:
    """Write a cell's status, unless another process has the cell."""
    with suppress(Timeout), FileLock(cell.lock_file, timeout=0):
        manifest = cell.read_manifest()
        manifest.status, manifest.reason = status, reason
        cell.write_manifest(manifest)


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
            _mark(cell, "interrupted")
