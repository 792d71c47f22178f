"""Evaluating a cell's last checkpoint, outside training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.common.streams import derive_seed
from agents.protocol import Agent
from envs import Lockstep, make
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.errors import UserError
from qsm_bench.evaluation import evaluate
from qsm_bench.experiment import Job
from qsm_bench.store import Cell
from qsm_bench.training import build_agent

FRAMES_PER_SECOND = 30


@dataclass(frozen=True)
class Outcome:
    """Returns of a checkpoint's policies."""

    seeds: tuple[int, ...]
    step: int
    """Training steps behind the checkpoint."""
    returns: NDArray[np.float64]
    """[S, episodes]."""


def evaluate_cell(cell: Cell, episodes: int) -> Outcome:
    """Play fresh episodes with each seed's policy. Raises UserError if there is no checkpoint."""
    job = cell.read_manifest().job
    environments = Lockstep(job.task, len(job.seeds) * episodes)
    try:
        agent, step = _load(cell, job, environments.observation_size, environments.action_size)
        # An occasion of its own: never the episodes that training was evaluated on.
        played = evaluate(agent, environments, job.seeds, episodes, -1, torch.device(job.device))
    finally:
        environments.close()
    return Outcome(job.seeds, step, played.returns)


def film_cell(cell: Cell, file: Path) -> None:
    """Film one episode of the first seed's policy into ``file`` (.mp4 or .gif).

    Raises UserError without the video packages, or for a format they do not know.
    """
    try:
        import imageio.v2 as imageio
    except ModuleNotFoundError as error:
        raise UserError("--video needs imageio: pip install 'qsm_bench[video]'") from error
    if file.suffix not in (".mp4", ".gif"):
        raise UserError(f"--video {file}: the name must end in .mp4 or .gif")
    job = cell.read_manifest().job
    environment = make(job.task, render_mode="rgb_array")
    observation, _ = environment.reset(seed=derive_seed(job.seeds[0], "video", bits=31))
    agent, _ = _load(
        cell, job, observation.size, int(np.prod(environment.action_space.shape or ()))
    )
    frames: list[Any] = [environment.render()]
    ended = False
    while not ended:
        # The protocol acts for every seed at once; only the first one's action is filmed.
        batch = torch.from_numpy(observation).expand(len(job.seeds), 1, -1)
        action = agent.act(batch.to(job.device), explore=False)[0, 0].cpu().numpy()
        if not np.isfinite(action).all():
            raise UserError(
                f"seed {job.seeds[0]} of {job.agent} on {job.task} has diverged: there is nothing "
                "to film"
            )
        observation, _, terminated, truncated, _ = environment.step(action)
        frames.append(environment.render())
        ended = terminated or truncated
    environment.close()
    imageio.mimsave(file, frames, fps=FRAMES_PER_SECOND)


def _load(cell: Cell, job: Job, observation_size: int, action_size: int) -> tuple[Agent, int]:
    state = Checkpoint(cell.checkpoint).load_state()
    if state is None:
        raise UserError(f"{job.agent} on {job.task} has no checkpoint yet: run it first")
    agent = build_agent(job, observation_size, action_size)
    agent.load_state_dict(state["agent"])
    return agent, state["step"]
