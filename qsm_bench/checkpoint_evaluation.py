"""Evaluating a cell's last checkpoint, outside training."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.registry import AgentError
from envs import Lockstep
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.contract import Checked
from qsm_bench.errors import UserError
from qsm_bench.evaluation import evaluate
from qsm_bench.experiment import Job
from qsm_bench.film import Film
from qsm_bench.outside import refuse_unnamed
from qsm_bench.store import Cell
from qsm_bench.training import build_agent

AT_A_TIME = 64
"""Environments that are open at a time, unless there are more seeds."""


@dataclass(frozen=True)
class Outcome:
    """Returns of a checkpoint's policies."""

    seeds: tuple[int, ...]
    step: int
    """Training steps behind the checkpoint."""
    returns: NDArray[np.float64]
    """[S, episodes]; NaN for the seeds that failed."""
    failed: dict[int, str]
    """Seeds that failed, in training or now, each with the reason."""
    elsewhere: str | None
    """The device it was trained on, where this machine has none such and the CPU took its place."""


def evaluate_cell(cell: Cell, episodes: int, modules: Collection[str] = ()) -> Outcome:
    """Play fresh episodes with each seed's policy.

    ``modules`` are those that the user has named to be imported. Raises UserError if the cell
    needs another one, or has no checkpoint.
    """
    manifest = cell.read_manifest()
    trained = manifest.job
    refuse_unnamed(trained, modules)
    job = _here(trained)
    failed = {seed: failure.reason for seed, failure in manifest.failed_seeds.items()}
    together = min(episodes, max(1, AT_A_TIME // len(job.seeds)))
    environments = Lockstep(job.task, len(job.seeds) * together)
    try:
        agent, step = _load(cell, job, environments.observation_size, environments.action_size)
        device = torch.device(job.device)
        returns = []
        # Occasions of its own: never the episodes that training was evaluated on.
        for occasion in range(-1, -1 - -(-episodes // together), -1):
            sound = np.array([seed not in failed for seed in job.seeds])
            played = evaluate(
                agent, environments, job.seeds, together, occasion, device, sound=sound
            )
            failed |= {job.seeds[row]: fault for row, fault in played.faults.items()}
            returns.append(played.returns)
    finally:
        environments.close()
    elsewhere = trained.device if trained.device != job.device else None
    played_returns = np.concatenate(returns, axis=1)[:, :episodes]
    return Outcome(job.seeds, step, played_returns, failed, elsewhere)


def film_cell(cell: Cell, film: Film) -> None:
    """Film one episode of the first seed's policy. Raises UserError if it has diverged."""
    job = _here(cell.read_manifest().job)
    spaces = film.environment.observation_space.shape, film.environment.action_space.shape
    agent, _ = _load(cell, job, *(int(np.prod(shape or ())) for shape in spaces))

    def policy(observation: NDArray[np.float32]) -> NDArray[Any]:
        # The protocol acts for every seed at once; only the first one's action is filmed.
        batch = torch.from_numpy(observation).expand(len(job.seeds), 1, -1)
        action = agent.act(batch.to(job.device), explore=False)[0, 0].cpu().numpy()
        if not np.isfinite(action).all():
            raise UserError(
                f"seed {job.seeds[0]} of {job.agent} on {job.task} has diverged: there is nothing "
                "to film"
            )
        return action

    film.shoot(policy, job.seeds[0])


def _here(job: Job) -> Job:
    """The job on its own device, or on the CPU where this machine has none such."""
    device = torch.device(job.device)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    return job.model_copy(update={"device": "cpu"}) if missing else job


def _load(cell: Cell, job: Job, observation_size: int, action_size: int) -> tuple[Checked, int]:
    state = Checkpoint(cell.checkpoint, job.identity).load_state()
    if state is None:
        raise UserError(f"{job.agent} on {job.task} has no checkpoint yet: run it first")
    try:
        agent = build_agent(job, observation_size, action_size)
        agent.load_state_dict(state["agent"])
        return agent, int(state["step"])
    except (AgentError, UserError):
        raise
    except Exception as error:  # a state, and a manifest's settings, may be anything
        raise UserError(
            f"{cell.checkpoint} does not fit its job ({type(error).__name__}); {cell.anew}"
        ) from error
