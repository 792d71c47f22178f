"""Jobs on a real SLURM: the same files as on this machine, whatever happens to them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import UserError, run_experiment
from qsm_bench.cancel import cancel
from qsm_bench.executors import Slurm, make_executor, on_slurm, slurm_queue
from qsm_bench.executors.on_slurm import pack
from qsm_bench.job_folder import JobFolder
from qsm_bench.progress import at_work, read_states
from qsm_bench.protocol import Protocol
from qsm_bench.results import Results
from qsm_bench.store import ExperimentStore
from tests.clusters.slurm_cluster import slurm_cluster, why_not
from tests.qsm_bench.jobs import SMALL, written
from tests.qsm_bench.processes import crowding

TD3 = f"td3[{SMALL}]"
SHORT = Protocol(steps=45, warmup_steps=8, batch_size=8, eval_every=20, eval_episodes=2)
LONG = SHORT.but(steps=4_000, eval_every=400)
SECRET = "a-secret-of-the-environment"

reason = why_not()
needs_slurm = pytest.mark.skipif(reason is not None, reason=f"no SLURM here: {reason}")


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Name a folder that the node does not see."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, hidden: Path) -> Iterator[None]:
    with (
        patch.object(slurm_queue, "SQUEUE_SECONDS", 0.0),
        patch.dict(os.environ, {"MY_SECRET": SECRET}),
        slurm_cluster(tmp_path_factory.mktemp("slurm"), hidden),
    ):
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run on this machine what the tests run on SLURM."""
    return run(tmp_path_factory.mktemp("local"), protocol=LONG)


def run(results: Path, executor: Slurm | None = None, **changes: Any) -> Results:
    asked: dict[str, Any] = {
        "tasks": "four-goals",
        "protocol": SHORT,
        "seeds": [0, 1],
        "seeds_per_job": 1,
    }
    return run_experiment(
        TD3, name="there", executor=executor, results=results, **(asked | changes)
    )


def folders(results: Path) -> list[JobFolder]:
    return list(ExperimentStore(results, "there").job_folders())


def wait(results: Path, until: Callable[[list[str]], bool], seconds: float = 300) -> list[str]:
    """Wait for the states of the jobs; return them."""
    deadline = time.monotonic() + seconds
    while True:
        states = [state.status for state in read_states(folders(results))]
        if until(states):
            return states
        assert time.monotonic() < deadline, [s.line for s in read_states(folders(results))]
        time.sleep(0.2)


def ended(states: list[str]) -> bool:
    return not {"queued", "running", "pending"} & set(states)


def under_way(results: Path) -> list[JobFolder]:
    """Wait until all jobs have made a checkpoint; return them."""
    deadline = time.monotonic() + 120 * crowding()
    while not all(type(job.read_progress().get("saved")) is int for job in folders(results)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return folders(results)


def assert_equal(results: Path, local: Results) -> None:
    mine, theirs = folders(results), folders(local.root)
    assert [job.read_manifest().status for job in mine] == ["finished"] * len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert written(one.path) == written(other.path)


@needs_slurm
def test_run_returns_at_once_and_the_jobs_leave_the_bytes_of_a_local_run(
    cluster: None, tmp_path: Path
) -> None:
    run(tmp_path / "slurm", Slurm(requeue=False, cpus_per_job=0.5, slurm=("comment=ours",)))
    store = ExperimentStore(tmp_path / "slurm", "there")
    assert at_work(store)
    with pytest.raises(UserError, match="take them out with 'cancel there' first"):
        store.remove()
    assert wait(tmp_path / "slurm", ended) == ["finished"] * 2
    assert_equal(tmp_path / "slurm", run(tmp_path / "local"))
    for file in store.folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    store.remove()
    assert not store.folder.exists()


@needs_slurm
def test_what_slurm_is_asked_is_what_was_asked(cluster: None, tmp_path: Path) -> None:
    run(tmp_path, Slurm(slurm=("begin=now+1hour",)))
    task = task_of(folders(tmp_path)[0])
    shown = subprocess.check_output(["scontrol", "show", "job", task], text=True)
    assert "TimeLimit=UNLIMITED" in shown  # the partition's own
    assert "Requeue=1" in shown
    with patch.object(slurm_queue, "slurm", side_effect=UserError("squeue is not there")):
        with pytest.raises(UserError, match="were given to SLURM, and whether it still has them"):
            run(tmp_path)
        assert [state.status for state in read_states(folders(tmp_path))] == ["pending"] * 2
    cancel(ExperimentStore(tmp_path, "there"))
    run(tmp_path)  # on this machine
    assert [job.read_manifest().status for job in folders(tmp_path)] == ["finished"] * 2


@needs_slurm
def test_a_job_that_failed_is_submitted_again_as_one_that_waits(
    cluster: None, tmp_path: Path
) -> None:
    run(tmp_path, Slurm(slurm=("begin=now+1hour",)))
    store = ExperimentStore(tmp_path, "there")
    cancel(store)
    for job in folders(tmp_path):
        manifest = job.read_manifest()
        job.write_manifest(manifest.model_copy(update={"status": "failed", "reason": "then"}))
    run(tmp_path, Slurm(slurm=("begin=now+1hour",)))
    assert [state.status for state in read_states(folders(tmp_path))] == ["queued"] * 2
    assert at_work(store)
    assert all(job.read_manifest().status == "pending" for job in folders(tmp_path))
    cancel(store)


@needs_slurm
def test_a_killed_job_is_tried_again_from_its_checkpoint(
    cluster: None, tmp_path: Path, local: Results
) -> None:
    run(tmp_path, Slurm(time="10"), protocol=LONG)
    for job in under_way(tmp_path):
        os.kill(job.read_progress()["pid"], signal.SIGKILL)
    assert wait(tmp_path, ended) == ["finished"] * 2
    assert all("SIGKILL" in str(job.read_manifest().retried) for job in folders(tmp_path))
    assert_equal(tmp_path, local)


@needs_slurm
def test_before_the_time_limit_a_task_is_saved_and_queued_again(
    cluster: None, tmp_path: Path, local: Results
) -> None:
    run(tmp_path, Slurm(time="10", array_size=1), protocol=LONG)
    deadline = time.monotonic() + 120 * crowding()
    while type(folders(tmp_path)[0].read_progress().get("saved")) is not int:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first, second = folders(tmp_path)
    task = task_of(first)
    assert task == task_of(second)  # they share the only task
    subprocess.run(["scancel", "--signal=USR1", task], check=True)
    wait(tmp_path, lambda states: states == ["queued", "queued"])
    assert 0 < first.read_manifest().step < LONG.steps
    hurry(task)
    assert wait(tmp_path, ended) == ["finished"] * 2
    assert len(first.read_manifest().stretches) == 2
    assert first.read_manifest().retried is None
    assert_equal(tmp_path, local)


@needs_slurm
@pytest.mark.slow
def test_the_time_limit_of_slurm_itself_costs_nothing(cluster: None, tmp_path: Path) -> None:
    protocol = LONG.but(steps=100_000, eval_every=500)
    with patch.multiple(on_slurm, WARNING_SECONDS=35, LEAST_SECONDS=60):
        run(tmp_path, Slurm(time="2"), protocol=protocol, seeds=[0], compiled="off")
    task = task_of(folders(tmp_path)[0])
    wait(tmp_path, lambda states: states == ["running"])
    wait(tmp_path, lambda states: states == ["queued"])
    saved = folders(tmp_path)[0].read_manifest()
    assert 0 < saved.step < protocol.steps
    hurry(task)
    deadline = time.monotonic() + 120 * crowding()
    while (folders(tmp_path)[0].read_progress().get("saved") or 0) <= saved.step:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    cancel(ExperimentStore(tmp_path, "there"))
    wait(tmp_path, ended)
    assert folders(tmp_path)[0].read_manifest().step > saved.step


@needs_slurm
def test_what_is_cancelled_is_saved_and_run_submits_what_is_missing(
    cluster: None, tmp_path: Path, local: Results
) -> None:
    run(tmp_path, Slurm(time="10"), protocol=LONG, seeds=[0])
    under_way(tmp_path)
    store = ExperimentStore(tmp_path, "there")
    assert cancel(store) == ["asked 1 SLURM task to save and end"]
    assert wait(tmp_path, ended) == ["interrupted"]
    assert folders(tmp_path)[0].read_manifest().step > 0
    with pytest.raises(UserError, match="nothing of there runs or is queued"):
        cancel(store)
    wait_until_left(folders(tmp_path)[0])
    run(tmp_path, Slurm(time="10"), protocol=LONG)
    before = [slurm_queue.noted_task(job) for job in folders(tmp_path)]
    run(tmp_path, Slurm(time="10"), protocol=LONG)  # nothing is missing
    assert [slurm_queue.noted_task(job) for job in folders(tmp_path)] == before
    assert wait(tmp_path, ended) == ["finished"] * 2
    assert_equal(tmp_path, local)


@needs_slurm
def test_a_folder_that_the_nodes_do_not_see_is_refused(cluster: None, hidden: Path) -> None:
    with pytest.raises(UserError, match=f"the nodes of SLURM do not see {hidden}"):
        run(hidden, Slurm(time="10"))
    assert not list(hidden.rglob("*.json"))
    assert not list(hidden.rglob(".seen*"))


@needs_slurm
@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"partition": "nowhere"}, "sbatch: .*partition"),
        ({"gpus_per_job": 1}, "sbatch: .*gres"),
        ({"cpus_per_job": 9_999}, "sbatch: .*not available"),
        ({"slurm": ("nonsense=1",)}, "sbatch: unrecognized option '--nonsense=1'"),
    ],
)
def test_what_slurm_refuses_is_one_line(
    cluster: None,
    tmp_path: Path,
    options: dict[str, Any],
    fault: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        run(tmp_path, Slurm(time="10", **options))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("*.json"))
    assert capfd.readouterr().err == ""


def hurry(task: str) -> None:
    """Have SLURM begin a task that it was told to requeue, and holds back for two minutes."""
    deadline = time.monotonic() + 60 * crowding()
    while "BeginTime" not in (state := queue_state(task)):
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    # What it was given for its first start is withdrawn by the second: it cannot start within that.
    start = "StartTime=now+3seconds"
    subprocess.run(["scontrol", "update", f"JobId={task}", start], check=True)


def queue_state(task: str) -> str:
    return slurm_queue._queue().get((task, "qsm_bench-there"), "")


def task_of(job: JobFolder) -> str:
    noted = slurm_queue.noted_task(job)
    assert noted is not None
    return noted[0]


def wait_until_left(job: JobFolder) -> None:
    deadline = time.monotonic() + 60 * crowding()
    while slurm_queue.queued_tasks([job]):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 50))
def test_jobs_are_packed_evenly_into_no_more_tasks_than_are_allowed(
    jobs: int, width: int, most: int
) -> None:
    packs = pack(list(range(jobs)), width, most)  # type: ignore[arg-type]
    assert sorted(job for mine in packs for job in mine) == list(range(jobs))  # type: ignore
    assert len(packs) <= most
    sizes = {len(mine) for mine in packs}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= width or len(packs) == most


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"cpus-per-task": 1}),
        ({"gpus_per_job": 1, "cpus_per_job": 4}, {"cpus-per-task": 4, "gpus": 1}),
        ({"gpus_per_job": 0.25, "cpus_per_job": 2}, {"cpus-per-task": 8, "gpus": 1}),
        ({"partition": "p", "slurm": ("mem=8G",)}, {"partition": "p", "mem": "8G"}),
    ],
)
def test_jobs_that_share_a_gpu_ask_for_one(options: dict[str, Any], asked: dict[str, Any]) -> None:
    given = Slurm(**options)._options()
    assert {key: given[key] for key in asked} == asked
    assert Slurm(**options).device() == ("cuda" if "gpus" in asked else "cpu")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"slurm": ("mem",)}, "write key=value"),
        ({"slurm": ("array=0-3",)}, "array is set by qsm_bench itself"),
        ({"slurm": ("export=NONE",)}, "export is set by qsm_bench itself"),
        ({"gpus_per_job": -1}, "--gpus-per-job -1"),
        ({"gpus_per_job": 2}, "--gpus-per-job 2"),
        ({"cpus_per_job": float("inf")}, "--cpus-per-job inf"),
        ({"time": "2"}, "give 5 minutes or more"),
        ({"time": "a day"}, "--time 'a day' is not right: write minutes, or hours:minutes:seconds"),
        ({"workers": 2}, "--workers is an option of --executor local"),
    ],
)
def test_an_option_that_is_wrong_is_refused_in_one_line(
    options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        make_executor("slurm", options)
    assert "\n" not in str(refused.value)
