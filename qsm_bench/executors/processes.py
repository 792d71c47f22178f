"""Runs jobs in processes of this machine, as many at a time as there are workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from qsm_bench.errors import UserError
from qsm_bench.executors.executor import Work
from qsm_bench.files import plain_opener
from qsm_bench.heartbeat import process_name
from qsm_bench.job_folder import JobFolder
from qsm_bench.machine import usable_cores
from qsm_bench.manifest import Status
from qsm_bench.process import REFUSED
from qsm_bench.signals import GRACE_SECONDS, kill_family, kill_group, reap_adopted

POLL_SECONDS = 0.2
ORPHAN_SECONDS = 60.0
"""How long a job may take to end that an earlier run left behind when it was killed."""


@dataclass(frozen=True)
class Place:
    """Where a job's process runs on this machine."""

    cores: int
    """How many cores its environments may use."""
    gpu: str | None = None
    """The one GPU that it sees, by the name that CUDA_VISIBLE_DEVICES has for it."""


def run_locally(
    folders: Sequence[JobFolder],
    work: Work,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    cores: int | None = None,
) -> dict[JobFolder, str]:
    """Run the jobs of the folders; return those that did not finish, and why.

    At most ``workers`` run at a time, each on the GPU of ``gpus`` that has the fewest of them, and
    they share the ``cores``, or all that this process may use. A job that dies takes no other with
    it: it is started once more, from its checkpoint, and then recorded as failed. One that cannot
    be done as it was asked would fail again: it is recorded at once. A job that an earlier run's
    process still writes is waited for, and ``work.say`` is told. Jobs that are stopped and do not
    end within ``GRACE_SECONDS`` are killed; those that could not be saved are among what is
    returned.
    """
    waiting = list(folders)
    running: dict[JobFolder, subprocess.Popen[bytes]] = {}
    places: dict[JobFolder, Place] = {}
    died: dict[JobFolder, str] = {}
    unfinished: dict[JobFolder, str] = {}
    orphans = Orphans(work.say)
    cores = max(1, (cores or usable_cores()) // max(1, min(workers, len(waiting))))
    try:
        while (waiting or running) and not work.stop():
            ended = [folder for folder, process in running.items() if process.poll() is not None]
            for folder in ended:
                process = running.pop(folder)
                status, reason = _end(folder, process)
                again = status == "failed" and process.returncode != REFUSED
                if again and folder not in died:
                    died[folder] = reason
                    waiting.insert(0, folder)
                elif status != "finished":
                    unfinished[folder] = reason
                    if status == "failed":
                        # What was refused is said whole in its reason.
                        tail = () if process.returncode == REFUSED else folder.log_tail()
                        _record(folder, status="failed", reason=reason, log_tail=tail)
            for folder in list(waiting):
                if len(running) >= workers:
                    break
                try:
                    if orphans.hold(folder):
                        continue
                    waiting.remove(folder)
                    if folder.mark(status="pending", retried=died.get(folder)):
                        taken = [places[other].gpu for other in running]
                        places[folder] = Place(cores, min(gpus, key=taken.count, default=None))
                        running[folder] = _start(folder, work, places[folder])
                except (OSError, UserError) as error:
                    if folder in waiting:
                        waiting.remove(folder)
                    unfinished[folder] = f"it cannot be started: {error}"
            reap_adopted({process.pid for process in running.values()})
            work.on_poll()
            time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(running)
        raise
    return unfinished | _stop(running)


class Orphans:
    """Waits for jobs of an earlier run that was killed: they save themselves and end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.since: dict[JobFolder, float] = {}

    def hold(self, folder: JobFolder) -> bool:
        """Return whether one still writes the job. Raises UserError if it has for too long."""
        try:
            with FileLock(folder.lock_file, timeout=0):
                return False
        except Timeout:
            now = time.monotonic()
            who = f"{process_name(folder.read_progress())}, left behind by an earlier run"
            if folder not in self.since:
                self.say(f"waiting for {who}, to save {folder.path} and end")
            if now - self.since.setdefault(folder, now) > ORPHAN_SECONDS:
                raise UserError(f"{who}, still writes it: end that process") from None
            return True


def _start(folder: JobFolder, work: Work, place: Place) -> subprocess.Popen[bytes]:
    """Start a process for a job; what it prints goes to its log."""
    # One thread a job: as many jobs as cores beat one job on all cores.
    changes = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if place.gpu is not None:
        changes["CUDA_VISIBLE_DEVICES"] = place.gpu
    with open(folder.log_file, "ab", opener=plain_opener) as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "qsm_bench.worker", str(folder.path)),
                f"--checkpoint-every={work.checkpoint_every}",
                f"--command={work.command}",
                f"--cores={place.cores}",
                "--lifeline",
                *([f"--job={folder.job}"] if folder.job else []),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | changes,
            # Out of the terminal's process group: Ctrl-C is for the parent to handle.
            start_new_session=True,
        )


def _end(folder: JobFolder, process: subprocess.Popen[bytes]) -> tuple[Status, str]:
    """Return the status of a job whose process has ended, and why it did not finish."""
    kill_group(process.pid)  # compilers and environments that a killed job has left
    exit_status, last = process.returncode, folder.log_tail(1)
    how = f"exit status {exit_status}"
    if exit_status < 0:
        how = f"signal {signal.Signals(-exit_status).name}"
    ended = f"its process ended by {how}" + (f": {last[0]}" if last else "")
    try:
        manifest = folder.read_manifest()
    except UserError as error:
        return "failed", f"{ended}; {error}"
    if manifest.status == "finished":
        return "finished", ""
    if manifest.status == "interrupted":
        return "interrupted", "it was asked to stop, and is saved"
    if manifest.status == "failed" and manifest.reason:
        return "failed", manifest.reason
    return "failed", ended


def _record(folder: JobFolder, **changes: Any) -> None:
    """Change a job's manifest, if it can be written."""
    # Where the manifest cannot be written, as on a full disk, run_locally's answer is all there is.
    with suppress(OSError, UserError):
        folder.mark(**changes)


def _stop(running: dict[JobFolder, subprocess.Popen[bytes]]) -> dict[JobFolder, str]:
    """Have the jobs save themselves and end; return those that could not, and why."""
    unsaved: dict[JobFolder, str] = {}
    for process in running.values():
        if process.stdin:
            process.stdin.close()
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in running.values()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for folder, process in running.items():
        if process.poll() is None:
            kill_family(process.pid)
            process.wait()
        status, reason = _end(folder, process)
        if status == "failed" and process.returncode >= 0:
            unsaved[folder] = reason
        elif status == "failed":
            sign = folder.read_progress()
            lost = _lost(sign) if sign.get("pid") == process.pid else None
            kept = {"step": sign["saved"]} if lost and type(sign.get("saved")) is int else {}
            _record(folder, status="interrupted", reason=lost, **kept)
            if lost:
                unsaved[folder] = lost
    return unsaved


def _lost(sign: dict[str, Any]) -> str | None:
    """Say what a job that had to be killed has lost; None if nothing was there to lose."""
    saved = sign.get("saved")
    if not sign.get("step") or sign["step"] == saved:
        return None
    if type(saved) is not int:
        return "it could not be saved; there is no checkpoint yet, and it begins anew"
    return f"it could not be saved; the last checkpoint is of step {saved:,}"
