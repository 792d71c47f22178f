"""What an executor is: it runs the jobs of an experiment, each in a process, somewhere."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qsm_bench.errors import UserError
from qsm_bench.protocol import option

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder

MOST_CORES = 10_000
"""More for a job are a slip of the hand."""


def _nothing() -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Work:
    """How jobs are run, wherever that is, and how their executor speaks with who asked for them."""

    folder: Path
    """The folder of the experiment, for what an executor notes itself."""
    checkpoint_every: int
    """Steps between two checkpoints."""
    command: str
    """What started the run, for the manifests."""
    on_poll: Callable[[], None] = _nothing
    """Called several times a second while jobs run."""
    stop: Callable[[], bool] = _never
    """Whether the jobs are to save themselves and end."""
    say: Callable[[str], None] = print
    """Told what the user should know at once."""


@dataclass(frozen=True)
class Outcome:
    """What became of jobs."""

    unfinished: "dict[JobFolder, str]" = field(default_factory=dict)
    """Those that did not finish, each with the reason."""
    queued: "dict[JobFolder, str]" = field(default_factory=dict)
    """Those that a cluster runs later, each with the name of its task there."""


class Executor(BaseModel, ABC):
    """Runs jobs. Its fields are options of the command line; each job runs ``qsm_bench.worker``.

    Whatever runs them, jobs write the same files. A job whose process dies is started once more,
    from its checkpoint, and then recorded as failed. Raises UserError for an option that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    """The name on the command line."""
    here: ClassVar[bool] = False
    """Whether all jobs run on this machine, so that its memory and devices decide."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name, message = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{option(name)} {values.get(name)!r} is not right: {message}"
            ) from error

    def at_once(self, device: str) -> float:
        """How many jobs run at a time on devices of this kind; infinity where a queue decides."""
        return math.inf

    def device(self) -> str | None:
        """The kind of device that jobs have; None: the best that this machine has."""
        return None

    def refuse_unusable(self, folder: Path, device: str) -> None:
        """Raise UserError if no job could be run with its files in ``folder``, before one is."""

    @abstractmethod
    def run(self, jobs: "Sequence[JobFolder]", work: Work) -> Outcome:
        """Run the jobs, or queue them.

        Once ``work.stop()`` is true, or if anything is raised, jobs that run are asked to save
        themselves and end. Raises UserError if nothing can be run.
        """


class Cluster(Executor):
    """An executor of a cluster, where a job takes a share of a machine."""

    cpus_per_job: Annotated[
        float, Field(gt=0, le=MOST_CORES, description="CPU cores that a job takes.")
    ] = 1.0
    gpus_per_job: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="GPUs that a job takes; with 0.25, four jobs share one.",
        ),
    ] = 0.0

    def device(self) -> str:
        """The kind of device that jobs have: a GPU if they take one, or a part of one."""
        return "cuda" if self.gpus_per_job else "cpu"

    def refuse_no_gpu(self, device: str) -> None:
        """Raise UserError if jobs are to train on a GPU and take none."""
        if device == "cuda" and not self.gpus_per_job:
            raise UserError(
                f"--device {device} needs --gpus-per-job above 0: a job that takes none sees none"
            )
