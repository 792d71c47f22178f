"""Asked to stop: at any moment, by any signal, whatever the environments make of signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from qsm_bench.job_folder import JobFolder
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.processes import crowding

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = """
import signal, time

import gymnasium

from envs.linear_quadratic import LinearQuadratic

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ignores(LinearQuadratic):
    def __init__(self):
        super().__init__()
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)


class TakesInStep(LinearQuadratic):
    def step(self, action):
        for number in ASKING:
            signal.signal(number, lambda *_: None)
        return super().step(action)


class Blocks(LinearQuadratic):
    def __init__(self):
        super().__init__()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)


class Sleeps(LinearQuadratic):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 400:
            time.sleep(60)
        return super().step(action)


for made in (LinearQuadratic, Ignores, TakesInStep, Blocks, Sleeps):
    gymnasium.register(f"{made.__name__}-v0", made, max_episode_steps=50)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "odd.py").write_text(ENVIRONMENTS)
    yield tmp_path
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(tmp_path):
            with suppress(psutil.Error):
                process.kill()


def command(task: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "qsm_bench", "run", "--agents=td3[hidden_sizes=[8]]"),
        *(f"--tasks=odd:{task}-v0", "--name=x", "--seeds=1", "--steps=1000000"),
        *("--warmup-steps=20", "--batch-size=8", "--eval-every=300", "--eval-episodes=1"),
        *("--device=cpu", "--compile=off", *more),
    ]


def begin(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (2, 15, 1)],
    )


def folder_of(folder: Path, step: int) -> JobFolder:
    """Wait until the one job's job has come so far, and return the job."""
    deadline = time.monotonic() + 120 * crowding()
    store = ExperimentStore(folder / "results", "x")
    while time.monotonic() < deadline:
        if store.file.exists():
            for job_folder in store.job_folders():
                if (job_folder.read_progress().get("step") or 0) >= step:
                    return job_folder
        time.sleep(0.1)
    raise AssertionError("the job does not come so far")


def stop(process: subprocess.Popen[str], number: int, pid: int | None = None) -> str:
    """Ask a run to stop, which takes seconds; return what it says on standard error."""
    asked = time.monotonic()
    os.kill(pid or process.pid, number)
    _, err = process.communicate(timeout=60 * crowding())
    assert time.monotonic() - asked < 5 * crowding()
    assert "Traceback" not in err
    return err


def left(folder: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]


@pytest.mark.parametrize(
    "task",
    [
        "Ignores",
        pytest.param("TakesInStep", marks=pytest.mark.slow),
        pytest.param("Blocks", marks=pytest.mark.slow),
    ],
)
def test_no_environment_keeps_a_run_from_stopping_and_saving(folder: Path, task: str) -> None:
    process = begin(folder, command(task))
    job_folder = folder_of(folder, 100)
    err = stop(process, signal.SIGINT)
    assert process.returncode == 130
    assert err.startswith("stopped and saved; to go on: ")
    manifest = job_folder.read_manifest()
    assert (manifest.status, manifest.reason) == ("interrupted", None)
    assert manifest.step >= 100
    assert left(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_as_ctrl_c_does(folder: Path, number: signal.Signals) -> None:
    process = begin(folder, command("LinearQuadratic"))
    job_folder = folder_of(folder, 100)
    assert stop(process, number).startswith("stopped and saved; ")
    assert process.returncode == 128 + number
    assert job_folder.read_manifest().status == "interrupted"


def test_what_could_not_be_saved_is_said(folder: Path) -> None:
    process = begin(folder, command("Sleeps"))
    job_folder = folder_of(folder, 399)
    time.sleep(1.5)  # so that the last sign of life is of the step that does not end
    err = stop(process, signal.SIGINT)
    assert process.returncode == 130
    assert "it could not be saved; the last checkpoint is of step 300" in err
    assert "stopped and saved" not in err
    assert job_folder.read_manifest().step == 300
    assert left(folder) == []


def test_ctrl_c_twice_is_ctrl_c_once(folder: Path) -> None:
    process = begin(folder, command("LinearQuadratic"))
    folder_of(folder, 100)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.05)
    assert stop(process, signal.SIGINT).count("stopped and saved") == 1
    assert process.returncode == 130


def catches(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux says."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    _, _, caught = status.partition("SigCgt:")
    return bool(int(caught.split()[0], 16) >> (number - 1) & 1)


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")


@pytest.mark.parametrize("seconds", [pytest.param(0.0, marks=on_linux), 0.3, 0.8, 1.5])
def test_ctrl_c_in_the_first_seconds_is_no_traceback(folder: Path, seconds: float) -> None:
    process = begin(folder, command("LinearQuadratic"))
    # Python takes its time to start on a busy machine. It leaves SIGTERM alone: that is ours.
    while Path("/proc/self/status").exists() and not catches(process, signal.SIGTERM):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(seconds)
    stop(process, signal.SIGINT)
    assert process.returncode == 130
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.getuid() != 0, reason="no processes of its own"
)
def test_as_the_first_process_of_a_container_it_stops_and_saves(folder: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    process = begin(folder, [*unshare, *command("LinearQuadratic")])
    job_folder = folder_of(folder, 100)
    (first,) = psutil.Process(process.pid).children()
    assert stop(process, signal.SIGTERM, first.pid).startswith("stopped and saved; ")
    assert process.returncode == 143
    assert job_folder.read_manifest().status == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["LinearQuadratic", "Sleeps"])
def test_an_orphan_is_waited_for_and_no_second_try_is_spent(folder: Path, task: str) -> None:
    process = begin(folder, command(task))
    job_folder = folder_of(folder, 399)
    process.kill()
    process.communicate()
    again = begin(folder, command(task))
    deadline = time.monotonic() + 120 * crowding()
    while (
        len(job_folder.read_manifest().stretches) < 2
        or job_folder.read_manifest().status != "running"
    ):
        assert time.monotonic() < deadline
        assert again.poll() is None
        time.sleep(0.1)
    assert job_folder.read_manifest().retried is None
    assert stop(again, signal.SIGINT)
    assert again.returncode == 130


@pytest.mark.slow
def test_a_killed_job_alone_is_tried_again(folder: Path) -> None:
    process = begin(folder, command("LinearQuadratic"))
    job_folder = folder_of(folder, 400)
    os.kill(job_folder.read_progress()["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 120 * crowding()
    while (
        job_folder.read_manifest().retried is None or job_folder.read_manifest().status != "running"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "SIGKILL" in str(job_folder.read_manifest().retried)
    assert stop(process, signal.SIGINT)
