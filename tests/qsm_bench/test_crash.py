"""Kill -9 at any moment, however often: the run that goes on leaves what an uncut one leaves."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
import pytest

from qsm_bench import checkpoint, evaluation, tables, training, worker
from qsm_bench.checkpoint import read_state
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import AGENTS, make_job, uncut, written
from tests.qsm_bench.processes import crowding, exit_status, fork

REGISTERED = [agent for agent in AGENTS if ":" not in agent]
"""A process of its own imports no module that it is not told to."""
CHECKPOINT_EVERY = 6
MODULES = (training, checkpoint, evaluation, tables)
"""Where a run dies, in turn: in its loop, in a checkpoint, in an evaluation, in a row."""


def die_at_line(number: int, module: ModuleType) -> None:
    """Kill this process before the ``number``-th line that it runs of a module."""
    left = number

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def start(job_folder: JobFolder, line: int = 0, module: ModuleType = training) -> int:
    """Run a job in a process that dies at that line of the module; return its exit status."""

    def work() -> None:
        if line:
            die_at_line(line, module)
        worker.work(job_folder.path, checkpoint_every=CHECKPOINT_EVERY)

    return exit_status(fork(work))


def tear(job_folder: JobFolder, rng: random.Random) -> None:
    """Lose bytes that had not been synced to disk, as a machine that loses its power may."""
    if job_folder.read_manifest().status == "finished":
        return  # which is said once they have been waited for
    file = job_folder.checkpoint / "state.pt"
    if not file.exists():
        file = job_folder.checkpoint / "previous.pt"
    state = read_state(file) if file.exists() else {}
    for name in ("evaluations", "training", "diagnostics"):
        table = job_folder.path / f"{name}.csv"
        if table.exists():
            os.truncate(table, rng.randint(state.get(f"{name}_size", 0), table.stat().st_size))


def die_often(agent: str, folder: Path, deaths: int) -> None:
    """Run a job over and over, killed ``deaths`` times in all, and compare what each run leaves."""
    job, rng, died = make_job(agent), random.Random(agent), 0
    whole = uncut(job.model_dump_json())
    for run in range(100 * deaths):
        if died == deaths:
            break
        job_folder = JobFolder(folder / str(run))
        job_folder.write_manifest(Manifest(job=job))
        while died < deaths and job_folder.read_manifest().status != "finished":
            line, module = int(10 ** rng.uniform(1, 3.5)), MODULES[died % len(MODULES)]
            status = start(job_folder, line, module)
            if status != 0:
                assert status == -signal.SIGKILL
                died += 1
                tear(job_folder, rng)
        # A job that is known to be finished can still be killed; nobody starts it again.
        assert job_folder.read_manifest().status == "finished" or start(job_folder) == 0
        assert written(job_folder.path) == whole
    assert died == deaths, "a line of some module is never run"


def test_killed_at_random_lines_it_leaves_the_same_bytes(tmp_path: Path) -> None:
    die_often(AGENTS[-1], tmp_path, deaths=len(MODULES))


@pytest.mark.slow
@pytest.mark.parametrize("agent", REGISTERED)
def test_killed_at_forty_random_lines_every_agent_leaves_the_same_bytes(
    agent: str, tmp_path: Path
) -> None:
    die_often(agent, tmp_path, deaths=40 // len(REGISTERED))


ROOT = Path(__file__).parents[2]
COMMAND: tuple[str, ...] = (
    "run",
    "--agents=sac[hidden_sizes=[8]],td3[hidden_sizes=[8]]",
    "--tasks=four-goals",
)
COMMAND += ("--name=real", "--seeds=2", "--steps=400", "--warmup-steps=50", "--eval-every=40")
COMMAND += ("--batch-size=8", "--eval-episodes=2", "--workers=2", "--device=cpu")


@pytest.mark.slow
def test_a_run_killed_with_its_jobs_at_random_times_leaves_the_same_bytes(tmp_path: Path) -> None:
    def run(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "qsm_bench", *COMMAND],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )

    def evaluations(folder: Path) -> list[bytes]:
        job_folders = ExperimentStore(folder / "results", "real").job_folders()
        return [job_folder.evaluations_file.read_bytes() for job_folder in job_folders]

    whole, cut, rng = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    assert run(whole).wait() == 0
    for _ in range(3):
        process = run(cut)
        deadline = time.monotonic() + 60 * crowding()
        jobs: list[psutil.Process] = []
        while not jobs and process.poll() is None and time.monotonic() < deadline:
            jobs = psutil.Process(process.pid).children()
            time.sleep(0.05)
        time.sleep(rng.uniform(2, 8))
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                job.kill()
        process.kill()
        process.wait()
    assert run(cut).wait() == 0
    assert evaluations(cut) == evaluations(whole)
