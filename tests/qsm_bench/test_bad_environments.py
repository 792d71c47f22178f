"""Third-party tasks that misbehave: each fails its own job, in one line that names the task."""

import csv
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from agents.common.streams import derive_seed
from envs import Lockstep, ParallelLockstep, TaskError
from qsm_bench import __main__, evaluation, worker
from qsm_bench.checkpoint_evaluation import evaluate_job
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted
from qsm_bench.executors import processes
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import SeedFailure
from qsm_bench.progress import job_state
from qsm_bench.results import load_results
from qsm_bench.statistics.selection import select_runs
from qsm_bench.store import ExperimentStore
from qsm_bench.training import Training
from tests.envs.made_up import register
from tests.qsm_bench.jobs import AGENTS, after, make_experiment, make_job, train, uncut, written
from tests.qsm_bench.processes import ForkedJob, run_jobs

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


class HugeObservation(Good):
    """Finite in float64, infinite in float32."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def observation(self) -> Any:
        return np.full(3, 1e40 if self.bad else 1.0)


class HugeReward(Good):
    def reward(self) -> float:
        return -1e40 if self.bad else 1.0


class LargeReward(Good):
    """Finite in float32; the sum of a few, or the square of one, is not."""

    def reward(self) -> float:
        return 3e38


class NoFlag(Good):
    def is_over(self) -> Any:
        return None


class Exits(Good):
    def reward(self) -> float:
        raise SystemExit(3)


class Interrupts(Good):
    def reward(self) -> float:
        raise KeyboardInterrupt


class ExitsWhenMade(Good):
    def __init__(self) -> None:
        raise SystemExit(3)


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


class ArraysOfOne(Good):
    def step(self, action: Any) -> Any:
        observation, reward, *flags, info = super().step(action)
        return observation, np.array([reward]), *(np.array([flag]) for flag in flags), info


class CannotBeClosed(Good):
    def close(self) -> None:
        raise AttributeError("viewer")


class ChangesFolder(Good):
    def __init__(self) -> None:
        os.chdir("/")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        os.chdir("/")
        return super().reset()


class HandsOutItsBuffer(Good):
    buffer = np.zeros(3, np.float32)

    def observation(self) -> NDArray[np.float32]:
        self.buffer += 1.0
        return self.buffer


GOOD = (Good, UnequalBounds, ArraysOfOne, CannotBeClosed, ChangesFolder, HandsOutItsBuffer)
BAD = {
    NaNObservation: "returned an observation with nan, which is not finite",
    NaNFromTheStart: "returned an observation with nan, which is not finite",
    InfiniteObservation: "returned an observation with inf, which is not finite",
    HugeObservation: "an observation with 1e+40, which is beyond the +-1e+15 that float32 can",
    NaNReward: "returned the reward nan, which is not finite",
    HugeReward: "returned the reward -1e+40, which is beyond the +-1e+15 that float32 can learn",
    LargeReward: "returned the reward 3e+38, which is beyond the +-1e+15 that float32 can learn",
    NoFlag: "returned None for truncated; it must be True or False",
    Exits: "raised SystemExit: 3",
    Interrupts: "raised KeyboardInterrupt",
    ExitsWhenMade: "cannot be constructed: 3",
    NoReward: "raised TypeError: ",
    Raises: "raised RuntimeError: the simulator has crashed",
    RaisesInReset: "raised OSError: no display",
    OldInterface: "raised ValueError: not enough values to unpack",
    Wider: "returned an observation of shape (4,), but its observation space has (3,)",
    Narrower: "returned an observation of shape (1,), but its observation space has (3,)",
    Endless: "an episode ran past 50 steps without ending; give the task a time limit",
    InfiniteBounds: "is unbounded",
    EmptyBounds: "must have low < high in every entry",
}


def name(kind: type[gymnasium.Env[Any, Any]]) -> str:
    return f"test_bad_environments/{kind.__name__}-v0"


for kind in (*GOOD, *BAD):
    register(name(kind), kind)


def test_each_bad_task_fails_its_own_job_in_one_line_that_names_it(tmp_path: Path) -> None:
    experiment = make_experiment(
        "td3[hidden_sizes=[8]]",
        tuple(map(name, (*BAD, *GOOD))),
        name="bad",
        steps=40,
        warmup_steps=20,
        eval_episodes=1,
    )
    folders = ExperimentStore(tmp_path, "bad").prepare(experiment, "")
    with (
        patch.object(processes, "_start", ForkedJob),
        patch.object(evaluation, "LONGEST_EPISODE", 50),
    ):
        unfinished = run_jobs(folders, workers=2, checkpoint_every=10)
    manifests = [folder.read_manifest() for folder in folders]
    for manifest, (kind, fault) in zip(manifests, BAD.items(), strict=False):
        assert manifest.status == "failed"
        assert manifest.reason is not None
        assert manifest.reason.startswith(f"task {name(kind)!r}")
        assert fault in manifest.reason
        assert "\n" not in manifest.reason
        assert manifest.log_tail == ()  # the reason says it all
    assert {manifest.status for manifest in manifests[len(BAD) :]} == {"finished"}
    reasons = [manifest.reason for manifest in manifests[: len(BAD)]]
    assert unfinished == dict(zip(folders, reasons, strict=False))


class InterruptsInReset(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise KeyboardInterrupt("by the task")


class InterruptsWhenMade(Good):
    def __init__(self) -> None:
        raise KeyboardInterrupt("by the task")


class InterruptsAsPythonWould(Good):
    """It has Python's own handler of Ctrl-C back, under which such an error is the user's."""

    def is_over(self) -> Any:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt("by the task")


for kind in (InterruptsInReset, InterruptsWhenMade, InterruptsAsPythonWould):
    register(name(kind), kind)


@pytest.mark.parametrize(
    "kind", [Interrupts, InterruptsInReset, InterruptsWhenMade, InterruptsAsPythonWould]
)
def test_an_interrupt_that_a_task_raises_under_run_is_not_the_users(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: type[Good]
) -> None:
    numbers = {"seeds": 2, "seeds-per-job": 2, "steps": 40, "warmup-steps": 20}
    numbers |= {"batch-size": 8, "eval-every": 20}
    arguments = [
        *("qsm_bench", "run", "--agents=td3[hidden_sizes=[8]]", f"--tasks={name(kind)}"),
        *(f"--{option}={value}" for option, value in numbers.items()),
        *("--name=own", "--eval-episodes=1", "--device=cpu", f"--results={tmp_path}"),
    ]
    with (
        patch.object(processes, "_start", ForkedJob),
        patch.object(sys, "argv", arguments),
        patch.object(sys, "path", [*sys.path]),
        pytest.raises(SystemExit) as ended,
    ):
        __main__.main()
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert "KeyboardInterrupt" in told or "cannot be constructed: by the task" in told
    if kind is InterruptsWhenMade:  # which is found before anything begins
        assert ended.value.code == 2
        assert told.startswith(f"error: task {name(kind)!r}")
        return
    assert ended.value.code == 1
    (folder,) = ExperimentStore(tmp_path, "own").job_folders()
    manifest = folder.read_manifest()
    assert manifest.status == "failed"
    assert manifest.reason is not None
    if kind is InterruptsAsPythonWould:  # nobody can tell any more than the job that has failed
        assert manifest.reason == "KeyboardInterrupt: by the task"
        return
    assert manifest.reason.startswith(f"task {name(kind)!r} raised KeyboardInterrupt")


def test_a_fault_of_the_harness_is_not_blamed_on_the_task() -> None:
    environments = Lockstep(name(Good), 2)
    with pytest.raises(ValueError, match="actions have shape"):
        environments.step(np.zeros((1, 2), np.float32))
    with pytest.raises(RuntimeError, match="must be reset"):
        environments.step(np.zeros((2, 2), np.float32))
    environments.reset(0, 0)
    environments.close()


class OneSeed(gymnasium.Env[Any, Any]):
    """A sum of actions, which goes wrong for one seed alone when ``fault`` says so."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    fault: Any = staticmethod(lambda seed, steps: None)
    """What to do before the step of that number, 0 for the reset, in an episode of that seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed, self.steps, self.sum = seed, 0, float(self.np_random.uniform(-1, 1))
        type(self).fault(seed, 0)
        return np.array([self.sum, 0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        type(self).fault(self.seed, self.steps)
        self.sum += float(action[0])
        observation = np.array([self.sum, self.steps], np.float32)
        return observation, -(self.sum**2), False, self.steps == 10, {}


register(name(OneSeed), OneSeed)


def failing(error: BaseException, seed: int, at: int) -> Any:
    def fault(episode: int, steps: int) -> None:
        if (episode, steps) == (seed, at):
            raise error

    return staticmethod(fault)


def rows(folder: Path, table: str, seed: int) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["seed"] == str(seed)]
    return [{key: value for key, value in row.items() if key != "wall_clock"} for row in found]


JOB = make_job(AGENTS[0], name(OneSeed), seeds=3)
IN_TRAINING = derive_seed(1, "episode", 2, bits=31)
"""Seed 1's third episode, steps 21 to 30."""
IN_EVALUATION = derive_seed(1, "evaluation", 40, 1, bits=31)


@pytest.mark.parametrize(
    ("episode", "at", "step", "error", "processes"),
    [
        (IN_TRAINING, 0, 20, RuntimeError("lost"), 0),
        (IN_TRAINING, 4, 24, SystemExit(3), 0),
        (IN_TRAINING, 4, 24, RuntimeError("lost"), 2),
        (IN_EVALUATION, 0, 40, KeyboardInterrupt(), 0),
        (IN_EVALUATION, 7, 40, RuntimeError("lost"), 3),
    ],
)
def test_a_seed_whose_environment_fails_is_shown_and_the_others_go_on_bit_for_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    episode: int,
    at: int,
    step: int,
    error: BaseException,
    processes: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # no process of a job has Python's own handler
    well, ill, cut = (tmp_path / part for part in ("well", "ill", "cut"))
    for folder in (well, ill, cut):
        folder.mkdir()
    train(JOB, well)
    monkeypatch.setattr(OneSeed, "fault", failing(error, episode, at))
    if processes:
        context = multiprocessing.get_context("fork")  # which inherits the fault
        monkeypatch.setattr("envs.parallel.multiprocessing.get_context", lambda how: context)
        # Forked processes hold each other's pipes open, so they do not end by themselves.
        monkeypatch.setattr("envs.parallel.CLOSE_SECONDS", 0.1)
        monkeypatch.setattr(
            Training,
            "_environments",
            lambda self, count: ParallelLockstep(JOB.task, count, processes),
        )
    training = Training(JOB, JobFolder(ill), checkpoint_every=7)
    training.run()
    training.close()
    assert [(seed, failure.step) for seed, failure in training.status.failed.items()] == [(1, step)]
    assert training.status.failed[1].reason.startswith(
        f"task {JOB.task!r} raised {type(error).__name__}"
    )
    assert not training.status.diverged
    for seed in (0, 2):
        for table in ("evaluations", "training", "diagnostics"):
            assert rows(ill, table, seed) == rows(well, table, seed)
    for row, healthy in zip(rows(ill, "evaluations", 1), rows(well, "evaluations", 1), strict=True):
        failed = int(row["step"]) >= step
        assert row["return"] == ("nan" if failed else healthy["return"])

    for stop_at in (15, 17, 20):  # the last of them in an evaluation
        assert not train(JOB, cut, stop_at=stop_at, checkpoint_every=7)
    assert train(JOB, cut, checkpoint_every=7)
    assert written(cut) == written(ill)


def test_once_failed_a_seed_stays_so_though_its_environment_would_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = failing(OSError("gone"), IN_TRAINING, 4)
    monkeypatch.setattr(OneSeed, "fault", fault)
    assert not train(JOB, tmp_path, stop_at=75)
    monkeypatch.setattr(OneSeed, "fault", staticmethod(lambda seed, steps: None))
    again = Training(JOB, JobFolder(tmp_path), checkpoint_every=7)
    again.run()
    again.close()
    assert list(again.status.failed) == [1]
    assert rows(tmp_path, "evaluations", 1)[-1]["return"] == "nan"


def test_if_every_seed_has_failed_the_job_ends_at_once_and_again_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(episode: int, steps: int) -> None:
        if steps == 5:
            raise OSError("gone")

    monkeypatch.setattr(OneSeed, "fault", staticmethod(fault))
    for _ in range(2):
        with pytest.raises(TaskError, match="raised OSError: gone; by step 5 every seed had"):
            train(JOB, tmp_path)
        monkeypatch.setattr(OneSeed, "fault", staticmethod(lambda seed, steps: None))


def test_if_every_seed_fails_at_its_first_reset_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(episode: int, steps: int) -> None:
        raise OSError("no display")

    monkeypatch.setattr(OneSeed, "fault", staticmethod(fault))
    with pytest.raises(TaskError, match=r"raised OSError: no display$"):
        train(JOB, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_seed_is_in_manifest_status_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ExperimentStore(tmp_path, "x")
    (folder,) = store.prepare(make_experiment(AGENTS[-1], (JOB.task,), name="x", seeds=3), "")
    monkeypatch.setattr(OneSeed, "fault", failing(OSError("gone"), IN_TRAINING, 4))
    worker.work(folder.path, checkpoint_every=7)
    manifest = folder.read_manifest()
    assert manifest.status == "finished"
    reason = f"task {JOB.task!r} raised OSError: gone"
    assert manifest.failed_seeds == {1: SeedFailure(step=24, reason=reason)}
    assert folder.read_progress()["failed_seeds"] == {"1": {"step": 24, "reason": reason}}
    assert job_state(folder).line.endswith(f"seed 1 failed at step 24: {reason}")
    outcome = evaluate_job(folder, 2)
    assert outcome.failed == {1: reason}
    assert np.isfinite(outcome.returns).all(axis=1).tolist() == [True, False, True]
    left_out = select_runs(load_results(tmp_path, "x")).left_out
    label = manifest.job.agent
    assert f"{label} on {JOB.task}, seed 1: failed at step 24 ({reason})." in left_out


class Forgetful(OneSeed):
    """Differs from one time to the next in what ``part`` names."""

    part = ""
    length = 1

    def reset(self, **how: Any) -> Any:
        observation, info = super().reset(**how)
        return observation + (self.part == "first observation") * self.surprise(), info

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        reward += (self.part == "reward") * self.surprise()
        observation = observation + (self.part == "observation") * self.surprise()
        ends = self.steps == self.length
        terminated = ends and not (self.part == "flag" and Forgetful.resumed)
        return observation, reward, terminated, ends, info

    resumed = False

    def surprise(self) -> np.float32:
        return np.float32(np.frombuffer(os.urandom(2), np.uint16)[0])


register(name(Forgetful), Forgetful)


@pytest.mark.parametrize("part", ["first observation", "observation", "reward", "flag", ""])
@pytest.mark.parametrize("length", [1, 5])
def test_a_task_that_does_not_repeat_itself_is_told_at_the_start_and_refused_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, length: int
) -> None:
    """The checkpoint lies on an episode's boundary, where the running episode shows nothing."""
    job = make_job(task=name(Forgetful))
    monkeypatch.setattr(Forgetful, "part", part)
    monkeypatch.setattr(Forgetful, "length", length)
    training = Training(job, JobFolder(tmp_path), checkpoint_every=1000, stop=after(10))
    with pytest.raises(Interrupted):
        training.run()
    training.close()
    assert training.step == 10
    assert bool(training.warnings) == (part not in ("", "flag"))
    assert all("this run cannot be resumed" in line for line in training.warnings)
    monkeypatch.setattr(Forgetful, "resumed", True)
    if part:
        with pytest.raises(UserError, match="does not repeat itself"):
            train(job, tmp_path)
    else:
        assert train(job, tmp_path)


def test_a_run_can_be_resumed_however_few_transitions_are_kept(tmp_path: Path) -> None:
    job = make_job(replay_capacity=2)
    assert not train(job, tmp_path, stop_at=28, checkpoint_every=7)
    assert train(job, tmp_path)
    assert written(tmp_path) == uncut(job.model_dump_json())
