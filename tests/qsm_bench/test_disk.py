"""Disks that are full, read-only or faulty: one clear line, and nothing else is damaged."""

import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm_bench import cli
from qsm_bench.checkpoint import FORMAT, Checkpoint
from qsm_bench.errors import UserError
from qsm_bench.executors import processes
from qsm_bench.heartbeat import Heartbeat
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import FORMAT as STORE_FORMAT
from qsm_bench.manifest import Manifest
from qsm_bench.progress import job_state
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.suites import find_suite
from qsm_bench.training import Training
from tests.qsm_bench.jobs import (
    AGENTS,
    WARMUP,
    kill,
    make_experiment,
    make_job,
    train,
    uncut,
    written,
)
from tests.qsm_bench.processes import ForkedJob, run_jobs

QSM, *_, TD3 = AGENTS


def assert_one_line(error: BaseException, *parts: str) -> None:
    assert isinstance(error, UserError)
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a job that was interrupted after two checkpoints."""
    folder = tmp_path_factory.mktemp("begun")
    JobFolder(folder).write_manifest(Manifest(job=make_job(TD3)))
    kill(make_job(TD3), folder, checkpoint_every=7, at=60)
    assert {file.name for file in (folder / "checkpoint").iterdir()} == {
        "state.pt",
        "previous.pt",
        "replay.f32",
    }
    return folder


@pytest.fixture
def job_folder(begun: Path, tmp_path: Path) -> JobFolder:
    shutil.copytree(begun, tmp_path / "job")
    return JobFolder(tmp_path / "job")


def assert_goes_on(job_folder: JobFolder) -> None:
    assert train(make_job(TD3), job_folder.path)
    assert written(job_folder.path) == uncut(make_job(TD3).model_dump_json())


# Damage.


def flip(data: bytes, where: float, bit: int) -> bytes:
    index = int(where * len(data))
    return data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]


def cut(data: bytes, where: float, _: int) -> bytes:
    return data[: int(where * len(data))]


Damage = tuple[Callable[[bytes, float, int], bytes], float, int]
DAMAGE = st.tuples(
    st.sampled_from([flip, cut]), st.floats(0, 1, exclude_max=True), st.integers(0, 7)
)


def loaded(folder: Path) -> tuple[int, bytes]:
    """Return the step and all else of the checkpoint from which a run would resume."""
    with TemporaryDirectory() as name:
        shutil.copytree(folder, name, dirs_exist_ok=True)
        training = Training(make_job(TD3), JobFolder(Path(name)), checkpoint_every=1000)
        training.close()
        out = io.BytesIO()
        replay = training.replay.records[: training.replay.added]
        torch.save({"agent": training.agent.state_dict(), "replay": replay.clone()}, out)
        return training.step, out.getvalue() + repr(written(Path(name))).encode()


@pytest.fixture(scope="module")
def checkpoints(begun: Path) -> dict[int, bytes]:
    """Return what the two checkpoints hold, by step."""
    newest = loaded(begun)
    with TemporaryDirectory() as name:
        shutil.copytree(begun, name, dirs_exist_ok=True)
        Path(name, "checkpoint", "state.pt").unlink()
        return dict([newest, loaded(Path(name))])


CHECKPOINT_FILES = st.sampled_from(
    ["state.pt", "previous.pt", "replay.f32", "../evaluations.csv", "../training.csv"]
)


def assert_found(begun: Path, checkpoints: dict[int, bytes], name: str, damage: Damage) -> None:
    """Check that the damage is found, or makes no difference at all."""
    damaging, where, bit = damage
    with TemporaryDirectory() as folder:
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        file = Path(folder, "checkpoint", name)
        file.write_bytes(damaging(file.read_bytes(), where, bit))
        before = {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        try:
            step, state = loaded(Path(folder))
        except UserError as error:
            assert name not in ("state.pt", "previous.pt"), "the other one would have done"
            assert_one_line(error, Path(name).name, "delete ")
            assert {p: p.read_bytes() for p in before} == before
        else:
            assert checkpoints[step] == state


@settings(max_examples=40)
@given(CHECKPOINT_FILES, DAMAGE)
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_used(
    begun: Path, checkpoints: dict[int, bytes], name: str, damage: Damage
) -> None:
    assert_found(begun, checkpoints, name, damage)


@pytest.mark.slow
@settings(max_examples=1000)
@given(CHECKPOINT_FILES, DAMAGE)
def test_a_thousand_damages_are_found(
    begun: Path, checkpoints: dict[int, bytes], name: str, damage: Damage
) -> None:
    assert_found(begun, checkpoints, name, damage)


def test_a_checkpoint_of_another_format_says_which_it_needs(tmp_path: Path) -> None:
    job = make_job()
    assert not train(job, tmp_path, stop_at=WARMUP + 3)
    for file in (tmp_path / "checkpoint").glob("*.pt"):
        state = torch.load(file, weights_only=True)
        torch.save(state | {"format": 1}, file)
    with pytest.raises(UserError) as refused:
        train(job, tmp_path)
    assert_one_line(refused.value, "is of format 1", f"reads format {FORMAT}")


@pytest.mark.parametrize("name", ["state.pt", "replay.f32"])
def test_a_job_goes_on_from_the_checkpoint_before_and_leaves_the_same_bytes(
    job_folder: JobFolder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job_folder.checkpoint / name
    file.write_bytes(file.read_bytes()[:-1] if name != "state.pt" else b"nonsense")
    assert_goes_on(job_folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert "going on from the checkpoint before it" in line


def test_killed_between_one_state_and_the_next_it_leaves_the_same_bytes(
    job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (job_folder.checkpoint / "state.pt").unlink()
    assert_goes_on(job_folder)
    assert capsys.readouterr().err == ""


def test_a_damaged_state_never_takes_the_place_of_the_one_before(job_folder: JobFolder) -> None:
    (job_folder.checkpoint / "state.pt").write_bytes(b"nonsense")
    kill(make_job(TD3), job_folder.path, checkpoint_every=1000, at=1)
    assert Checkpoint(job_folder.checkpoint).load_state() is not None
    assert_goes_on(job_folder)


def test_where_no_checkpoint_is_intact_one_line_names_both(job_folder: JobFolder) -> None:
    for name in ("state.pt", "previous.pt"):
        (job_folder.checkpoint / name).write_bytes(b"nonsense")
    with pytest.raises(UserError) as refused:
        train(make_job(TD3), job_folder.path)
    assert_one_line(
        refused.value, "state.pt", "previous.pt", f"delete {job_folder.path} to train it"
    )


def test_a_checkpoint_of_another_job_is_one_line(job_folder: JobFolder) -> None:
    with pytest.raises(UserError) as refused:
        train(make_job("td3[hidden_sizes=[9]]"), job_folder.path)
    assert_one_line(
        refused.value, "state.pt is another job's", f"delete {job_folder.path} to train it"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ExperimentStore:
    """Run an experiment of one job to its end."""
    store = ExperimentStore(tmp_path_factory.mktemp("finished"), "there")
    experiment = make_experiment(QSM, steps=30, eval_every=10, eval_episodes=1)
    (job_folder,) = store.prepare(experiment, "a command")
    assert run_forked([job_folder]) == {}
    return store


def run_forked(job_folders: list[JobFolder]) -> dict[JobFolder, str]:
    with patch.object(processes, "_start", ForkedJob):
        return run_jobs(job_folders, workers=1, checkpoint_every=5)


def restored(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and put them back afterwards."""
    data = file.read_bytes()
    try:
        yield data
    finally:
        file.write_bytes(data)


def found_damaged(store: ExperimentStore) -> str:
    """Return the line that says what is wrong with an experiment of one job."""
    try:
        (damaged,) = load_results(store.folder.parent, store.folder.name).damaged
        fault = damaged.fault
    except UserError as error:
        fault = str(error)
    assert "\n" not in fault
    assert "; delete " in fault
    return fault


@pytest.mark.parametrize("name", ["experiment.json", "manifest.json", "evaluations.csv"])
def test_a_small_file_cut_off_anywhere_is_one_line(finished: ExperimentStore, name: str) -> None:
    (file,) = finished.folder.rglob(name)
    for data in restored(file):
        for length in range(len(data.rstrip())):
            file.write_bytes(data[:length])
            assert name in found_damaged(finished)


def test_progress_cut_off_anywhere_is_no_progress(finished: ExperimentStore) -> None:
    (file,) = finished.folder.rglob("progress.json")
    (job_folder,) = finished.job_folders()
    for data in restored(file):
        for length in range(len(data)):
            file.write_bytes(data[:length])
            assert "finished, step 30/30" in job_state(job_folder).line


@given(
    st.sampled_from(["evaluations.csv", "training.csv", "diagnostics.csv", "slices.csv"]), DAMAGE
)
def test_a_finished_table_that_is_not_what_its_job_wrote_is_refused(
    finished: ExperimentStore,
    name: str,
    damage: Damage,
) -> None:
    (file,) = finished.folder.rglob(name)
    damaging, where, bit = damage
    for data in restored(file):
        file.write_bytes(damaging(data, where, bit))
        fault = found_damaged(finished)
        assert name in fault
        assert "damaged" in fault


def test_a_row_that_is_being_written_is_not_read_yet(job_folder: JobFolder) -> None:
    store = ExperimentStore(job_folder.path.parent, "live")
    own = store.job_folder("td3", "four-goals", (0, 1))
    shutil.copytree(job_folder.path, own.path)
    asked = {"agents": ["td3"], "tasks": ["four-goals"]}
    store.file.write_text(json.dumps(asked))
    whole = load_results(job_folder.path.parent, "live").evaluations
    with own.evaluations_file.open("a") as file:
        file.write("0,40,0,-3.1")
    assert load_results(job_folder.path.parent, "live").evaluations.equals(whole)


# Versions.


def test_a_store_of_a_later_format_says_so(finished: ExperimentStore) -> None:
    for name in ("experiment.json", "manifest.json"):
        (file,) = finished.folder.rglob(name)
        for data in restored(file):
            content = json.loads(data) | {"format": STORE_FORMAT + 1, "another": "field"}
            file.write_text(json.dumps(content))
            with pytest.raises(UserError) as refused:
                load_results(finished.folder.parent, "there")
            assert_one_line(refused.value, name, "later version", f"format {STORE_FORMAT + 1}")


def test_a_store_from_before_formats_had_names_opens(finished: ExperimentStore) -> None:
    (manifest_file,) = finished.folder.rglob("manifest.json")
    (experiment_file,) = finished.folder.rglob("experiment.json")
    new = {"format", "log_tail", "retried", "diverged", "checkpoint_seconds", "checksums"}
    now = load_results(finished.folder.parent, "there")
    for file in (manifest_file, experiment_file):
        for data in restored(file):
            content = json.loads(data)
            file.write_text(json.dumps({k: v for k, v in content.items() if k not in new}))
            before = load_results(finished.folder.parent, "there")
            assert before.evaluations.equals(now.evaluations)


# Disks that take nothing more.


@settings(max_examples=8)
@given(st.integers(1, 40))
def test_wherever_the_disk_is_full_the_job_can_go_on(number: int) -> None:
    """The ``number``-th time that data is to reach the disk, it does not."""
    counter = itertools.count(1)
    fsync = os.fsync

    def full(file: int) -> None:
        if next(counter) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with TemporaryDirectory() as name:
        with patch.object(os, "fsync", full), suppress(OSError):
            train(make_job(TD3), Path(name), checkpoint_every=7)
        assert_goes_on(JobFolder(Path(name)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a file system in memory, of a size and with options."""
    mounted = []

    def mount(size: str, options: str = "rw") -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("it takes the right to mount")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Write a file that takes all of a disk but ``leave`` bytes."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 16_384])
def test_a_full_disk_is_one_line_and_with_room_the_job_goes_on(
    begun: Path, small_disk: Callable[..., Path], leave: int
) -> None:
    """With nothing left it cannot even be started; with a little, its checkpoint does not fit."""
    folder = small_disk("2m") / "job"
    shutil.copytree(begun, folder)
    job_folder = JobFolder(folder)
    ballast = fill(folder.parent, leave)
    (reason,) = run_forked([job_folder]).values()
    assert "No space left on device" in reason
    assert "\n" not in reason
    assert not list(folder.rglob("*.tmp"))
    if leave:
        assert job_folder.read_manifest().status == "failed"
        assert "No space left on device" in (job_folder.read_manifest().reason or "")
    ballast.unlink()
    assert run_forked([job_folder]) == {}
    assert job_folder.read_manifest().status == "finished"
    assert written(folder) == uncut(make_job(TD3).model_dump_json())


def command_line(*arguments: str) -> tuple[int, str]:
    err = io.StringIO()
    with (
        patch.object(sys, "argv", ["qsm_bench", *arguments]),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return int(ended.value.code or 0), err.getvalue()


RUN: tuple[str, ...] = (
    "run",
    f"--agents={QSM}",
    "--tasks=four-goals",
    "--name=there",
    "--seeds=2",
    "--steps=30",
)
RUN += ("--warmup-steps=8", "--batch-size=8", "--eval-every=10", "--eval-episodes=1")
RUN += ("--device=cpu",)


def test_a_folder_that_cannot_be_written_is_one_line_and_can_be_read(
    finished: ExperimentStore, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk("2m")
    shutil.copytree(finished.folder, disk / "there")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status, err = command_line(*RUN, f"--results={disk}")
    assert status == 2
    assert err.splitlines() == [f"error: {disk / 'there'} cannot be written: Read-only file system"]
    assert command_line("status", "there", f"--results={disk}") == (0, "")
    assert len(load_results(disk, "there").evaluations) == 6


def test_a_second_run_of_a_name_says_who_has_it(finished: ExperimentStore) -> None:
    with FileLock(finished.folder / ".lock"), Heartbeat(finished.holder_file):
        status, err = command_line(*RUN, f"--results={finished.folder.parent}")
    assert status == 2
    (line,) = err.splitlines()
    assert f"'there' is being run by process {os.getpid()}: wait for it" in line


# What checkpoints cost.


@pytest.mark.slow
def test_checkpoints_cost_under_two_percent_of_the_time_at_the_defaults(tmp_path: Path) -> None:
    """The fastest agent, whose steps cost least, with a checkpoint as often as by default."""
    every, updates = find_suite("dmc_easy_medium").protocol.eval_every, 100
    job = make_job(
        "td3",
        task="cartpole-swingup",
        seeds=3,
        warmup_steps=every,
        steps=every + updates,
        batch_size=256,
        eval_every=10**9,
    )
    training = Training(job, JobFolder(tmp_path), checkpoint_every=10**9)
    while training.step < every:
        training._take_step()
    began = time.perf_counter()
    for _ in range(updates):
        training._take_step()
    step_seconds = (time.perf_counter() - began) / updates
    training.save()
    training.close()
    share = training.checkpoint_seconds / (every * step_seconds)
    print(f"{training.checkpoint_seconds:.3f} s a checkpoint, {100 * share:.3f} % of the time")
    assert share < 0.02
