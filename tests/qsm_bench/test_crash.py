"""Kill -9 at any moment, however often: the run that goes on leaves what an uncut one leaves."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from qsm_bench import checkpoint, evaluation, store, training, worker
from qsm_bench.checkpoint import read_state
from qsm_bench.store import Cell, ExperimentStore, Manifest
from tests.qsm_bench.jobs import AGENTS, make_job, uncut, written
from tests.qsm_bench.processes import exit_status, fork

CHECKPOINT_EVERY = 6
TRACED = {module.__file__ for module in (checkpoint, evaluation, store, training)}


def die_at_line(number: int, place: Path) -> None:
    """Kill this process before the ``number``-th line that it runs of the traced modules."""
    left = number

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        left -= event == "line"
        if left == 0:
            place.write_text(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def start(cell: Cell, line: int | None = None) -> tuple[int, str]:
    """Go on with a job in a process that dies at a line: how it ended, and in which function."""
    place = cell.folder / "place"

    def work() -> None:
        if line:
            die_at_line(line, place)
        worker.work(cell.folder, checkpoint_every=CHECKPOINT_EVERY)

    status = exit_status(fork(work))
    return status, place.read_text() if status == -signal.SIGKILL else ""


def tear(cell: Cell, rng: random.Random) -> None:
    """Lose some of the bytes that nobody had waited for, as a machine that loses its power may."""
    if cell.read_manifest().status == "finished":
        return  # which is said once they have been waited for
    file = cell.checkpoint / "state.pt"
    if not file.exists():
        file = cell.checkpoint / "previous.pt"
    state = read_state(file) if file.exists() else {}
    for name in ("evaluations", "training", "diagnostics"):
        table = cell.folder / f"{name}.csv"
        if table.exists():
            os.truncate(table, rng.randint(state.get(f"{name}_size", 0), table.stat().st_size))


def die_often(agent: str, folder: Path, deaths: int) -> set[str]:
    """Run a job over and over, killed ``deaths`` times in all, and compare what each run leaves.

    Returns the modules it died in.
    """
    job, rng, places = make_job(agent), random.Random(agent), []
    whole = uncut(job.model_dump_json())
    for run in itertools.count():
        if len(places) == deaths:
            break
        cell = Cell(folder / str(run))
        cell.write_manifest(Manifest(job=job))
        while len(places) < deaths and cell.read_manifest().status != "finished":
            status, place = start(cell, line=int(10 ** rng.uniform(2, 4)))
            if status != 0:
                assert status == -signal.SIGKILL
                places.append(place)
                tear(cell, rng)
        # A job that is known to be finished can still be killed; nobody starts it again.
        assert cell.read_manifest().status == "finished" or start(cell)[0] == 0
        assert written(cell.folder) == whole, places
    return {place.split(".")[0] for place in places}


def test_killed_at_random_lines_it_is_uncut(tmp_path: Path) -> None:
    die_often(AGENTS[-1], tmp_path, deaths=4)


@pytest.mark.slow
def test_killed_at_forty_random_lines_every_agent_is_uncut(tmp_path: Path) -> None:
    modules = set()
    for number, agent in enumerate(AGENTS):
        modules |= die_often(agent, tmp_path / str(number), deaths=8)
    assert modules == {"checkpoint", "evaluation", "store", "training"}


ROOT = Path(__file__).parents[2]
COMMAND = ("run", "--agents=sac[hidden_sizes=[8]],td3[hidden_sizes=[8]]", "--tasks=four-goals")
COMMAND += ("--name=real", "--seeds=2", "--steps=400", "--warmup-steps=50", "--eval-every=40")
COMMAND += ("--batch-size=8", "--eval-episodes=2", "--workers=2", "--device=cpu")


@pytest.mark.slow
def test_a_run_killed_with_its_jobs_at_random_times_is_uncut(tmp_path: Path) -> None:
    def run(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "qsm_bench", *COMMAND],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )

    def evaluations(folder: Path) -> list[bytes]:
        cells = ExperimentStore(folder / "results", "real").cells()
        return [cell.evaluations_file.read_bytes() for cell in cells]

    whole, cut, rng = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    assert run(whole).wait() == 0
    for _ in range(3):
        process = run(cut)
        deadline = time.monotonic() + 60
        jobs: list[psutil.Process] = []
        while not jobs and process.poll() is None and time.monotonic() < deadline:
            jobs = psutil.Process(process.pid).children()
            time.sleep(0.05)
        time.sleep(rng.uniform(2, 8))
        for victim in (*jobs, process):
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        process.wait()
    assert run(cut).wait() == 0
    assert evaluations(cut) == evaluations(whole)
