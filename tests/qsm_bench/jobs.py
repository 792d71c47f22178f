"""Small jobs, and what is left when they are cut off."""

import csv
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from agents.protocol import Batch
from qsm_bench.evaluation import Interrupted
from qsm_bench.experiment import Experiment, Job, parse_agents
from qsm_bench.groups import group_seeds
from qsm_bench.job_folder import JobFolder
from qsm_bench.protocol import Protocol
from qsm_bench.training import Training

STEPS, WARMUP, EVAL_EVERY = 45, 8, 20
SMALL = "hidden_sizes=[8]"
AGENTS = (
    f"qsm[{SMALL},diffusion_steps=2]",
    f"diffusion_ql[{SMALL},diffusion_steps=2]",
    f"diffusion_pg[{SMALL},diffusion_steps=2,chains=2]",
    f"sdac[{SMALL},diffusion_steps=2,samples=4,entropy_draws=2]",
    f"qvpo[{SMALL},diffusion_steps=2,samples=4,ema_target=true,n_step=3]",
    f"dipo[{SMALL},diffusion_steps=2,action_steps=3,n_step=3]",
    f"dacer[{SMALL},diffusion_steps=2,alpha_delay=5,entropy_samples=4,n_step=3]",
    f"dpmd[{SMALL},diffusion_steps=2,samples=4,target_kl=1,copy_updates=7]",
    f"langevin[{SMALL},langevin_steps=2,noise_levels=3]",
    f"sac[{SMALL},n_step=3]",
    f"td3[{SMALL}]",
)


class Killed(BaseException):
    """The death of a process that has no time to save."""


PROTOCOL = Protocol(
    steps=STEPS, warmup_steps=WARMUP, batch_size=8, eval_every=EVAL_EVERY, eval_episodes=2
)


def make_experiment(
    agents: str = AGENTS[-1],
    tasks: Sequence[str] = ("four-goals",),
    *,
    name: str = "there",
    seeds: int = 2,
    per_job: int | None = None,
    device: str = "cpu",
    compiled: bool = False,
    **protocol: Any,
) -> Experiment:
    return Experiment(
        name=name,
        agents=parse_agents(agents),
        tasks=tuple(tasks),
        groups=group_seeds(range(seeds), per_job or seeds),
        protocol=PROTOCOL.but(**protocol),
        device=device,
        compiled=compiled,
    )


def make_job(agent: str = AGENTS[-1], task: str = "four-goals", **changes: Any) -> Job:
    (job,) = make_experiment(agent, (task,), **changes).jobs
    return job


def after(calls: int) -> Callable[[], bool]:
    """Return a function that returns True from its ``calls``-th call on, and False before."""
    counter = itertools.count(1)
    return lambda: next(counter) >= calls


def train(
    job: Job, folder: Path, *, checkpoint_every: int = EVAL_EVERY, stop_at: int = 10**9
) -> bool:
    """Begin or resume the job; return whether it ended before it was stopped at ``stop_at``."""
    folder.mkdir(exist_ok=True)
    training = Training(
        job, JobFolder(folder), checkpoint_every=checkpoint_every, stop=after(stop_at)
    )
    try:
        training.run()
    except Interrupted:
        return False
    finally:
        training.close()
    return True


def kill(job: Job, folder: Path, *, checkpoint_every: int = EVAL_EVERY, at: int) -> None:
    """Begin or resume the job, and let it die at its ``at``-th step without saving."""
    dead = after(at)

    def watch() -> None:
        if dead():
            raise Killed

    training = Training(job, JobFolder(folder), checkpoint_every=checkpoint_every)
    try:
        training.run(watch)
    except Killed:
        pass
    finally:
        training.close()


def written(folder: Path) -> dict[str, Any]:
    """Return what a job has written, except for times."""
    job_folder = JobFolder(folder)
    with job_folder.training_file.open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if key != "wall_clock"}
            for row in csv.DictReader(file)
        ]
    diagnostics = job_folder.diagnostics_file
    return {
        "evaluations": job_folder.evaluations_file.read_bytes(),
        "training": rows,
        "diagnostics": diagnostics.read_bytes() if diagnostics.exists() else b"",
    }


@cache
def uncut(job_text: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        assert train(Job.model_validate_json(job_text), Path(folder))
        return written(Path(folder))


POISONED, POISONED_AT = 1, 25


def poison(
    training: Training, at: int = POISONED_AT, parts: str = "", value: float = np.nan
) -> None:
    """Set one seed's parameters to NaN at the update of step ``at``, in parts named ``parts``."""
    update = training.agent.update

    def poisoned_update(batch: Batch) -> dict[str, torch.Tensor]:
        if training.step + 1 == at:
            for name, part in vars(training.agent.bare).items():
                if isinstance(part, torch.nn.Module) and parts in name:
                    for parameter in part.parameters():
                        parameter.data[POISONED :: len(training.job.seeds)] = value
        return update(batch)

    training.agent.update = poisoned_update  # type: ignore[method-assign]
