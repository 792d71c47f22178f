"""The executor of a SLURM cluster: jobs are tasks of an array, and ``run`` returns at once."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from qsm_bench.errors import UserError
from qsm_bench.executors.executor import Cluster, Outcome, Work
from qsm_bench.executors.shared_folder import token_in
from qsm_bench.executors.slurm_queue import LOGS, forget, job_name, note_task, slurm
from qsm_bench.files import refuse_foreign

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

WARNING_SECONDS = 120
"""How long before its time limit a task is told to save its jobs; SLURM may be a minute early."""
LEAST_SECONDS = 5 * 60
"""With less time before it is told to end, a task would do little but start."""
FREE_NODE_SECONDS = 20
"""How long to wait for a free node that looks whether it sees the folder."""
OURS = (
    *("array", "signal", "requeue", "no-requeue", "output", "error", "open-mode", "wrap"),
    *("job-name", "nodes", "ntasks", "export", "partition", "time"),
)
"""Options of sbatch that the executor sets itself."""


class Slurm(Cluster):
    """A SLURM cluster, through submitit. Every machine must see the folder of results."""

    kind = "slurm"

    partition: Annotated[str | None, Field(description="The partition; default: SLURM's.")] = None
    time: Annotated[
        str | None,
        Field(description="Time limit of a task, e.g. 24:00:00; it goes on after it if it must."),
    ] = None
    array_size: Annotated[
        int | None,
        Field(ge=1, description="Tasks at most; more jobs share them. Default: what SLURM allows."),
    ] = None
    requeue: Annotated[
        bool, Field(description="Queue a task again before its time limit, once it is saved.")
    ] = True
    slurm: Annotated[
        tuple[str, ...], Field(description="Another option of sbatch, key=value. May be repeated.")
    ] = ()

    @field_validator("time")
    @classmethod
    def _refuse_no_time(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"(\d+-\d+|\d+)(:\d+){0,2}", given):
            raise ValueError("write minutes, or hours:minutes:seconds, or days-hours")
        if given is not None and given.isdecimal() and int(given) * 60 < LEAST_SECONDS:
            raise ValueError(f"give {LEAST_SECONDS // 60} minutes or more")
        return given

    @field_validator("slurm")
    @classmethod
    def _refuse_no_options(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for text in given:
            key, equals, _ = text.partition("=")
            if not equals or not re.fullmatch(r"[a-z][a-z-]*", key):
                raise ValueError(f"{text!r}: write key=value, e.g. account=mine or mem=8G")
            if key in OURS:
                raise ValueError(f"{key} is set by qsm_bench itself")
        return given

    @field_validator("gpus_per_job")
    @classmethod
    def _refuse_several_gpus(cls, given: float) -> float:
        if given > 1:
            raise ValueError("a job trains on one GPU at most")
        return given

    def refuse_unusable(self, folder: Path, device: str) -> None:
        """Raise UserError if SLURM refuses, or a node does not see the folder."""
        _import_submitit()
        self.refuse_no_gpu(device)
        requeue = "--requeue" if self.requeue else "--no-requeue"
        slurm("sbatch", "--test-only", *_flags(self._options()), requeue, "--wrap=true")
        with token_in(folder) as (file, text):
            seen = self._read_on_a_node(file)
        if seen is not None and seen.strip() != text:
            raise UserError(
                f"the nodes of SLURM do not see {folder}: give --results a folder that they share"
            )

    def run(self, jobs: "Sequence[JobFolder]", work: Work) -> Outcome:
        """Submit the jobs as one array and return."""
        from qsm_bench.executors.slurm_task import SlurmTask

        if not jobs:
            return Outcome()
        submitit, logs = _import_submitit(), work.folder / LOGS
        refuse_foreign(logs, folder=True, remedy="delete it")
        logs.mkdir(exist_ok=True)
        packs = pack(jobs, self._width, self.array_size or _most_tasks())
        executor = submitit.SlurmExecutor(logs)
        executor.update_parameters(
            job_name=job_name(work.folder),
            time=None,  # SLURM's own default, not submitit's five minutes
            array_parallelism=len(packs),
            additional_parameters=self._options()
            | {"signal": f"USR1@{WARNING_SECONDS}"}
            | ({"requeue": True} if self.requeue else {"no-requeue": True}),
            # Where cores are bound, srun does not take this from the task.
            srun_args=[f"--cpus-per-task={self._cores}"],
        )
        tasks = [
            SlurmTask(
                work.folder,
                tuple(mine),
                mine[0].read_manifest().job.device,
                self._width,
                work.checkpoint_every,
                work.command,
                self.requeue,
            )
            for mine in packs
        ]
        if work.stop():
            return Outcome()
        try:
            with executor.batch():
                submitted = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit has no base class of its own errors
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"SLURM refuses the jobs: {lines[-1]}") from error
        queued = {}
        for mine, task in zip(packs, submitted, strict=True):
            for job in mine:
                if job.read_manifest().status == "failed":  # it is to be tried again
                    job.mark(status="pending", retried=None)
                note_task(job, task.job_id, job_name(work.folder))
                queued[job] = str(task.job_id)
        forget()
        return Outcome(queued=queued)

    @property
    def _width(self) -> int:
        """How many jobs run at a time in a task: those that share a GPU."""
        return max(1, math.floor(1 / self.gpus_per_job)) if self.gpus_per_job else 1

    @property
    def _cores(self) -> int:
        """The cores of a task."""
        return math.ceil(self.cpus_per_job * self._width)

    def _options(self) -> dict[str, Any]:
        """What a task asks of SLURM, as options of sbatch."""
        gpus = math.ceil(self.gpus_per_job * self._width)
        options = {
            "partition": self.partition,
            "time": self.time,
            "cpus-per-task": self._cores,
            "gpus": gpus or None,
        }
        given = dict(text.split("=", 1) for text in self.slurm)
        return {key: value for key, value in (options | given).items() if value is not None}

    def _read_on_a_node(self, file: Path) -> str | None:
        """What a node reads in a file, nothing if it has none; None if no node can say now."""
        small = {"time": "1", "ntasks": "1", "cpus-per-task": "1", "gpus": None}
        now = f"--immediate={FREE_NODE_SECONDS}"
        look = ("/bin/sh", "-c", 'cat "$1" 2>/dev/null || true', "sh", str(file))
        with suppress(UserError):
            return slurm("srun", now, "--quiet", *_flags(self._options() | small), *look)
        return None


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in options.items() if value is not None]


def pack(jobs: "Sequence[JobFolder]", width: int, most: int) -> "list[list[JobFolder]]":
    """Spread jobs over at most ``most`` tasks; one that runs several at a time gets as many."""
    count = min(most, math.ceil(len(jobs) / width))
    return [list(jobs[first::count]) for first in range(count)]


def _most_tasks() -> int:
    """The most tasks that SLURM takes in one array."""
    with suppress(UserError):
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config"), re.M)
        if found:
            return max(1, int(found.group(1)) - 1)
    return 1_000


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit: pip install 'qsm_bench[slurm]'") from None
    return submitit
