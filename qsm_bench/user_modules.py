"""Modules of users are imported only if the user names them on this command line.

A manifest names the agent and the task of its job. Both may be in anybody's module, and to open a
folder of results is not to agree that its modules run.
"""

import shlex
from collections.abc import Collection

from qsm_bench.errors import UserError
from qsm_bench.experiment import Job


def refuse_unnamed_modules(job: Job, named: Collection[str]) -> None:
    """Raise UserError if ``job`` needs a module that is not ``named``. Nothing is imported.

    The Gymnasium id counts, too: ``gymnasium.make`` imports the module before its colon.
    """
    for kind, module in (
        ("agent", job.agent_name.rpartition(":")[0]),
        ("task", job.task.rpartition(":")[0]),
        ("task", job.gymnasium_id.rpartition(":")[0]),
    ):
        if module and module not in named:
            raise UserError(
                f"{job.agent} on {job.task}: the {kind} is in the module {module!r}, which is "
                f"imported only if you name it: --import {shlex.quote(module)}"
            )
