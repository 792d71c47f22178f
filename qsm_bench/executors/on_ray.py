"""The executor of a Ray cluster: each job is a task of Ray, on whichever node has room for it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from qsm_bench.errors import UserError, one_line
from qsm_bench.executors.executor import Cluster, Outcome, Work
from qsm_bench.executors.shared_folder import token_in
from qsm_bench.machine import visible_gpus
from qsm_bench.signals import GRACE_SECONDS, STOP_SIGNALS

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

POLL_SECONDS = 0.2
MARGIN_SECONDS = 5.0
"""How long Ray may take to tell a job to stop, and to tell us that it has."""
CONNECT_SECONDS = 30.0
CHECK_SECONDS = 60.0
"""How long a node may take to answer: it starts a process and imports for that."""
DISK_SECONDS = 5.0
"""How long a shared disk may take to show a new file on another node."""
LET_LIVE = {"RAY_kill_child_processes_on_worker_exit": "false"}
"""Ray kills what a task has started when the driver is gone. A job is to save itself then: its
lifeline tells it, and it ends within ``GRACE_SECONDS``."""
LOSSES = 3
"""How many times a job is taken up again whose node was lost."""


class Ray(Cluster):
    """A Ray cluster whose nodes share the results folder; it decides what runs where and when."""

    kind = "ray"

    address: Annotated[
        str, Field(description="The cluster: HOST:PORT; auto: the one that this machine is in.")
    ] = "auto"

    @field_validator("cpus_per_job", "gpus_per_job")
    @classmethod
    def _whole_above_one(cls, number: float) -> float:
        if number > 1 and not number.is_integer():
            raise ValueError("above 1 it must be a whole number")
        return number

    def refuse_unusable(self, folder: Path, device: str) -> None:
        """Raise UserError if there is no cluster, or none that can run a job with this folder."""
        self.refuse_no_gpu(device)
        self._refuse_no_cluster()
        with self._connected() as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self._refuse_too_small(nodes)
            _refuse_unshared(ray, nodes, folder.absolute())

    def run(self, jobs: "Sequence[JobFolder]", work: Work) -> Outcome:
        """Run the jobs to their ends, each as a task of Ray."""
        if not jobs:
            return Outcome()
        with self._connected() as ray:
            task = ray.remote(run_job).options(
                num_cpus=self.cpus_per_job,
                num_gpus=self.gpus_per_job,
                max_retries=0,
                runtime_env={"env_vars": LET_LIVE},
            )
            return Outcome(_Tasks(ray, task, work, int(max(1, self.cpus_per_job))).run(jobs))

    def _refuse_no_cluster(self) -> None:
        """Raise UserError if no cluster answers.

        Ray itself would wait for minutes and then end the process: so another one tries first.
        """
        _import_ray()
        reason = _why_no_answer(self.address) or _why_not_connected(self.address)
        if reason:
            raise UserError(
                f"--address {self.address!r}: no Ray cluster can be reached there ({reason}); "
                "start one with 'ray start --head', or give the HOST:PORT of one that this "
                "machine is a node of"
            )

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Be a driver of the cluster, or use the connection that a notebook has made itself."""
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        with _silenced():
            with _own_signals():
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            try:
                yield ray
            finally:
                ray.shutdown()

    def _refuse_too_small(self, nodes: list[dict[str, Any]]) -> None:
        """Raise UserError if no node could hold a job, even if it had nothing else to do."""
        sizes = [
            (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes
        ]
        if not any(cpus >= self.cpus_per_job and gpus >= self.gpus_per_job for cpus, gpus in sizes):
            listed = ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in set(sizes))
            raise UserError(
                f"--cpus-per-job {self.cpus_per_job:g} and --gpus-per-job {self.gpus_per_job:g}: "
                f"no node of the Ray cluster has as much; its nodes have {listed}"
            )


class _Tasks:
    """The tasks of Ray that run jobs."""

    def __init__(self, ray: Any, task: Any, work: Work, cores: int) -> None:
        self.ray = ray
        self.task = task
        self.work = work
        self.cores = cores
        self.running: dict[Any, JobFolder] = {}
        self.losses: dict[JobFolder, int] = {}
        self.unfinished: dict[JobFolder, str] = {}
        self.stopping = False

    def run(self, jobs: "Sequence[JobFolder]") -> "dict[JobFolder, str]":
        """Run the jobs; return those that did not finish, and why."""
        try:
            for job in jobs:
                self._start(job)
            while self.running and not self.work.stop():
                done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                for task in done:
                    self._end(task)
                self.work.on_poll()
        except BaseException:
            self._stop()
            raise
        self._stop()
        return self.unfinished

    def _start(self, job: "JobFolder") -> None:
        from qsm_bench.job_folder import JobFolder

        task = self.task.remote(
            JobFolder(job.path.absolute(), job.agent, job.task, job.seeds, job.job),
            checkpoint_every=self.work.checkpoint_every,
            command=self.work.command,
            cores=self.cores,
            where=str(Path.cwd()),
        )
        self.running[task] = job

    def _end(self, task: Any) -> None:
        """Note what became of a job, or start it again if Ray has lost it."""
        job = self.running.pop(task)
        errors = self.ray.exceptions
        try:
            reason = self.ray.get(task)
        except errors.TaskCancelledError:
            # One that had begun answers, as it ends, like any other.
            reason = None if self.stopping else "its task of Ray was cancelled"
        except errors.RayTaskError as error:
            reason = one_line(f"its task of Ray failed: {error.cause!r}")
        except errors.RayError as error:
            reason = self._lose(job, type(error).__name__)
        if reason:
            self.unfinished[job] = reason

    def _lose(self, job: "JobFolder", error: str) -> str | None:
        """Start a job again that went with its node; return the reason if it is not."""
        if self.stopping:
            return f"Ray lost it ({error}) before it said that it is saved"
        self.losses[job] = self.losses.get(job, 0) + 1
        if self.losses[job] <= LOSSES:
            self.work.say(f"Ray lost {job.path} ({error}): it goes on from its last checkpoint")
            self._start(job)
            return None
        reason = f"Ray lost it {self.losses[job]} times, the last time by {error}"
        with suppress(OSError, UserError):
            manifest = job.read_manifest()
            failed = manifest.model_copy(update={"status": "failed", "reason": reason})
            job.change_manifest(manifest, failed)
        return reason

    def _stop(self) -> None:
        """Have the jobs save themselves and end; note those that could not."""
        self.stopping = True
        for task in self.running:
            self.ray.cancel(task)
        deadline = time.monotonic() + GRACE_SECONDS + MARGIN_SECONDS
        while self.running and time.monotonic() < deadline:
            done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
            for task in done:
                self._end(task)
        for job in self.running.values():
            self.unfinished[job] = "it was asked to stop, and its node has not said that it has"


def run_job(
    folder: "JobFolder", *, checkpoint_every: int, command: str, cores: int, where: str
) -> str | None:
    """Run a job to its end, in a task of Ray; return why it did not finish.

    ``where`` is the folder that the run was started in: the modules of the user's own are there.
    """
    from qsm_bench.executors.processes import run_locally

    with suppress(OSError):  # a node may not have it
        os.chdir(where)
    gpus = visible_gpus() if folder.read_manifest().job.device != "cpu" else ()
    with _cancelled() as cancelled:
        work = Work(folder.path, checkpoint_every, command, stop=cancelled.is_set)
        unfinished = run_locally([folder], work, workers=1, gpus=gpus, cores=cores)
    return unfinished.get(folder)


def read_token(file: str) -> str | None:
    """Return what stands in a file as this node sees it; None if it does not see it."""
    deadline = time.monotonic() + DISK_SECONDS
    while True:
        with suppress(OSError):
            return Path(file).read_text()
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)


@contextmanager
def _cancelled() -> Iterator[threading.Event]:
    """Remember, in a task, that it is cancelled, which Ray says by a SIGINT.

    As an exception it could be lost in a callback of other code.
    """
    cancelled = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse_unshared(ray: Any, nodes: list[dict[str, Any]], folder: Path) -> None:
    """Raise UserError if one of the nodes does not see the folder, or cannot run the package.

    Each reads a random text that is written here: a folder of the same name is not enough.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(read_token)
    with token_in(folder) as (file, token):
        answers = [
            task.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(str(file))
            for node in nodes
        ]
        ray.wait(answers, num_returns=len(answers), timeout=CHECK_SECONDS)
        for node, answer in zip(nodes, answers, strict=True):
            _refuse_answer(ray, node["NodeManagerHostname"], answer, token, folder)


def _refuse_answer(ray: Any, name: str, answer: Any, token: str, folder: Path) -> None:
    try:
        seen = ray.get(answer, timeout=0)
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        return  # it has gone in the meantime, and no job will go there
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or type(error).__name__
        raise UserError(
            f"node {name} of the Ray cluster cannot run qsm_bench ({one_line(str(reason))}): "
            "install the same packages on every node"
        ) from error
    if seen != token:
        raise UserError(
            f"node {name} of the Ray cluster does not see {folder}: choose --results in a folder "
            "that all nodes share"
        )


def _why_no_answer(address: str) -> str | None:
    """Say why nothing listens at an address; None if something does, or Ray is to find it."""
    if address == "auto":
        return None
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return "it is neither auto nor HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        return one_line(getattr(error, "strerror", None) or str(error))
    return None


def _why_not_connected(address: str) -> str | None:
    """Say why a process of its own does not become a driver of the cluster; None if it does."""
    script = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"
    try:
        subprocess.run(
            [sys.executable, "-c", script, address],
            capture_output=True,
            check=True,
            text=True,
            timeout=CONNECT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CONNECT_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        return one_line(error.stderr.strip().rpartition("\n")[2])
    return None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs ray: pip install 'qsm_bench[ray]'") from error
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Take back the signals that Ray takes: how to stop is for the run to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silenced() -> Iterator[None]:
    """Let Ray print nothing on the user's terminal.

    Of a node that is lost it prints pages, whatever it is told; ``_lose`` says it in a line.
    """
    from ray._private import worker

    shown = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = shown
