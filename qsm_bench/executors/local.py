"""The executor of this machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from qsm_bench.executors.executor import Executor, Outcome, Work
from qsm_bench.machine import usable_cores, visible_gpus

if TYPE_CHECKING:
    from qsm_bench.job_folder import JobFolder


class Local(Executor):
    """Processes of this machine, as many at a time as there are workers."""

    kind = "local"
    here = True

    workers: Annotated[
        int | None, Field(ge=1, description="Jobs at a time; default: one for each core.")
    ] = None
    jobs_per_gpu: Annotated[int, Field(ge=1, description="Jobs at a time on each GPU.")] = 1

    def at_once(self, device: str) -> int:
        """How many jobs run at a time: at most the workers, and what the GPUs may hold."""
        workers = self.workers or usable_cores()
        if device == "cpu":
            return workers
        return min(workers, max(1, len(visible_gpus())) * self.jobs_per_gpu)

    def run(self, jobs: "Sequence[JobFolder]", work: Work) -> Outcome:
        """Run the jobs to their ends."""
        from qsm_bench.executors.processes import run_locally

        device = jobs[0].read_manifest().job.device if jobs else "cpu"
        gpus = visible_gpus() if device != "cpu" else ()
        return Outcome(run_locally(jobs, work, workers=self.at_once(device), gpus=gpus))
