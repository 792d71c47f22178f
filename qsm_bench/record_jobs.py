"""What must hold of the jobs of a record, whoever writes or reads it."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from qsm_bench.experiment import Job
from qsm_bench.groups import job_name
from qsm_bench.manifest import Manifest

if TYPE_CHECKING:
    import pandas as pd


def fault_of_jobs(manifests: Sequence[Manifest], evaluations: "pd.DataFrame") -> str | None:
    """What keeps jobs from being those of one experiment, trained to its end; None if nothing.

    An agent has one set of settings on a task, a task is one environment, and a job that has
    finished has all its evaluations.
    """
    agents: dict[tuple[str, str], Job] = {}
    tasks: dict[str, Job] = {}
    rows = evaluations.groupby(["agent", "task", "seed"]).size().to_dict()
    for manifest in manifests:
        job = manifest.job
        here = job_name(job.agent, job.task, job.seeds)
        for first, names in (
            (agents.setdefault((job.agent, job.task), job), ("agent_name", "settings")),
            (tasks.setdefault(job.task, job), ("gymnasium_id", "score_range")),
        ):
            for name in names:
                if getattr(first, name) != getattr(job, name):
                    other = job_name(first.agent, first.task, first.seeds)
                    return f"{here}: {name!r} is not that of {other}"
        if manifest.status != "finished":
            continue
        steps = job.protocol.evaluated_steps(manifest.lengths)
        whole = len(steps) * job.protocol.eval_episodes
        found = [rows.get((job.agent, job.task, seed), 0) for seed in job.seeds]
        if manifest.step != job.protocol.steps:
            return f"{here}: finished, at step {manifest.step:,} of {job.protocol.steps:,}"
        if set(found) != {whole}:
            return f"{here}: finished, with {min(found)} of {whole} evaluated episodes"
    return None


def span_of_jobs(manifests: Iterable[Manifest]) -> tuple[str, str]:
    """When the first of the runs began and the last one ended, in ISO 8601; "" if it is unknown."""
    stretches = list(chain.from_iterable(manifest.stretches for manifest in manifests))
    began = min((stretch.started for stretch in stretches if stretch.started), default="")
    return began, max((stretch.ended for stretch in stretches if stretch.ended), default="")
