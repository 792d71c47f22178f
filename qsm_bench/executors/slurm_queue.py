"""What SLURM's queue holds of an experiment's jobs, and how it is taken out."""

import getpass
import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qsm_bench.errors import UserError
from qsm_bench.files import MIB, read_json, write_atomically

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

LOGS = ".slurm"
"""The folder in an experiment's for the tasks' logs and what SLURM is given."""
SQUEUE_SECONDS = 5.0
"""The least time between two questions to SLURM: its controller serves many users."""
PATIENCE_SECONDS = 60

_seen: tuple[float, dict[str, str]] = (float("-inf"), {})


def slurm(*command: str) -> str:
    """Run a command of SLURM and return what it prints. Raises UserError with what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not installed here: run this on a machine that can submit to SLURM"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} gave no answer in {PATIENCE_SECONDS} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if "--help" not in line]
        said = lines[-1] if lines else f"exit status {done.returncode}"
        for own in (f"{command[0]}: ", "error: "):
            said = said.removeprefix(own)
        raise UserError(f"{command[0]}: {said}")
    return done.stdout


def note_task(folder: "JobFolder", task: str) -> None:
    """Note in a job's folder that a task of SLURM will run it."""
    write_atomically(folder.queue_file, json.dumps({"slurm": task}) + "\n")


def noted_task(folder: "JobFolder") -> str | None:
    """The task of SLURM that a job was last queued as; None if it never was."""
    try:
        noted = read_json(folder.queue_file, MIB)
    except UserError:
        return None
    task = noted.get("slurm") if isinstance(noted, dict) else None
    return task if isinstance(task, str) else None


def queued_tasks(folders: "Iterable[JobFolder]") -> "dict[JobFolder, tuple[str, str]]":
    """The jobs whose tasks wait or run in SLURM, each with its task and that task's state.

    Where SLURM cannot be asked, there are none: what a job has written still tells how it stands.
    """
    noted = {folder: task for folder in folders if (task := noted_task(folder))}
    queue = _queue() if noted else {}
    return {folder: (task, queue[task]) for folder, task in noted.items() if task in queue}


def cancel(folders: "Iterable[JobFolder]") -> list[str]:
    """Have SLURM end the tasks of the jobs; those that run save themselves. Return the tasks."""
    forget()
    tasks = sorted({task for task, _ in queued_tasks(folders).values()})
    if tasks:
        slurm("scancel", *tasks)
        forget()
    return tasks


def forget() -> None:
    """Have the next question go to SLURM, and not to what it last answered."""
    global _seen
    _seen = float("-inf"), {}


def _queue() -> dict[str, str]:
    """The state of each of this user's tasks, "PENDING (Resources)" or "RUNNING"."""
    global _seen
    if time.monotonic() - _seen[0] >= SQUEUE_SECONDS:
        queue = {}
        if shutil.which("squeue"):
            try:
                mine = f"--user={getpass.getuser()}"
                listed = slurm("squeue", "--noheader", "--array", mine, "--format=%i|%T|%r")
            except UserError:
                listed = ""
            for line in listed.splitlines():
                task, state, why = line.split("|", 2)
                queue[task] = state if why == "None" else f"{state} ({why})"
        _seen = time.monotonic(), queue
    return _seen[1]
