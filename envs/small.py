"""The project's own small tasks as data: what tests and the regression train on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SmallTask:
    """A task of this package, to be registered with Gymnasium."""

    entry_point: str
    max_episode_steps: int
    score_range: tuple[float, float]
    """Expected return of uniformly random actions, and the optimum."""


SMALL_TASKS: dict[str, SmallTask] = {}
