"""Ending what runs an experiment, wherever that is."""

import os
import signal

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
        said.append(f"{len(tasks)} tasks of SLURM were asked to save their jobs and end")
    if who := store.holder():
        pid = store.holder_pid()
        if pid is None:
            raise UserError(f"{store.name} is run by {who}: end it on that machine")
        os.kill(pid, signal.SIGTERM)
        said.append(f"{who} was asked to save its jobs and end")
    if not said:
        raise UserError(f"nothing of {store.name} runs or is queued")
    return said
