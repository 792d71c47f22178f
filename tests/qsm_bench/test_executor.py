"""Jobs in their own processes: deaths, interrupts, orphans, and what the manifests say of them."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from agents.registry import AgentError
from envs import EnvironmentDiedError, TaskError
from qsm_bench import process, worker
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted
from qsm_bench.executors import Work, processes
from qsm_bench.executors.processes import Place
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.progress import job_state
from qsm_bench.store import ExperimentStore
from qsm_bench.training import Training
from tests.qsm_bench.jobs import POISONED, POISONED_AT, make_experiment, make_job, poison
from tests.qsm_bench.processes import (
    ForkedJob,
    crowding,
    exit_status,
    fork,
    made_up_jobs,
    run_jobs,
)

ROOT = Path(__file__).parents[2]


def lay_out(folder: Path, agents: str = "sac,td3,qsm", steps: int = 30) -> list[JobFolder]:
    experiment = make_experiment(
        agents, name="test", seeds=1, steps=steps, warmup_steps=10, eval_episodes=1
    )
    return ExperimentStore(folder, "test").prepare(experiment, "a command")


@pytest.fixture
def folders(tmp_path: Path) -> list[JobFolder]:
    return lay_out(tmp_path)


FINISH = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
manifest = json.loads(file.read_text())
manifest["status"] = "finished"
file.write_text(json.dumps(manifest))
"""
KILL_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def run_scripts(
    folders: Sequence[JobFolder],
    scripts: Sequence[str],
    workers: int = 8,
    on_poll: Callable[[], None] = lambda: None,
) -> list[subprocess.Popen[bytes]]:
    """Run the jobs, each a small script in place of training."""
    with started(folders, scripts) as begun, patch.object(processes, "POLL_SECONDS", 0.01):
        run_jobs(folders, workers=workers, checkpoint_every=10, on_poll=on_poll)
    return begun


@contextmanager
def started(
    folders: Sequence[JobFolder], scripts: Sequence[str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let the jobs be small scripts; return the processes that were started."""
    script = dict(zip(folders, scripts, strict=True))
    begun = []

    def start(folder: JobFolder, *_: Any) -> subprocess.Popen[bytes]:
        with folder.log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", script[folder], str(folder.manifest_file)],
                stdout=log,
                stderr=log,
            )
        begun.append(process)
        return process

    with patch.object(processes, "_start", start):
        yield begun


def test_a_job_that_is_killed_takes_no_other_with_it(folders: list[JobFolder]) -> None:
    run_scripts(folders, [FINISH, KILL_ITSELF, FINISH])
    manifests = [folder.read_manifest() for folder in folders]
    assert [manifest.status for manifest in manifests] == ["finished", "failed", "finished"]
    assert manifests[1].reason is not None
    assert "signal SIGKILL" in manifests[1].reason


def test_a_job_that_ends_without_a_word_is_quoted(folders: list[JobFolder]) -> None:
    run_scripts(folders[:1], ["print('first'); print('the last word'); raise SystemExit(5)"])
    manifest = folders[0].read_manifest()
    assert manifest.status == "failed"
    assert manifest.reason == "its process ended by exit status 5: the last word"
    assert manifest.log_tail == ("first", "the last word") * 2
    assert job_state(folders[0]).line.splitlines()[1:] == [f"  | {x}" for x in manifest.log_tail]


DIE_ONCE = """
import os, pathlib, signal, sys
died = pathlib.Path(sys.argv[1] + ".died")
if not died.exists():
    died.touch()
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_job_that_dies_is_tried_once_more_and_its_manifest_says_so(
    folders: list[JobFolder],
) -> None:
    run_scripts(folders, [FINISH, DIE_ONCE + FINISH, KILL_ITSELF], workers=1)
    manifests = [folder.read_manifest() for folder in folders]
    assert [manifest.status for manifest in manifests] == ["finished", "finished", "failed"]
    assert [manifest.retried for manifest in manifests] == [
        None,
        "its process ended by signal SIGSEGV",
        "its process ended by signal SIGKILL",
    ]
    assert manifests[1].reason is None


@pytest.mark.parametrize(("script", "starts"), [(FINISH, 1), (DIE_ONCE, 2), (KILL_ITSELF, 2)])
def test_a_job_is_started_at_most_twice(folders: list[JobFolder], script: str, starts: int) -> None:
    assert len(run_scripts(folders[:1], [script])) == starts


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (UserError("no"), 1),
        (TaskError("no"), 1),
        (AgentError("no"), 1),
        (EnvironmentDiedError("its process died"), 2),
        (MemoryError(), 2),
        (OSError(28, "No space left"), 2),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    folders: list[JobFolder], error: Exception, starts: int
) -> None:
    begun = []

    def start(folder: JobFolder, *arguments: Any) -> ForkedJob:
        begun.append(folder)
        return ForkedJob(folder, *arguments)

    with (
        patch.object(Training, "run", side_effect=error),
        patch.object(processes, "_start", start),
        patch.object(processes, "POLL_SECONDS", 0.01),
    ):
        unfinished = run_jobs(folders[:1], workers=1, checkpoint_every=10)
    assert len(begun) == starts
    assert (folders[0].read_manifest().retried is None) == (starts == 1)
    assert list(unfinished) == folders[:1]


def test_what_did_not_finish_is_returned_with_its_reason(folders: list[JobFolder]) -> None:
    interrupt = FINISH.replace("finished", "interrupted")
    with (
        patch.object(processes, "POLL_SECONDS", 0.01),
        started(folders, [FINISH, KILL_ITSELF, interrupt]),
    ):
        unfinished = run_jobs(folders, workers=3, checkpoint_every=10)
    assert unfinished == {
        folders[1]: "its process ended by signal SIGKILL",
        folders[2]: "it was asked to stop, and is saved",
    }


@pytest.mark.parametrize("before", ["interrupted", "failed"])
def test_a_job_that_dies_on_its_second_start_is_recorded_anew(
    folders: list[JobFolder], before: Any
) -> None:
    manifest = folders[0].read_manifest()
    manifest.status, manifest.reason = before, "of old"
    folders[0].write_manifest(manifest)
    run_scripts(folders[:1], [KILL_ITSELF])
    manifest = folders[0].read_manifest()
    assert manifest.status == "failed"
    assert manifest.reason is not None
    assert "signal SIGKILL" in manifest.reason


@pytest.fixture
def jobs() -> Callable[[], list[psutil.Process]]:
    """Return the processes that a test has started and that still run."""
    before = psutil.Process().children()

    def running() -> list[psutil.Process]:
        here = [p for p in psutil.Process().children() if p not in before]
        return [p for p in here if p.status() != psutil.STATUS_ZOMBIE]

    return running


WAIT = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1] + ".go").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_jobs_run_as_many_at_a_time_as_there_are_workers(
    folders: list[JobFolder], workers: int, jobs: Callable[[], list[psutil.Process]]
) -> None:
    most, deadline = 0, time.monotonic() + 60

    def watch() -> None:
        nonlocal most
        most = max(most, len(jobs()))
        if most >= workers:
            for folder in folders:
                Path(f"{folder.manifest_file}.go").touch()
        assert time.monotonic() < deadline, f"never more than {most} at a time"

    run_scripts(folders, [WAIT + FINISH] * 3, workers, watch)
    assert most == workers
    assert [folder.read_manifest().status for folder in folders] == ["finished"] * 3


def test_an_interrupt_ends_every_job_even_a_stubborn_one(
    folders: list[JobFolder],
    monkeypatch: pytest.MonkeyPatch,
    jobs: Callable[[], list[psutil.Process]],
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)

    def watch() -> None:
        if all(
            folder.log_file.exists() and folder.log_tail(1) == ("ready",) for folder in folders[:2]
        ):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_scripts(folders, [STUBBORN] * 3, workers=2, on_poll=watch)
    assert time.monotonic() - began < 10
    assert jobs() == []
    assert folders[2].read_manifest().status == "pending"


def test_a_job_that_had_to_be_killed_is_not_left_running(
    folders: list[JobFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    manifest = folders[0].read_manifest()
    manifest.status = "running"
    folders[0].write_manifest(manifest)

    def watch() -> None:
        if folders[0].log_tail(1) == ("ready",):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scripts(folders[:1], [STUBBORN], on_poll=watch)
    assert folders[0].read_manifest().status != "running"


def work(folder: JobFolder) -> int:
    """Run the job in this process, and return its exit status."""
    try:
        worker.work(folder.path, checkpoint_every=20, command="a command")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("two\nlines"), process.FAILED, "ValueError: two lines"),
        (UserError("task 'x' has no end"), process.REFUSED, "task 'x' has no end"),
    ],
)
def test_a_job_that_raises_says_why_and_logs_where(
    folders: list[JobFolder],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    reason: str,
) -> None:
    with patch.object(Training, "run", side_effect=error):
        assert work(folders[0]) == status
    manifest = folders[0].read_manifest()
    assert (manifest.status, manifest.reason) == ("failed", reason)
    assert "Traceback" in capsys.readouterr().err


def test_a_job_that_failed_may_be_run_again(folders: list[JobFolder]) -> None:
    with patch.object(Training, "run", side_effect=ValueError):
        work(folders[0])
    assert work(folders[0]) == 0
    manifest = folders[0].read_manifest()
    assert (manifest.status, manifest.reason, manifest.step) == ("finished", None, 30)
    assert manifest.updates == 20


def test_a_seed_that_diverged_is_in_the_manifest_and_in_what_status_tells(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.write_manifest(Manifest(job=make_job()))
    run = Training.run

    def run_poisoned(self: Training) -> None:
        poison(self)
        run(self)

    with patch.object(Training, "run", run_poisoned):
        assert work(folder) == 0
    assert folder.read_manifest().diverged == {POISONED: POISONED_AT}
    assert job_state(folder).line.endswith(f"seed {POISONED} diverged at step {POISONED_AT}")
    assert folder.read_progress()["diverged"] == {str(POISONED): POISONED_AT}


def test_a_finished_job_says_what_its_checkpoints_took_and_what_its_tables_are(
    folders: list[JobFolder],
) -> None:
    assert work(folders[0]) == 0
    manifest = folders[0].read_manifest()
    assert manifest.checkpoint_seconds > 0
    assert manifest.checksums == folders[0].checksums()
    assert {"evaluations.csv", "training.csv"} <= manifest.checksums.keys()


def test_a_job_that_is_asked_to_stop_is_interrupted(folders: list[JobFolder]) -> None:
    with patch.object(Training, "run", side_effect=Interrupted):
        assert work(folders[0]) == process.INTERRUPTED
    assert folders[0].read_manifest().status == "interrupted"


def test_sigterm_stops_a_job_which_then_goes_on(folders: list[JobFolder]) -> None:
    take_step = Training._take_step
    count = itertools.count(1)

    def step(self: Training) -> None:
        if next(count) == 15:
            signal.raise_signal(signal.SIGTERM)
        take_step(self)

    with patch.object(Training, "_take_step", step):
        assert work(folders[0]) == process.INTERRUPTED
        assert folders[0].read_manifest().step == 15
        assert work(folders[0]) == 0
    assert next(count) == 31, "no step was taken twice"


def test_a_replay_log_goes_only_after_the_job_is_known_to_be_finished(
    folders: list[JobFolder],
) -> None:
    """Or a death in between would leave a job that can neither go on nor be skipped."""
    status = []
    tidy = Checkpoint.tidy

    def dropping(self: Checkpoint, *, keep_replay: bool) -> None:
        status.append(folders[0].read_manifest().status)
        tidy(self, keep_replay=keep_replay)

    with patch.object(Checkpoint, "tidy", dropping):
        assert work(folders[0]) == 0
    assert status == ["finished"]
    assert not folders[0].replay_file.exists()


def test_a_job_has_one_writer(folders: list[JobFolder], capsys: pytest.CaptureFixture[str]) -> None:
    before = folders[0].manifest_file.read_bytes()
    with FileLock(folders[0].lock_file):
        assert work(folders[0]) == process.FAILED
    assert folders[0].manifest_file.read_bytes() == before
    assert "being written by another process" in capsys.readouterr().err


def test_a_job_that_another_process_has_is_left_to_it(folders: list[JobFolder]) -> None:
    """An orphan of an earlier run may still be saving itself: its manifest is its own."""
    manifest = folders[0].read_manifest()
    manifest.status = "running"
    folders[0].write_manifest(manifest)
    with patch.object(processes, "ORPHAN_SECONDS", 0.1), FileLock(folders[0].lock_file):
        assert run_scripts(folders[:1], ["raise SystemExit(1)"]) == []
    assert folders[0].read_manifest().status == "running"


def test_progress_says_where_a_job_ended(folders: list[JobFolder]) -> None:
    assert work(folders[0]) == 0
    progress = json.loads(folders[0].progress_file.read_text())
    assert (progress["step"], progress["steps"]) == (30, 30)
    assert progress["updates_per_second"] > 0
    assert progress["seconds_left"] == 0


def start_and_leave(folder: JobFolder, parent_leaves: str) -> None:
    """Be the parent of a job, and end before it does."""
    (folder.path / "orphan").write_text(
        str(processes._start(folder, Work(folder.path, 10**6, ""), Place(1)).pid)
    )
    deadline = time.monotonic() + 60 * crowding()
    while parent_leaves == "later" and not folder.progress_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "parent_leaves", ["later", pytest.param("at once", marks=pytest.mark.slow)]
)
def test_an_orphan_stops(
    tmp_path: Path, parent_leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = lay_out(tmp_path, "td3[hidden_sizes=[8]]", steps=10**6)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert exit_status(fork(lambda: start_and_leave(folder, parent_leaves))) == 0
    try:
        orphan = psutil.Process(int((folder.path / "orphan").read_text()))
    except psutil.NoSuchProcess:
        return
    try:
        deadline = time.monotonic() + (20 if parent_leaves == "at once" else 5) * crowding()
        while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.1)
    finally:
        if orphan.is_running():
            orphan.kill()
    if parent_leaves == "later":
        assert folder.read_manifest().status == "interrupted"


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=25),
    st.integers(1, 8),
)
def test_all_workers_are_busy_until_fewer_jobs_than_workers_are_left(
    seconds: list[int], workers: int
) -> None:
    """With a clock of its own: a job is a number of looks that the executor takes at it."""
    jobs = {Path(f"/jobs/{number}"): length for number, length in enumerate(seconds)}
    running: dict[Path, int] = {}
    busy: list[int] = []

    class Job:
        stdin, returncode, pid = None, 0, 0

        def __init__(self, folder: JobFolder, *_: object) -> None:
            self.folder = folder.path
            running[folder.path] = jobs[folder.path]

        def poll(self) -> int | None:
            if running[self.folder] > 0:
                return None
            del running[self.folder]
            return 0

    def tick() -> None:
        busy.append(len(running))
        for folder in running:
            running[folder] -= 1

    with made_up_jobs(Job):
        folders = [JobFolder(folder) for folder in jobs]
        assert run_jobs(folders, workers=workers, checkpoint_every=1, on_poll=tick) == {}
    tail = next((at for at, count in enumerate(busy) if count < workers), len(busy))
    # From the first idle worker on, no job was left to be begun: the number only falls.
    assert busy[tail:] == sorted(busy[tail:], reverse=True)
    assert max(busy) == min(workers, len(jobs))
    assert sum(busy) == sum(seconds)
