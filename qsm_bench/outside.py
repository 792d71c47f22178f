"""Modules of a user's own: imported only where the user has named them on this command line.

A manifest names the agent and the task of its job, and both may lie in a module of anybody's. Who
opens a folder of results has not asked for its modules to run.
"""

import shlex
from collections.abc import Collection

from qsm_bench.errors import UserError
from qsm_bench.experiment import Job


def refuse_unnamed(job: Job, named: Collection[str]) -> None:
    """Raise UserError if ``job`` needs a module that is not ``named``; it is not imported.

    What ``gymnasium.make`` is given counts, too: it imports what stands before a colon.
    """
    for what, module in (
        ("agent", job.agent_name.rpartition(":")[0]),
        ("task", job.task.rpartition(":")[0]),
        ("task", job.gymnasium_id.rpartition(":")[0]),
    ):
        if module and module not in named:
            raise UserError(
                f"{job.agent} on {job.task}: the {what} is of the module {module!r}, which is "
                f"imported only if you name it: --import {shlex.quote(module)}"
            )
