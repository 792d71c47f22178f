"""A job that is cut off anywhere, however often, and goes on, leaves what an uncut one leaves."""

import csv
import itertools
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.common import streams
from agents.speed.toolchain import why_not_compiled
from envs import Lockstep, ParallelLockstep, TaskError
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted, evaluate
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.replay import ReplayBuffer
from qsm_bench.training import Training
from tests.envs.made_up import register
from tests.qsm_bench.jobs import (
    AGENTS,
    EVAL_EVERY,
    POISONED,
    POISONED_AT,
    WARMUP,
    after,
    kill,
    make_job,
    poison,
    train,
    uncut,
    written,
)


def assert_uncut(agent: str, cuts: list[tuple[bool, int]], checkpoint_every: int) -> None:
    """Check that deaths (True) and requests to stop at these steps change nothing in the end."""
    job = make_job(agent)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for killed, at in cuts:
            if killed:
                kill(job, folder, checkpoint_every=checkpoint_every, at=at)
            else:
                train(job, folder, checkpoint_every=checkpoint_every, stop_at=at)
        assert train(job, folder, checkpoint_every=checkpoint_every)
        assert written(folder) == uncut(job.model_dump_json())


each_agent = pytest.mark.parametrize(
    "agent", AGENTS, ids=[agent.partition("[")[0] for agent in AGENTS]
)


@each_agent
def test_stopped_in_warm_up_in_training_and_in_evaluation_leaves_the_same_bytes(agent: str) -> None:
    in_evaluation = (False, EVAL_EVERY + 3)
    assert_uncut(agent, [(False, WARMUP - 2), (False, 5), in_evaluation, (True, 14)], 7)


@pytest.mark.slow
@each_agent
@settings(max_examples=8)  # of each of eleven trainers
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 120)), min_size=1, max_size=3),
    st.sampled_from([1, 7, EVAL_EVERY, 1000]),
)
def test_interrupted_anywhere_and_resumed_a_job_leaves_the_same_bytes(
    agent: str, cuts: list[tuple[bool, int]], checkpoint_every: int
) -> None:
    assert_uncut(agent, cuts, checkpoint_every)


@pytest.mark.parametrize("agent", ["qsm[hidden_sizes=[8]]", "sac[hidden_sizes=[8]]"])
def test_streams_of_a_gpu_stopped_in_an_evaluation_go_on_from_before_it(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their state is a tensor that every draw changes in place; here it lies on the CPU."""
    monkeypatch.setattr(streams, "Generators", streams.Counters)
    job = make_job(agent)
    assert train(job, tmp_path / "whole")
    for stop_at in (EVAL_EVERY - 1, EVAL_EVERY + 3):
        folder = tmp_path / str(stop_at)
        assert not train(job, folder, stop_at=stop_at)
        assert train(job, folder)
        assert written(folder) == written(tmp_path / "whole")


def test_dead_before_its_first_checkpoint_it_starts_anew() -> None:
    """Rows of an evaluation are on disk by then, and come again."""
    assert_uncut(AGENTS[-1], [(True, EVAL_EVERY + 40), (True, 3)], 1000)


@each_agent
def test_a_replay_buffer_that_wrapped_is_read_back(agent: str, tmp_path: Path) -> None:
    job = make_job(agent, replay_capacity=30)
    assert not train(job, tmp_path, stop_at=90, checkpoint_every=7)
    assert train(job, tmp_path)
    assert written(tmp_path) == uncut(job.model_dump_json())


def test_a_seed_warms_up_the_same_whoever_runs_beside_it(tmp_path: Path) -> None:
    seen = []
    for seeds in (1, 3):
        folder = tmp_path / str(seeds)
        folder.mkdir()
        training = Training(make_job(seeds=seeds), JobFolder(folder), checkpoint_every=1000)
        training.stop = after(WARMUP)
        with pytest.raises(Interrupted):
            training.run()
        training.close()
        records = [training.replay.record(step) for step in range(WARMUP)]
        seen.append([(r[0][0].tolist(), r[1][0].tolist(), r[2][0].tolist()) for r in records])
    assert seen[0] == seen[1]


def test_evaluations_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    assert train(make_job(), tmp_path)
    with JobFolder(tmp_path).evaluations_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), int(r["seed"]), int(r["episode"])) for r in rows] == list(
        itertools.product((20, 40, 45), (0, 1), (0, 1))
    )
    assert all(1 <= int(row["length"]) <= 30 for row in rows)


def test_the_last_checkpoint_plays_the_last_evaluation_again(tmp_path: Path) -> None:
    job = make_job()
    assert train(job, tmp_path)
    with JobFolder(tmp_path).evaluations_file.open(newline="") as file:
        rows = list(csv.DictReader(file))[-4:]
    again = Training(job, JobFolder(tmp_path), checkpoint_every=1000)
    played = evaluate(
        again.agent,
        again.evaluation_environments,
        job.seeds,
        2,
        start_key=job.protocol.steps,
        device=again.device,
    )
    again.close()
    assert [float(row["return"]) for row in rows] == played.returns.ravel().tolist()
    assert [int(row["length"]) for row in rows] == played.length.ravel().tolist()


def test_the_checkpoint_log_only_grows(tmp_path: Path) -> None:
    job = make_job()
    logs = []
    while not train(job, tmp_path, stop_at=40, checkpoint_every=5):
        logs.append(Checkpoint(tmp_path / "checkpoint").replay_file.read_bytes())
        if len(logs) > 20:
            pytest.fail("it does not get on")
    assert len(logs) >= 2
    for shorter, longer in itertools.pairwise(logs):
        assert longer.startswith(shorter)


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(3, 6), st.binary(max_size=99))
def test_a_checkpoint_reads_back_what_was_added(
    first: int, more: int, capacity: int, cut_off: bytes
) -> None:
    """Also behind bytes of a later checkpoint that was cut off before its state was written."""

    def buffer() -> ReplayBuffer:
        return ReplayBuffer(capacity, 2, 1, (0, 1), torch.device("cpu"))

    def add(replay: ReplayBuffer, count: int) -> None:
        for _ in range(count):
            value = torch.full((2,), float(replay.added))
            no = torch.zeros(2, dtype=torch.bool)
            wide = value.unsqueeze(1).expand(2, 2)
            replay.add(wide, value.unsqueeze(1), value, wide, no, no)

    with TemporaryDirectory() as folder:
        replay, checkpoint = buffer(), Checkpoint(Path(folder))
        add(replay, first)
        checkpoint.save(replay, {"step": first})
        with checkpoint.replay_file.open("ab") as file:
            file.write(cut_off)
        replay, checkpoint = buffer(), Checkpoint(Path(folder))
        state = checkpoint.load(replay)
        assert state is not None
        assert state["step"] == first
        add(replay, more)
        checkpoint.save(replay, {"step": first + more})
        again = buffer()
        Checkpoint(Path(folder)).load(again)
        assert again.added == first + more
        for step in range(again.added - again.size, again.added):
            assert again.record(step)[2].flatten().tolist() == [step, step]


class Forgetful(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A task that draws its observations from a generator that no seed sets."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.random.default_rng().random(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.random.default_rng().random(2, np.float32), 0.0, False, False, {}


class Endless(Forgetful):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


register("test_training/Forgetful-v0", Forgetful, max_episode_steps=20)
register("test_training/Endless-v0", Endless)


def test_a_task_that_does_not_repeat_itself_cannot_be_resumed(tmp_path: Path) -> None:
    job = make_job(task="test_training/Forgetful-v0")
    assert not train(job, tmp_path, stop_at=WARMUP)
    with pytest.raises(UserError, match="does not repeat itself") as refused:
        train(job, tmp_path)
    assert "\n" not in str(refused.value)


def test_an_episode_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsm_bench.evaluation.LONGEST_EPISODE", 50)
    with pytest.raises(TaskError, match="ran past 50 steps without ending"):
        train(make_job(task="test_training/Endless-v0"), tmp_path)


def test_an_interrupted_evaluation_has_its_checkpoint(tmp_path: Path) -> None:
    """The steps before it are not taken again, however rare checkpoints are."""
    job = make_job()
    assert not train(job, tmp_path, stop_at=EVAL_EVERY + 2, checkpoint_every=1000)
    again = Training(job, JobFolder(tmp_path), checkpoint_every=1000)
    again.close()
    assert again.step == EVAL_EVERY


def test_a_job_reads_back_from_its_manifest(tmp_path: Path) -> None:
    job = make_job(AGENTS[0])
    folder = JobFolder(tmp_path)
    folder.write_manifest(Manifest(job=job))
    assert folder.read_manifest().job.model_dump_json() == job.model_dump_json()


def train_poisoned(job: Job, folder: Path, stop_at: int = 10**9, **how: Any) -> Training:
    folder.mkdir(exist_ok=True)
    training = Training(job, JobFolder(folder), checkpoint_every=4, stop=after(stop_at))
    poison(training, **how)
    with suppress(Interrupted):
        training.run()
    training.close()
    return training


def rows_of(text: bytes, seed: int) -> list[dict[str, str]]:
    rows = csv.DictReader(text.decode().splitlines())
    return [row for row in rows if row["seed"] == str(seed)]


@each_agent
def test_a_seed_that_diverges_is_marked_and_the_others_go_on_bit_for_bit(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    begin = Lockstep.begin

    def watched_begin(self: Lockstep, actions: Any, active: Any = None) -> None:
        given.append(np.isfinite(actions[... if active is None else active]).all())
        begin(self, actions, active)

    monkeypatch.setattr(Lockstep, "begin", watched_begin)
    job = make_job(agent, task="linear-quadratic", seeds=3)
    well, ill = tmp_path / "well", tmp_path / "ill"
    well.mkdir()
    train(job, well)
    training = train_poisoned(job, ill)
    assert training.status.diverged == {POISONED: POISONED_AT}
    assert all(given), "an environment was given what is no action"
    healthy, sick = written(well), written(ill)
    for seed in (0, 2):
        for table in ("evaluations", "diagnostics"):
            assert rows_of(sick[table], seed) == rows_of(healthy[table], seed)
        own, other = ([r for r in x["training"] if r["seed"] == str(seed)] for x in (sick, healthy))
        assert own == other
    told = [(row["step"], row["return"] == "nan") for row in rows_of(sick["evaluations"], POISONED)]
    assert told == [(step, step != "20") for step in ("20", "20", "40", "40", "45", "45")]

    cut = tmp_path / "cut"
    for stop_at in (POISONED_AT, 30, 70):
        train_poisoned(job, cut, stop_at)
    assert train_poisoned(job, cut).status.diverged == {POISONED: POISONED_AT}
    assert repr(written(cut)) == repr(sick)


def test_a_seed_whose_policy_diverges_before_its_loss_does_is_marked(tmp_path: Path) -> None:
    """TD3 tells no loss of its actor, and the first to see it may be an evaluation."""
    for at in (EVAL_EVERY, POISONED_AT):
        training = train_poisoned(
            make_job(task="linear-quadratic"), tmp_path / str(at), at=at, parts="actor"
        )
        assert training.status.diverged == {POISONED: at}


def test_an_infinite_loss_is_no_loss(tmp_path: Path) -> None:
    training = train_poisoned(make_job(), tmp_path, parts="critic", value=np.inf)
    assert training.status.diverged == {POISONED: POISONED_AT}


def test_a_job_all_of_whose_seeds_diverge_comes_to_its_end(tmp_path: Path) -> None:
    job = make_job().model_copy(update={"seeds": (7, 8)})
    training = Training(job, JobFolder(tmp_path), checkpoint_every=1000)
    poison(training)
    training.status.finite[0] = False
    training.run()
    training.close()
    assert training.status.diverged == {7: WARMUP, 8: POISONED_AT}
    assert training.last_return is None
    rows = list(csv.DictReader(JobFolder(tmp_path).evaluations_file.read_text().splitlines()))
    assert [row["return"] for row in rows if row["step"] == "45"] == ["nan"] * 4


def test_environments_in_other_processes_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(AGENTS[-1], task="four-goals")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    train(job, here)
    monkeypatch.setattr(
        Training, "_environments", lambda self, count: ParallelLockstep(job.task, count, 2)
    )
    train(job, there)
    assert written(there) == written(here)


@pytest.mark.slow
@pytest.mark.skipif(why_not_compiled() is not None, reason="nothing can be compiled here")
def test_a_compiled_job_interrupted_and_resumed_leaves_the_same_bytes(tmp_path: Path) -> None:
    job = make_job(AGENTS[-1]).model_copy(update={"compiled": True})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert train(job, whole)
    assert not train(job, cut, stop_at=WARMUP + 7)
    assert train(job, cut)
    assert written(cut) == written(whole)
