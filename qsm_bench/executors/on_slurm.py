"""The executor of a SLURM cluster: jobs are tasks of an array, and ``run`` returns at once."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from qsm_bench.errors import UserError
from qsm_bench.executors.executor import Executor, Outcome, Work
from qsm_bench.executors.shared_folder import token_in
from qsm_bench.executors.slurm_queue import LOGS, forget, note_task, slurm

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

WARNING_SECONDS = 120
"""How long before its time limit a task is told to save its jobs; SLURM may be a minute early."""
FREE_NODE_SECONDS = 20
"""How long to wait for a free node that looks whether it sees the folder."""
OURS = ("array", "signal", "requeue", "output", "error", "open-mode", "wrap")
"""Options of sbatch that the executor sets itself."""


class Slurm(Executor):
    """A SLURM cluster, through submitit. Every machine must see the folder of results."""

    kind = "slurm"

    partition: Annotated[str | None, Field(description="The partition; default: SLURM's.")] = None
    time: Annotated[
        str | None,
        Field(description="Time limit of a task, e.g. 24:00:00; it goes on after it if it must."),
    ] = None
    gpus_per_job: Annotated[
        float, Field(ge=0, description="GPUs of a job; with 0.25, four jobs share one.")
    ] = 0
    cpus_per_job: Annotated[float, Field(gt=0, description="Cores of a job.")] = 1
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

    def device(self) -> str:
        """A GPU where jobs have one, or a part of one."""
        return "cuda" if self.gpus_per_job else "cpu"

    def refuse_unusable(self, folder: Path, device: str) -> None:
        """Raise UserError if SLURM refuses, or a node does not see the folder."""
        _import_submitit()
        if device == "cuda" and not self.gpus_per_job:
            raise UserError("--device cuda: give --gpus-per-job too, e.g. --gpus-per-job 1")
        slurm("sbatch", "--test-only", *_flags(self._options()), "--wrap=true")
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
        logs.mkdir(exist_ok=True)
        packs = pack(jobs, self._width, self.array_size or _most_tasks())
        executor = submitit.SlurmExecutor(logs)
        executor.update_parameters(
            job_name=f"qsm_bench-{work.folder.name}",
            array_parallelism=len(packs),
            additional_parameters=self._options()
            | {"signal": f"USR1@{WARNING_SECONDS}", "requeue": self.requeue or None}
            | ({} if self.requeue else {"no-requeue": True}),
        )
        tasks = [
            SlurmTask(
                work.folder,
                tuple(mine),
                self._width,
                work.checkpoint_every,
                work.command,
                self.requeue,
            )
            for mine in packs
        ]
        try:
            with executor.batch():
                submitted = [executor.submit(task) for task in tasks]
        except Exception as error:  # submitit has no base class of its own errors
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"SLURM refuses the jobs: {lines[-1]}") from error
        queued = {}
        for mine, task in zip(packs, submitted, strict=True):
            for job in mine:
                note_task(job, task.job_id)
                queued[job] = str(task.job_id)
        forget()
        return Outcome(queued=queued)

    @property
    def _width(self) -> int:
        """How many jobs run at a time in a task: those that share a GPU."""
        return max(1, math.floor(1 / self.gpus_per_job)) if self.gpus_per_job else 1

    def _options(self) -> dict[str, Any]:
        """What a task asks of SLURM, as options of sbatch."""
        gpus = math.ceil(self.gpus_per_job * self._width)
        options = {
            "partition": self.partition,
            "time": self.time,
            "cpus-per-task": math.ceil(self.cpus_per_job * self._width),
            "gpus": gpus or None,
        }
        given = dict(text.split("=", 1) for text in self.slurm)
        return {key: value for key, value in (options | given).items() if value is not None}

    def _read_on_a_node(self, file: Path) -> str | None:
        """What a node reads in a file, nothing if it has none; None if no node is free to say."""
        small = {"time": "1", "ntasks": "1", "cpus-per-task": "1", "gpus": None}
        now = f"--immediate={FREE_NODE_SECONDS}"
        look = ("sh", "-c", 'cat "$1" 2>/dev/null || true', "sh", str(file))
        try:
            return slurm("srun", now, "--quiet", *_flags(self._options() | small), *look)
        except UserError as error:
            if re.search(r"immediate|nodes are busy|timed out|no answer|unavailable", str(error)):
                return None
            raise


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
