"""The jobs of a cell as one: results read as if its seeds were in no groups."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from qsm_bench.manifest import Manifest

ORDER = ("running", "failed", "interrupted", "pending", "finished")
"""A cell is what the first of these is that one of its jobs is."""


def merge_jobs(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The manifests of each (agent, task) as one flat dict, in their order.

    It has the fields of the job and its protocol, and those of the manifest, each as it is for all
    the cell's seeds: steps are those of the slowest job, and seconds are summed over the jobs.
    """

    def cell(manifest: Manifest) -> tuple[str, str]:
        return manifest.job.agent, manifest.job.task

    return [_merged(list(jobs)) for _, jobs in groupby(manifests, cell)]


def jobs_of(cell: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """How each job of a merged cell stands: its seeds, status, reason, step and log_tail."""
    return cell.get("groups") or [cell]


def _merged(jobs: list[Manifest]) -> dict[str, Any]:
    first = min(jobs, key=lambda manifest: ORDER.index(manifest.status))
    seeds = sum(len(manifest.job.seeds) for manifest in jobs)
    cell: dict[str, Any] = {
        "protocol": first.job.protocol.model_dump(mode="json"),
        **first.job.protocol.model_dump(mode="json"),
        **first.job.model_dump(mode="json", exclude={"protocol"}),
        **first.model_dump(mode="json", exclude={"job", "checksums"}),
        "seeds": [seed for manifest in jobs for seed in manifest.job.seeds],
        "step": min(manifest.step for manifest in jobs),
        "updates": sum(len(manifest.job.seeds) * manifest.updates for manifest in jobs) / seeds,
        "warnings": list(dict.fromkeys(line for manifest in jobs for line in manifest.warnings)),
        "groups": [_group(manifest) for manifest in jobs] if len(jobs) > 1 else [],
    }
    for name in ("train_seconds", "evaluation_seconds", "checkpoint_seconds"):
        cell[name] = sum(getattr(manifest, name) for manifest in jobs)
    dumps = [manifest.model_dump(mode="json") for manifest in jobs]
    for name in ("diverged", "failed_seeds"):
        cell[name] = {seed: value for dump in dumps for seed, value in dump[name].items()}
    cell["stretches"] = [
        {"seeds": dump["job"]["seeds"], **stretch}
        for dump in dumps
        for stretch in dump["stretches"]
    ]
    return cell


def _group(manifest: Manifest) -> dict[str, Any]:
    return {
        "seeds": list(manifest.job.seeds),
        "status": manifest.status,
        "reason": manifest.reason,
        "step": manifest.step,
        "log_tail": list(manifest.log_tail),
    }
