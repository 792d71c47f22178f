"""Third-party tasks that misbehave: each fails its own cell, in one line that names the task."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from envs import Lockstep
from qsm_bench import evaluation, executor
from qsm_bench.executor import run_locally
from qsm_bench.experiment import Experiment, parse_agents
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.processes import ForkedJob

BAD_AT = 6
"""The step of an episode at which the bad ones go bad."""


class Good(gymnasium.Env[Any, Any]):
    """A point that stands still; an episode is 12 steps."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation(), self.reward(), False, self.is_over(), {}

    def observation(self) -> NDArray[np.float32]:
        return np.ones(3, np.float32)

    def reward(self) -> Any:
        return 1.0

    def is_over(self) -> bool:
        return self.steps == 12

    @property
    def bad(self) -> bool:
        return self.steps == BAD_AT


class UnequalBounds(Good):
    """An actuator of every kind: this one is good."""

    action_space = spaces.Box(np.array([-3.0, 0.0]), np.array([1.0, 1e9]), dtype=np.float64)


class NaNObservation(Good):
    def observation(self) -> NDArray[np.float32]:
        return np.full(3, np.nan if self.bad else 1.0, np.float32)


class NaNFromTheStart(Good):
    def observation(self) -> NDArray[np.float32]:
        return np.full(3, np.nan, np.float32)


class InfiniteObservation(Good):
    def observation(self) -> NDArray[np.float32]:
        return np.full(3, np.inf if self.bad else 1.0, np.float32)


class NaNReward(Good):
    def reward(self) -> float:
        return np.nan if self.bad else 1.0


class NoReward(Good):
    def reward(self) -> Any:
        return None


class Raises(Good):
    def reward(self) -> float:
        if self.bad:
            raise RuntimeError("the simulator\nhas crashed")
        return 1.0


class RaisesInReset(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise OSError("no display")


class OldInterface(Good):
    def step(self, action: Any) -> Any:
        return self.observation(), 1.0, False, {}


class Wider(Good):
    def observation(self) -> NDArray[np.float32]:
        return np.ones(4 if self.bad else 3, np.float32)


class Narrower(Good):
    """One number would fill every place of the three."""

    def observation(self) -> NDArray[np.float32]:
        return np.ones(1 if self.bad else 3, np.float32)


class Endless(Good):
    def is_over(self) -> bool:
        return False


class InfiniteBounds(Good):
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class EmptyBounds(Good):
    action_space = spaces.Box(np.array([-1.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float32)


GOOD = (Good, UnequalBounds)
BAD = {
    NaNObservation: "returned an observation that is not finite",
    NaNFromTheStart: "returned an observation that is not finite",
    InfiniteObservation: "returned an observation that is not finite",
    NaNReward: "returned the reward nan",
    NoReward: "raised TypeError: ",
    Raises: "raised RuntimeError: the simulator has crashed",
    RaisesInReset: "raised OSError: no display",
    OldInterface: "raised ValueError: not enough values to unpack",
    Wider: "returned an observation of shape (4,) and promised (3,)",
    Narrower: "returned an observation of shape (1,) and promised (3,)",
    Endless: "an episode ran past 50 steps without ending; give the task a time limit",
    InfiniteBounds: "is unbounded",
    EmptyBounds: "must have low < high in every entry",
}


def name(kind: type[Good]) -> str:
    return f"test_bad_environments/{kind.__name__}-v0"


for kind in (*GOOD, *BAD):
    gymnasium.register(name(kind), kind)


def test_each_bad_task_fails_its_own_cell_in_one_line_that_names_it(tmp_path: Path) -> None:
    experiment = Experiment(
        name="bad",
        agents=parse_agents("td3[hidden_sizes=[8]]"),
        tasks=tuple(map(name, (*BAD, *GOOD))),
        seeds=2,
        steps=40,
        warmup_steps=20,
        batch_size=8,
        eval_every=20,
        eval_episodes=1,
        device="cpu",
    )
    cells = ExperimentStore(tmp_path, "bad").prepare(experiment, "")
    with (
        patch.object(executor, "_start", ForkedJob),
        patch.object(evaluation, "LONGEST_EPISODE", 50),
    ):
        unfinished = run_locally(
            cells, workers=2, checkpoint_every=10, command="", watch=lambda: None
        )
    manifests = [cell.read_manifest() for cell in cells]
    for manifest, (kind, fault) in zip(manifests, BAD.items(), strict=False):
        assert manifest.status == "failed"
        assert manifest.reason is not None
        assert manifest.reason.startswith(f"task {name(kind)!r}")
        assert fault in manifest.reason
        assert "\n" not in manifest.reason
        assert manifest.log_tail
    assert [manifest.status for manifest in manifests[len(BAD) :]] == ["finished", "finished"]
    reasons = [manifest.reason for manifest in manifests[: len(BAD)]]
    assert unfinished == dict(zip(cells, reasons, strict=False))


def test_a_fault_of_the_harness_is_not_blamed_on_the_task() -> None:
    environments = Lockstep(name(Good), 2)
    with pytest.raises(ValueError, match="actions have shape"):
        environments.step(np.zeros((1, 2), np.float32))
    with pytest.raises(RuntimeError, match="must be reset"):
        environments.step(np.zeros((2, 2), np.float32))
    environments.reset(0, 0)
    environments.close()
