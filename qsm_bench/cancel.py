"""Ending what runs an experiment, wherever that is."""

import os
import signal
from contextlib import suppress

from qsm_bench.errors import UserError
from qsm_bench.executors import slurm_queue
from qsm_bench.store import ExperimentStore


def cancel(store: ExperimentStore) -> list[str]:
    """Have whatever runs the experiment save its jobs and end; say in sentences what that was.

    Raises UserError if nothing does, or it is a process of another machine.
    """
    store.read()
    said = []
    if tasks := slurm_queue.cancel(store.job_folders()):
        said.append(f"asked {len(tasks)} SLURM task{'s'[: len(tasks) != 1]} to save and end")
    if who := store.holder():
        pid = store.holder_pid()
        if pid is None:
            raise UserError(f"{store.name} is run by {who}: end it on that machine")
        with suppress(ProcessLookupError):  # it has ended in the meantime
            os.kill(pid, signal.SIGTERM)
        said.append(f"asked {who} to save its jobs and end")
    if not said:
        raise UserError(f"nothing of {store.name} runs or is queued")
    return said
