"""Evaluating a job's last checkpoint, outside training."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs import Lockstep
from qsm_bench.evaluation import evaluate
from qsm_bench.film import Film
from qsm_bench.job_folder import JobFolder
from qsm_bench.policy import load_agent, on_this_machine, policy_of
from qsm_bench.user_modules import refuse_unnamed_modules

AT_A_TIME = 64
"""Environments that are open at a time, unless there are more seeds."""


@dataclass(frozen=True)
class Outcome:
    """Returns of the policies of a job's checkpoint."""

    seeds: tuple[int, ...]
    step: int
    """Training steps behind the checkpoint."""
    returns: NDArray[np.float64]
    """[S, episodes]; NaN for the seeds that failed."""
    failed: dict[int, str]
    """Seeds that failed, in training or now, each with the reason."""
    elsewhere: str | None
    """The device it was trained on, where this machine has none such and the CPU took its place."""


def evaluate_job(
    folder: JobFolder,
    episodes: int,
    modules: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Play fresh episodes with each seed's policy, with other ``settings`` of its evaluation.

    ``modules`` are those that the user has named to be imported. Raises UserError if the job
    needs another one, has no checkpoint, or cannot be evaluated with these settings.
    """
    manifest = folder.read_manifest()
    trained = manifest.job
    refuse_unnamed_modules(trained, modules)
    job = on_this_machine(trained)
    failed = {seed: failure.reason for seed, failure in manifest.failed_seeds.items()}
    together = min(episodes, max(1, AT_A_TIME // len(job.seeds)))
    environments = Lockstep(job.environment, len(job.seeds) * together)
    try:
        agent, step = load_agent(
            folder, job, environments.observation_size, environments.action_size, settings
        )
        device = torch.device(job.device)
        returns = []
        # Keys below 0: never the episodes that training was evaluated on.
        for start_key in range(-1, -1 - -(-episodes // together), -1):
            playing = np.array([seed not in failed for seed in job.seeds])
            played = evaluate(
                agent,
                environments,
                job.seeds,
                together,
                start_key=start_key,
                device=device,
                playing=playing,
            )
            failed |= {job.seeds[row]: fault for row, fault in played.faults.items()}
            returns.append(played.returns)
    finally:
        environments.close()
    elsewhere = trained.device if trained.device != job.device else None
    played_returns = np.concatenate(returns, axis=1)[:, :episodes]
    return Outcome(job.seeds, step, played_returns, failed, elsewhere)


def film_job(folder: JobFolder, film: Film, settings: Mapping[str, Any] | None = None) -> None:
    """Film one episode of the first seed's policy. Raises UserError if it has diverged."""
    job = folder.read_manifest().job
    film.record_episode(policy_of(folder, job, job.seeds[0], settings), job.seeds[0])
