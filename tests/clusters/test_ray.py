"""Jobs on a real Ray cluster: two nodes on this machine, of one core each."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from qsm_bench import Local, Protocol, Ray, UserError, run_experiment
from qsm_bench.executors import on_ray
from qsm_bench.job_folder import JobFolder
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.processes import crowding

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'qsm_bench[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
SMALL = Protocol(steps=60, warmup_steps=20, batch_size=8, eval_every=20, eval_episodes=2)
LONG = SMALL.but(steps=1500, eval_every=300)
"""Some seconds of training: time to be cut off in."""
CHECKPOINT = 50


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with a head and one more node, which do not know of this process's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args=NODE | {"include_dashboard": False}
        )
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def on_cluster(cluster: Any) -> Ray:
    return Ray(address=cluster.address)


def train(results: Path, executor: Local | Ray, protocol: Protocol, seeds: int = 2) -> None:
    """Run a job for each seed."""
    run_experiment(
        "td3[hidden_sizes=[8]]",
        tasks="four-goals",
        name="small",
        protocol=protocol,
        seeds=range(seeds),
        seeds_per_job=1,
        device="cpu",
        executor=executor,
        checkpoint_every=CHECKPOINT,
        results=results,
    )


OPTIONS = (
    *("--agents", "td3[hidden_sizes=[8]]", "--tasks", "four-goals", "--name", "small"),
    *("--seeds", "2", "--seeds-per-job", "1", "--device", "cpu"),
    *("--steps", f"{LONG.steps}", "--warmup-steps", f"{LONG.warmup_steps}"),
    *("--batch-size", f"{LONG.batch_size}", "--eval-every", f"{LONG.eval_every}"),
    *("--eval-episodes", f"{LONG.eval_episodes}", "--checkpoint-every", f"{CHECKPOINT}"),
)
"""The same on the command line."""


def jobs_in(results: Path) -> list[JobFolder]:
    store = ExperimentStore(results, "small")
    return list(store.job_folders()) if store.file.exists() else []


def written(results: Path) -> dict[str, bytes]:
    """What the jobs have learned, by the names of their folders."""
    return {
        str(job.path.relative_to(results)): job.evaluations_file.read_bytes()
        for job in jobs_in(results)
    }


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run on this machine leaves of the long jobs."""
    results = tmp_path_factory.mktemp("uncut")
    train(results, Local(workers=2), LONG)
    return written(results)


@contextmanager
def when_under_way(
    results: Path, act: Callable[[psutil.Process], None], on: int | None = None
) -> Iterator[None]:
    """Call ``act`` once, beside what runs in here, with the process of a job that is half done.

    It is one below the process ``on``, if that is given.
    """
    acted, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for process in map(process_of, jobs_in(results)):
                if process and (on is None or on in {p.pid for p in process.parents()}):
                    act(process)
                    acted.set()
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert acted.is_set(), "no job was under way"


def process_of(job: JobFolder) -> psutil.Process | None:
    """The process of a job that has trained past its first checkpoints."""
    sign = job.read_progress()
    if not CHECKPOINT < (sign.get("step") or 0) < LONG.steps or not sign.get("saved"):
        return None
    try:
        return psutil.Process(sign["pid"])
    except psutil.NoSuchProcess:
        return None


def test_jobs_on_a_cluster_leave_the_bytes_that_they_leave_here(
    on_cluster: Ray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "there", on_cluster, SMALL)
    printed = capfd.readouterr()
    train(tmp_path / "here", Local(workers=2), SMALL)
    assert written(tmp_path / "there") == written(tmp_path / "here")
    assert len(written(tmp_path / "there")) == 2
    assert "raylet" not in printed.out + printed.err
    assert not ray.is_initialized()


def test_a_job_whose_node_is_lost_goes_on_on_another_from_its_checkpoint(
    cluster: Any,
    on_cluster: Ray,
    uncut: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    node = cluster.add_node(**NODE)
    raylet = node.all_processes["raylet"][0].process.pid

    def lose(job: psutil.Process) -> None:
        job.suspend()  # a machine that is gone saves nothing any more
        cluster.remove_node(node, allow_graceful=False)
        os.killpg(job.pid, signal.SIGKILL)

    with when_under_way(tmp_path, lose, on=raylet):
        train(tmp_path, on_cluster, LONG, seeds=3)
    printed = capfd.readouterr()
    assert "goes on from its last checkpoint" in printed.out
    assert "[state-dump]" not in printed.out + printed.err, "Ray's own pages are not shown"
    (again,) = [m for job in jobs_in(tmp_path) if len((m := job.read_manifest()).stretches) > 1]
    # Its task may live long enough to start it once more, before another node does.
    for stretch in again.stretches[1:]:
        assert stretch.first_step > 0
    assert again.stretches[1].first_step % CHECKPOINT == 0, "it was not saved as it ended"
    assert written(tmp_path).items() >= uncut.items()


def test_a_job_that_is_killed_on_a_cluster_is_tried_once_more(
    on_cluster: Ray, uncut: dict[str, bytes], tmp_path: Path
) -> None:
    with when_under_way(tmp_path, psutil.Process.kill):
        train(tmp_path, on_cluster, LONG)
    retried = [job.read_manifest().retried for job in jobs_in(tmp_path)]
    assert sorted(retried, key=bool) == [None, "its process ended by signal SIGKILL"]
    assert written(tmp_path) == uncut


def test_a_run_on_a_cluster_that_is_stopped_goes_on_here(
    on_cluster: Ray, uncut: dict[str, bytes], tmp_path: Path
) -> None:
    began = time.monotonic()

    def stop(first: psutil.Process) -> None:
        nonlocal began
        # The other node may be slower to start: the first job stands still until both train.
        first.suspend()
        deadline = time.monotonic() + 30 * crowding()
        while sum(process_of(job) is not None for job in jobs_in(tmp_path)) < 2:
            assert time.monotonic() < deadline, "the second job did not start"
            time.sleep(0.02)
        first.resume()
        began = time.monotonic()
        # Not SIGINT: a shell starts what runs in its background so that it ignores that.
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), when_under_way(tmp_path, stop):
        train(tmp_path, on_cluster, LONG, seeds=3)
    assert time.monotonic() - began < 10 * crowding()
    states = [job.read_manifest() for job in jobs_in(tmp_path)]
    assert sorted(state.status for state in states) == ["interrupted", "interrupted", "pending"]
    assert all(s.step == s.stretches[-1].last_step > 0 for s in states if s.stretches)
    train(tmp_path, Local(workers=2), LONG)
    assert written(tmp_path).items() >= uncut.items()


def start_command(address: str, results: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "qsm_bench", "run", *OPTIONS, "--results", str(results)),
            *("--executor", "ray", "--address", address, "--gpus-per-job", "0"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_that_is_stopped_on_a_cluster_goes_on_there(
    on_cluster: Ray, uncut: dict[str, bytes], tmp_path: Path
) -> None:
    command = start_command(on_cluster.address, tmp_path)
    with when_under_way(tmp_path, lambda _: command.terminate()):
        output, errors = command.communicate(timeout=120 * crowding())
    assert command.returncode == 128 + signal.SIGTERM, errors
    assert errors.startswith("stopped and saved; to go on: ")
    assert "raylet" not in output
    train(tmp_path, on_cluster, LONG)
    assert written(tmp_path) == uncut


def test_jobs_on_a_cluster_save_themselves_when_the_command_is_killed(
    on_cluster: Ray, tmp_path: Path
) -> None:
    command = start_command(on_cluster.address, tmp_path)
    with when_under_way(tmp_path, lambda _: command.kill()):
        command.communicate(timeout=120 * crowding())
    deadline = time.monotonic() + 10 * crowding()
    while {"running"} & {job.read_manifest().status for job in jobs_in(tmp_path)}:
        assert time.monotonic() < deadline, "a job was not saved"
        time.sleep(0.1)
    manifests = [job.read_manifest() for job in jobs_in(tmp_path)]
    assert {manifest.status for manifest in manifests} <= {"interrupted", "pending"}
    assert max(manifest.step for manifest in manifests) > CHECKPOINT


def refusal(executor: Ray, results: Path) -> str:
    """The line by which a run is refused; no job is laid out for it."""
    with pytest.raises(UserError) as refused:
        train(results, executor, SMALL)
    assert jobs_in(results) == []
    assert [file.name for file in (results / "small").iterdir()] == [".lock"]
    line = str(refused.value)
    assert "\n" not in line
    return line


@contextmanager
def blind_node(address: str, hidden: Path) -> Iterator[None]:
    """A node of the cluster on which there is another, empty folder in the place of ``hidden``."""
    hidden.mkdir(parents=True)
    hide = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    script = 'mount -t tmpfs none "$0"; exec "$@"'
    try:
        subprocess.run([*hide, script, hidden, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a mount namespace cannot be made here")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--block"]
    node = subprocess.Popen(
        [*hide, script, hidden, *start, "--num-cpus=1", f"--object-store-memory={80 * 2**20}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        family = psutil.Process(node.pid).children(recursive=True)
        node.kill()
        for process in family:
            process.kill()
        node.wait()


def wait_for_nodes(address: str, count: int) -> None:
    deadline = time.monotonic() + 60 * crowding()
    with Ray(address=address)._connected():
        while len([node for node in ray.nodes() if node["Alive"]]) != count:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_folder_that_a_node_does_not_see_is_refused(on_cluster: Ray, tmp_path: Path) -> None:
    wait_for_nodes(on_cluster.address, 2)
    with blind_node(on_cluster.address, tmp_path / "results"):
        wait_for_nodes(on_cluster.address, 3)
        line = refusal(on_cluster, tmp_path / "results")
    assert line == (
        f"node {os.uname().nodename} of the Ray cluster does not see {tmp_path}/results/small: "
        "choose --results in a folder that all nodes share"
    )
    wait_for_nodes(on_cluster.address, 2)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("local", "it is neither auto nor HOST:PORT"),
        ("ray://127.0.0.1:10001", "it is neither auto nor HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_refused(tmp_path: Path, address: str, reason: str) -> None:
    line = refusal(Ray(address=address), tmp_path)
    assert line.startswith(
        f"--address {address!r}: no Ray cluster can be reached there ({reason}); start one with "
    )


def test_a_job_that_no_node_can_hold_is_refused(on_cluster: Ray, tmp_path: Path) -> None:
    assert refusal(Ray(address=on_cluster.address, cpus_per_job=2), tmp_path) == (
        "--cpus-per-job 2 and --gpus-per-job 0: no node of the Ray cluster has as much; its nodes "
        "have 1 CPUs and 0 GPUs"
    )


def test_options_that_are_wrong_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"^--cpus-per-job 1.5 is not right: above 1 it must be a"):
        Ray(cpus_per_job=1.5)
    with pytest.raises(UserError, match=r"^--cpus-per-job 0 is not right: .*greater than 0$"):
        Ray(cpus_per_job=0)
    with pytest.raises(UserError, match=r"^--device cuda needs --gpus-per-job above 0"):
        Ray().refuse_unusable(Path(), "cuda")


def test_without_ray_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'qsm_bench\[ray\]'$"):
        Ray().refuse_unusable(Path(), "cpu")


def test_a_port_that_does_not_speak_ray_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_ray, "CONNECT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="no answer within 3 s"):
            Ray(address=address).refuse_unusable(Path(), "cpu")
