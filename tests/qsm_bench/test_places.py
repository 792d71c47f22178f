"""Where jobs run on this machine: GPUs, cores, and how whoever runs them is asked to end."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import UserError
from qsm_bench.cancel import cancel
from qsm_bench.executors import Local, Work, processes
from qsm_bench.executors.processes import Place, run_locally
from qsm_bench.heartbeat import Heartbeat
from qsm_bench.job_folder import JobFolder
from qsm_bench.machine import usable_cores, visible_gpus
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import make_experiment
from tests.qsm_bench.processes import made_up_jobs


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_jobs_are_spread_over_the_gpus_and_the_cores(jobs: int, workers: int, gpus: int) -> None:
    names = [f"GPU-{index}" for index in range(gpus)]
    running: dict[Path, Place] = {}

    class Job:
        """Ends when it is looked at for the second time, and then frees its place."""

        pid, returncode, stdin = 0, 0, None

        def __init__(self, folder: JobFolder, _: Work, place: Place) -> None:
            self.folder, self.looks = folder.path, 0
            assert len(running) < workers
            running[self.folder] = place
            counts = Counter(place.gpu for place in running.values())
            most = max(counts.values())
            # It went where the fewest were.
            assert counts[place.gpu] <= 1 + min(counts.get(name, 0) for name in names)
            assert most * gpus >= len(running)
            assert sum(place.cores for place in running.values()) <= max(
                usable_cores(), len(running)
            )

        def poll(self) -> int | None:
            self.looks += 1
            if self.looks < 2:
                return None
            running.pop(self.folder, None)
            return 0

    with made_up_jobs(Job):
        folders = [JobFolder(Path(f"/nowhere/{index}")) for index in range(jobs)]
        work = Work(Path("/nowhere"), 1, "")
        assert run_locally(folders, work, workers=workers, gpus=names) == {}


@pytest.mark.parametrize("gpu", [None, "3"])
def test_a_jobs_process_sees_one_gpu_and_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **how: seen.update(how))
    processes._start(JobFolder(tmp_path), Work(tmp_path, 10, ""), Place(1, gpu))
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == (gpu or "2,3")
    assert seen["env"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("named", "gpus", "at_once"), [("", (), 1), ("1", ("1",), 2), ("4, 6", ("4", "6"), 4)]
)
def test_as_many_jobs_run_as_the_visible_gpus_may_hold(
    monkeypatch: pytest.MonkeyPatch, named: str, gpus: tuple[str, ...], at_once: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus
    executor = Local(workers=100, jobs_per_gpu=2 if gpus else 1)
    assert executor.at_once("cuda") == at_once
    assert executor.at_once("cpu") == 100


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_a_part_of_a_gpu_is_a_number_on_the_command_line(tmp_path: Path, kind: str) -> None:
    """There is no GPU to time a dry run on, and nothing else is wrong."""
    if visible_gpus():
        pytest.skip("a GPU is here")
    words = ["--agents=td3", "--tasks=Pendulum-v1", f"--executor={kind}", "--dry-run"]
    words += ["--gpus-per-job=0.25", "--cpus-per-job=0.5", f"--results={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "qsm_bench", "run", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "the jobs will train on a GPU, and none is here" in done.stderr


def test_what_a_process_of_this_machine_runs_is_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment("td3", ("four-goals",), name="there")
    store = ExperimentStore(tmp_path, "there")
    store.prepare(experiment, "")
    with pytest.raises(UserError, match="nothing of there runs or is queued"):
        cancel(store)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *what: asked.append(what))
    with Heartbeat(store.holder_file):
        assert cancel(store) == [f"asked process {os.getpid()} to save its jobs and end"]
        assert asked == [(os.getpid(), signal.SIGTERM)]
    elsewhere = {"place": "another-machine", "pid": 5}
    with (
        Heartbeat(store.holder_file, lambda: elsewhere),
        pytest.raises(UserError, match="run by process 5 on another-machine: end it on that"),
    ):
        cancel(store)
    assert len(asked) == 1
