"""Weights & Biases: a run for each agent, task and seed, grouped by agent.

Where it goes is W&B's own to say: to its server after ``wandb login``, and into files alone with
WANDB_MODE=offline, which ``wandb sync`` uploads. A run's id comes from the experiment, agent, task
and seed. One that has changed is written whole under the same id, in the place of what was there.
No fact of this machine, its environment or its programs is written beside.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import wandb

from qsm_bench.errors import UserError, one_line
from qsm_bench.exporters.folder import Output, digest
from qsm_bench.exporters.runs import Run, runs_of
from qsm_bench.protocol import Protocol
from qsm_bench.results import Results

OF_THE_JOB = ("agent", "agent_name", "task", "gymnasium_id", "score_range", "device", "compiled")
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""Settings by which W&B looks at nothing but what it is given."""


def outputs(results: Results) -> Iterator[Output]:
    """Yield the file of each run; W&B makes it, and uploads what is in it if it is online."""
    mode = wandb.setup(wandb.Settings(**QUIET)).settings.mode
    if mode == "disabled":
        raise UserError("WANDB_MODE is 'disabled': 'online' or 'offline' is right to export")
    prefix = "offline-run" if mode in ("offline", "dryrun") else "run"
    for run in runs_of(results):
        key = run_id(results.name, run)
        path = f"{prefix}-{run.began:%Y%m%d_%H%M%S}-{key}/run-{key}.wandb"
        facts = json.dumps([mode, config_of(run), outcome(run)], sort_keys=True)
        yield Output(path, digest(facts, repr(run.points)), partial(_log, results.name, run))


def run_id(experiment: str, run: Run) -> str:
    """Return the run's name at W&B, the same at every export."""
    return digest(experiment, run.agent, run.task, str(run.seed))[:16]


def config_of(run: Run) -> dict[str, Any]:
    """Return a run's settings, and those of its job and protocol."""
    cell = run.cell
    protocol = {name: cell[name] for name in Protocol.model_fields if name in cell}
    return {
        **{name: cell.get(name) for name in OF_THE_JOB},
        "seed": run.seed,
        "protocol": {name: value for name, value in protocol.items() if name != "settings"},
        "settings": cell["settings"],
    }


def outcome(run: Run) -> str:
    """Say in one line how a run went, or goes."""
    return run.fault or str(run.job["status"])


def _log(experiment: str, run: Run) -> bytes:
    """Have W&B write a run, and return what it wrote."""
    with TemporaryDirectory() as folder:
        try:
            logged = wandb.init(
                project=experiment,
                group=run.agent,
                job_type=run.task,
                name=f"{run.agent} on {run.task}, seed {run.seed}",
                id=run_id(experiment, run),
                config=config_of(run),
                dir=folder,
                settings=wandb.Settings(**QUIET),
            )
            for point in run.points:
                logged.log(dict(point.values), step=point.step)
            logged.summary["outcome"] = outcome(run)
            logged.finish(exit_code=1 if run.fault else 0)
        except wandb.Error as error:
            raise UserError(
                f"W&B does not take the run: {one_line(str(error))}; 'wandb login' lets it, and "
                "WANDB_MODE=offline writes files alone"
            ) from error
        finally:
            wandb.teardown()  # the file is whole when the process that writes it has ended
        return Path(logged.settings.sync_file).read_bytes()
