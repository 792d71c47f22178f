"""Signs of life: who is alive, who is gone, who is only suspended; whatever a file says."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import heartbeat
from qsm_bench.heartbeat import (
    SILENT_SECONDS,
    Heartbeat,
    liveness,
    process_name,
    start_of,
    this_machine,
    time_of,
)
from qsm_bench.job_folder import JobFolder, read_sign
from qsm_bench.manifest import Manifest
from qsm_bench.progress import job_state
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import make_job
from tests.qsm_bench.processes import exit_status, fork


def sign(**changes: Any) -> dict[str, Any]:
    mine = {
        "place": this_machine(),
        "pid": os.getpid(),
        "born": start_of(os.getpid()),
        "time": time.time(),
    }
    return mine | changes


@pytest.fixture
def other() -> Any:
    process = fork(lambda: time.sleep(60))
    yield process
    if psutil.pid_exists(process):
        os.kill(process, signal.SIGKILL)
        exit_status(process)


def test_this_process_is_alive() -> None:
    assert liveness(sign()) == "alive"


def test_a_number_given_to_another_process_is_not_that_process() -> None:
    assert liveness(sign(born=(start_of(os.getpid()) or 0) - 1)) == "gone"


def test_a_process_is_alive_then_suspended_then_gone(other: int) -> None:
    told = sign(pid=other, born=start_of(other))
    assert liveness(told) == "alive"
    os.kill(other, signal.SIGSTOP)
    os.waitpid(other, os.WUNTRACED)
    assert liveness(told) == "suspended"
    os.kill(other, signal.SIGKILL)
    while psutil.Process(other).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert liveness(told) == "gone", "it has ended, though nobody has waited for it"
    exit_status(other)
    assert liveness(told) == "gone"


def test_a_living_process_that_says_nothing_is_silent() -> None:
    assert liveness(sign(time=time.time() - SILENT_SECONDS - 1)) == "silent"


@pytest.mark.parametrize(
    ("age", "state"), [(-5.0, "alive"), (0.0, "alive"), (50.0, "alive"), (70.0, "gone")]
)
def test_elsewhere_the_last_sign_of_life_counts(age: float, state: str) -> None:
    assert liveness(sign(place="elsewhere", pid=1, time=time.time() - age)) == state


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=2), x, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(["place", "pid", "born", "time"]), ANYTHING), st.booleans())
def test_whatever_a_file_says_is_understood(told: dict[str, Any], here: bool) -> None:
    told |= {"place": this_machine()} if here else {}
    assert liveness(told) in ("alive", "gone", "silent", "suspended")
    assert "process" in process_name(told)
    time_of(told)


def test_a_sign_is_given_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    count = 0

    def tell() -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"count": count}

    file = tmp_path / "sign"
    with Heartbeat(file, tell):
        assert liveness(read_sign(file)) == "alive"
        while count < 5:
            time.sleep(0.01)
    last = read_sign(file)["count"]
    time.sleep(0.05)
    assert read_sign(file)["count"] == last == count


@pytest.mark.parametrize("status", ["running", "pending", "finished", "failed", "interrupted"])
def test_only_what_ran_is_cut_off_by_its_process_going(tmp_path: Path, status: Any) -> None:
    folder = JobFolder(tmp_path)
    folder.write_manifest(Manifest(job=make_job(), status=status))
    folder.progress_file.write_text(json.dumps(sign(pid=2**22 + 1, step=7)))
    line = job_state(folder).line
    assert ("interrupted (its process is gone)" in line) == (status == "running")
    assert "left" not in line
    assert folder.read_manifest().status == status, "who only looks writes nothing"


def test_a_suspended_job_is_told(tmp_path: Path, other: int) -> None:
    folder = JobFolder(tmp_path)
    folder.write_manifest(Manifest(job=make_job(), status="running"))
    folder.progress_file.write_text(json.dumps(sign(pid=other, born=start_of(other), step=7)))
    assert "suspended" not in job_state(folder).line
    os.kill(other, signal.SIGSTOP)
    os.waitpid(other, os.WUNTRACED)
    assert job_state(folder).line.endswith(f"process {other} is suspended")


def test_who_asks_whether_somebody_runs_is_in_nobodys_way(tmp_path: Path) -> None:
    """One asks all the time while others run one after the other."""
    store = ExperimentStore(tmp_path, "there")

    def ask() -> None:
        while not (tmp_path / "over").exists():
            store.holder()

    asker = fork(ask)
    for _ in range(200):
        with store.lock():
            assert store.holder() == f"process {os.getpid()}"
        assert store.holder() is None
    (tmp_path / "over").touch()
    assert exit_status(asker) == 0


def test_nobody_runs_after_a_kill(tmp_path: Path) -> None:
    store = ExperimentStore(tmp_path, "there")

    def hold() -> None:
        with store.lock():
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_status(fork(hold)) == -signal.SIGKILL
    assert store.holder_file.exists()
    assert store.holder() is None
    with store.lock():
        assert store.holder() == f"process {os.getpid()}"
