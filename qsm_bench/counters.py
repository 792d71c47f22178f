"""What a checkpoint counts, held against the job before anything goes on from it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from qsm_bench.experiment import Job
from qsm_bench.store import SeedFailure

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
    """The counters of a state. Raises ValueError if no run of the job can have saved them."""
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
