"""Where jobs run: processes of this machine, SLURM, or Ray. All write the same files."""

from collections.abc import Mapping
from typing import Any

from qsm_bench.errors import UserError, did_you_mean
from qsm_bench.executors.executor import Executor, Outcome, Work
from qsm_bench.executors.local import Local
from qsm_bench.executors.on_ray import Ray
from qsm_bench.executors.on_slurm import Slurm
from qsm_bench.protocol import option

__all__ = ["EXECUTORS", "Executor", "Local", "Outcome", "Ray", "Slurm", "Work", "make_executor"]

EXECUTORS: dict[str, type[Executor]] = {executor.kind: executor for executor in (Local, Ray, Slurm)}
"""The executors by their names on the command line."""


def make_executor(kind: str, options: Mapping[str, Any]) -> Executor:
    """The executor of a name with its options.

    Raises UserError for a name that is unknown, and an option that another executor has.
    """
    if kind not in EXECUTORS:
        raise UserError(f"--executor {kind!r}: {did_you_mean(kind, EXECUTORS)}")
    executor = EXECUTORS[kind]
    for name in options:
        if name not in executor.model_fields:
            theirs = [other for other, cls in EXECUTORS.items() if name in cls.model_fields]
            raise UserError(
                f"{option(name)} is an option of --executor {' and '.join(theirs)}, and this run "
                f"has --executor {kind}"
            )
    return executor(**options)
