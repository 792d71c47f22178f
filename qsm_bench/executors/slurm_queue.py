"""What SLURM's queue holds of an experiment's jobs, and how it is taken out."""

import json
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qsm_bench.errors import UserError
from qsm_bench.files import MIB, read_json, write_atomically

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

LOGS = ".slurm"
"""The folder in an experiment's for the tasks' logs and what SLURM is given."""
OURS = "qsm_bench-"
"""How the names of our tasks begin."""
SQUEUE_SECONDS = 5.0
"""The least time between two questions to SLURM: its controller serves many users."""
PATIENCE_SECONDS = 60

_seen: tuple[float, dict[tuple[str, str], str]] = (float("-inf"), {})


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


def job_name(experiment: Path) -> str:
    """The name that SLURM has for the tasks of the experiment in a folder."""
    return f"{OURS}{experiment.name}"


def note_task(folder: "JobFolder", task: str, name: str) -> None:
    """Note in a job's folder that a task of SLURM, of this number and name, will run it."""
    write_atomically(folder.queue_file, json.dumps({"slurm": task, "name": name}) + "\n")


def noted_task(folder: "JobFolder") -> tuple[str, str] | None:
    """The number and name of the task that a job was last queued as; None if it never was."""
    try:
        noted = read_json(folder.queue_file, MIB)
    except UserError:
        return None
    if not isinstance(noted, dict):
        return None
    task, name = noted.get("slurm"), noted.get("name")
    if isinstance(task, str) and isinstance(name, str) and name.startswith(OURS):
        return task, name
    return None


def queued_tasks(
    folders: "Iterable[JobFolder]", *, or_none: bool = False
) -> "dict[JobFolder, tuple[str, str]]":
    """The jobs whose tasks wait or run in SLURM, each with its task and that task's state.

    Raises UserError if jobs were given to SLURM and it cannot be asked; with ``or_none`` there are
    none then: what a job has written still tells how it stands.
    """
    noted = {folder: task for folder in folders if (task := noted_task(folder))}
    if not noted:
        return {}
    try:
        queue = _queue()
    except UserError as error:
        if or_none:
            return {}
        raise UserError(
            f"jobs were given to SLURM, and whether it still has them cannot be asked ({error}): "
            "run this where squeue works"
        ) from error
    # A task of that number may be another one by now, or on another cluster.
    return {
        folder: (task, queue[task, name])
        for folder, (task, name) in noted.items()
        if (task, name) in queue
    }


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


def _queue() -> dict[tuple[str, str], str]:
    """The state of each of this user's tasks, by its number and name: "PENDING (Resources)".

    Raises UserError if SLURM cannot be asked.
    """
    global _seen
    if time.monotonic() - _seen[0] >= SQUEUE_SECONDS:
        queue = {}
        listed = slurm("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j")
        for line in listed.splitlines():
            task, state, why, name = line.split("|", 3)
            queue[task, name] = state if why == "None" else f"{state} ({why})"
        _seen = time.monotonic(), queue
    return _seen[1]
