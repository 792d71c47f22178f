"""What the checkpoint of a training holds, and how a training goes on from it.

A file may come from anybody, so everything in it is held against the job first.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from qsm_bench.diagnostics import STATES
from qsm_bench.experiment import Job
from qsm_bench.manifest import SeedFailure

if TYPE_CHECKING:
    from qsm_bench.training import Training

Whole = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counters(BaseModel):
    """The numbers in a checkpoint's state; a list has one value for each seed."""

    model_config = ConfigDict(strict=True)

    step: Whole
    replay_added: Whole
    episode: list[Whole]
    episode_start: list[Whole]
    episode_before: list[Annotated[int, Field(ge=-1)]] = []
    episode_return: list[float]
    finished_returns: list[list[float]]
    train_seconds: Seconds
    evaluation_seconds: Seconds
    checkpoint_seconds: Seconds = 0.0
    diverged: dict[int, Whole] = {}
    failed_seeds: dict[int, SeedFailure] = {}
    last_return: float | None


def read_counters(state: Mapping[str, Any], job: Job) -> Counters:
    """Return the counters of a state. Raises ValueError if no run of the job saved them."""
    counters = Counters.model_validate(dict(state))
    seeds, step = len(job.seeds), counters.step
    if "episode_before" not in state:  # of November 2026 or earlier
        counters.episode_before = [-1] * seeds
    before = counters.episode_before
    lists = (counters.episode, counters.episode_start, counters.episode_return, before)
    if any(len(values) != seeds for values in (*lists, counters.finished_returns)):
        raise ValueError("it is of other seeds")
    if not counters.replay_added == step <= job.protocol.steps:
        raise ValueError("the job has no such step, or the replay log ends at another")
    for number, start, earlier in zip(
        counters.episode, counters.episode_start, before, strict=True
    ):
        # Every episode has a step, and the one before a first one began nowhere.
        if not (number <= start <= step and earlier < max(start, 1) and (number or earlier < 0)):
            raise ValueError("an episode begins where none can")
    ended = [*counters.diverged.items()]
    ended += [(seed, failure.step) for seed, failure in counters.failed_seeds.items()]
    if not all(seed in job.seeds and 0 <= at <= step for seed, at in ended):
        raise ValueError(
            "a seed failed or diverged that the job does not have, or at no step of it"
        )
    return counters


def gather(training: "Training") -> dict[str, Any]:
    """Return everything that the steps from here on depend on, and where the tables stand."""
    episodes, status = training.episodes, training.status
    status.note_diverged(training.step)
    return {
        "agent": training.agent.state_dict(),
        "replay_stream": training.replay.stream.state_dict(),
        "warmup_stream": training.warmup_stream.state_dict(),
        "step": training.step,
        "episode": episodes.number.tolist(),
        "episode_start": episodes.start.tolist(),
        "episode_before": episodes.start_before.tolist(),
        "observation": torch.from_numpy(episodes.observation.copy()),
        "episode_return": episodes.return_so_far.tolist(),
        "finished_returns": episodes.finished_returns,
        "metrics": training.metrics.state_dict(),
        "train_seconds": training.train_seconds,
        "evaluation_seconds": training.evaluation_seconds,
        "checkpoint_seconds": training.checkpoint_seconds,
        "diverged": status.diverged,
        "failed_seeds": {seed: failure.model_dump() for seed, failure in status.failed.items()},
        "last_return": training.last_return,
        "watched": training.measured_states,
        **training.tables.state(),
    }


def restore(training: "Training", state: Mapping[str, Any]) -> None:
    """Bring a new ``training`` to where ``state`` was gathered, but for its environments.

    Raises an error of some kind if the state is not one of its job.
    """
    counters = read_counters(state, training.job)
    device, episodes = training.device, training.episodes
    training.agent.load_state_dict(state["agent"])
    training.replay.stream.load_state_dict(state["replay_stream"])
    training.warmup_stream.load_state_dict(state["warmup_stream"])
    training.step = training.saved = counters.step
    episodes.number = np.array(counters.episode)
    episodes.start = np.array(counters.episode_start)
    episodes.start_before = np.array(counters.episode_before)
    episodes.return_so_far = np.array(counters.episode_return)
    episodes.finished_returns = counters.finished_returns
    if "metrics" in state:
        training.metrics.load_state_dict(state["metrics"], device)
    else:  # of November 2026 or earlier: it counted no metric by itself
        counts = dict.fromkeys(state["metric_sums"], state["metric_updates"])
        training.metrics.load_state_dict({"sums": state["metric_sums"], "updates": counts}, device)
    training.train_seconds = counters.train_seconds
    training.evaluation_seconds = counters.evaluation_seconds
    training.checkpoint_seconds = counters.checkpoint_seconds
    training.status.restore(counters.diverged, counters.failed_seeds)
    training.last_return = counters.last_return
    measured = state["watched"]
    training.measured_states = None if measured is None else measured.to(device)
    _refuse_other_shapes(training, state)


def _refuse_other_shapes(training: "Training", state: Mapping[str, Any]) -> None:
    """Raise ValueError if tensors of a state are not of the shapes that this job saves."""
    seeds, size = len(training.job.seeds), training.environments.observation_size
    over = training.step >= training.job.protocol.warmup_steps
    expected: list[tuple[Tensor | None, tuple[int, ...] | None]]
    expected = [(training.measured_states, (seeds, STATES, size) if over else None)]
    if "observation" in state:
        expected.append((state["observation"], (seeds, size)))
    expected += [(total, (seeds,)) for total in training.metrics.sums.values()]
    for tensor, shape in expected:
        if (None if tensor is None else tuple(tensor.shape)) != shape:
            raise ValueError(f"a tensor is not of shape {shape}")
