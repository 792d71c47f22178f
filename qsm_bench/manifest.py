"""A job's manifest: what it is, how it went, and whether a file that says so can be believed."""

import math
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from agents.registry import find_agent
from qsm_bench.comparable import protocol_differences
from qsm_bench.errors import UserError, first_fault
from qsm_bench.experiment import Job
from qsm_bench.files import read_json
from qsm_bench.heartbeat import time_of
from qsm_bench.protocol import MOST_STEPS, Protocol
from qsm_bench.settings import as_json
from qsm_bench.stretches import Stretch, from_top_level

FORMAT = 2
"""The format of the folder's files. One of a later format is refused; one that names none is 1,
and has no level of <seeds>: an agent's seeds on a task were one job, in the folder of the task.

It rises when an earlier version would misread what this one writes. A field that is only added,
with a default, leaves it as it is: an earlier version refuses the manifest in a line that names
the field, and this one reads a manifest without it."""
READABLE_SEEDS = 100_000
"""An experiment or a job that says it has more is damaged."""

Status = Literal["pending", "running", "finished", "failed", "interrupted"]


class SeedFailure(BaseModel):
    """What ended one seed of a job, while the others went on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    reason: str
    """Why it failed, in one line."""


class Manifest(BaseModel):
    """What a job is and how it went."""

    model_config = ConfigDict(extra="forbid")

    job: Job
    format: int = FORMAT
    status: Status = "pending"
    reason: str | None = None
    """Why it failed, in one line."""
    log_tail: tuple[str, ...] = ()
    """The last lines that a failed job printed."""
    retried: str | None = None
    """Why it was started a second time, from its checkpoint."""
    diverged: dict[int, int] = {}
    """Seeds that diverged, each with its step; from there on their returns are NaN."""
    failed_seeds: dict[int, SeedFailure] = {}
    """Seeds whose environment failed; from there on their returns are NaN."""
    warnings: tuple[str, ...] = ()
    """What a user should know of the run, a line each."""
    step: int = 0
    updates: int = 0
    """Gradient updates of each seed so far."""
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    keep_replay: bool = False
    """Whether the replay buffer stays on the disk when the job has finished, for more steps."""
    lengths: tuple[int, ...] = ()
    """The job's steps before it was given more, in order."""
    stretches: tuple[Stretch, ...] = ()
    """Every stretch of the run, in order: where it was cut off, the next one begins."""
    checksums: dict[str, int] = {}
    """CRC-32 of a finished job's tables, by file name."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, content: Any) -> Any:
        return from_top_level(content)

    def for_job(self, job: Job, *, keep_replay: bool) -> "Manifest":
        """Return this manifest for a job that is longer, or as long."""
        changes: dict[str, Any] = {"job": job, "keep_replay": keep_replay}
        steps = self.job.protocol.steps
        if steps < job.protocol.steps:
            changes |= {"status": "pending", "checksums": {}, "lengths": (*self.lengths, steps)}
        return self.model_copy(update=changes)

    def end_stretch(self, sign: dict[str, Any]) -> None:
        """Give the last stretch, if it was cut off, the end that its last sign of life tells."""
        if self.stretches and self.stretches[-1].ended is None:
            *earlier, last = self.stretches
            at, step = time_of(sign), sign.get("step")
            ended = at.astimezone(UTC).isoformat(timespec="seconds") if at else last.started
            reached = step if type(step) is int and 0 <= step <= self.job.protocol.steps else 0
            end = {"ended": ended, "last_step": max(last.first_step, last.last_step, reached)}
            self.stretches = (*earlier, last.model_copy(update=end))


def is_open(manifest: Manifest, job: Job) -> bool:
    """Whether a job that is there as ``manifest`` has not yet all the steps of ``job``."""
    return manifest.status != "finished" or manifest.job.protocol.steps < job.protocol.steps


class LaterFormatError(UserError):
    """What a later version wrote: it is not damaged, and nothing of it is to be deleted."""


def refuse_later(file: Path, content: Any) -> None:
    """Raise UserError if a file is of a later format than this version reads."""
    written = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if isinstance(written, int) and written > FORMAT:
        raise LaterFormatError(
            f"{file} was written by a later version of qsm_bench, in format {written}; this one "
            f"reads formats up to {FORMAT}: upgrade qsm_bench"
        )


def read_manifest(file: Path) -> Manifest:
    """Read a manifest. Raises UserError, in one line, if the file is none of this version."""
    content = read_json(file)
    refuse_later(file, content)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise UserError(
            f"{file} is not a manifest of this version: {first_fault(error)}"
        ) from error


def refuse_nonsense(file: Path, manifest: Manifest) -> None:
    """Raise UserError if no run could have written the numbers of a manifest."""
    job = manifest.job
    faults = [
        f"{name} is {value}"
        for name, value, most in (
            ("step", manifest.step, job.protocol.steps),
            ("updates", manifest.updates, MOST_STEPS),
        )
        if not 0 <= value <= most
    ]
    if not 0 < len(job.seeds) <= READABLE_SEEDS:
        faults.append(f"there are {len(job.seeds)} seeds")
    if len(set(job.seeds)) < len(job.seeds) or not all(0 <= s < 2**63 for s in job.seeds):
        faults.append("the seeds are no different numbers from 0 on")
    failures = manifest.failed_seeds.items()
    ended = [*manifest.diverged.items(), *((seed, failure.step) for seed, failure in failures)]
    if not all(seed in job.seeds and 0 <= at <= job.protocol.steps for seed, at in ended):
        faults.append("a seed failed or diverged that the job does not have, or at no step of it")
    seconds = (manifest.train_seconds, manifest.evaluation_seconds, manifest.checkpoint_seconds)
    if not all(0 <= value < math.inf for value in seconds):
        faults.append("a time is negative or endless")
    if job.device not in ("cpu", "cuda"):
        faults.append(f"device is {job.device!r}")
    if not all(map(math.isfinite, job.score_range or ())):
        faults.append(f"score_range is {job.score_range}")
    if faults:
        raise UserError(f"{file} is damaged: {faults[0]}")


def refuse_difference(name: str, there: Job, asked: Job) -> None:
    """Raise UserError if a job that is there is not the one asked for, apart from more steps."""
    old, new = _flat(there), _flat(asked)
    if old["steps"] < new["steps"]:
        del old["steps"], new["steps"]
    changed = [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"experiment {name!r} has {asked.agent} on {asked.task} with another configuration "
            f"({'; '.join(changed)}): choose another --name"
        )


def refuse_other_protocol(name: str, there: Job, asked: Protocol) -> None:
    """Raise UserError if a job that is there has another protocol than is asked for, but for steps.

    All agents of an experiment have one, or they could not be compared.
    """
    changed = [
        f"{key} was {old!r} and is {new!r}"
        for key, (old, new) in protocol_differences(there.protocol, asked).items()
    ]
    if changed:
        raise UserError(
            f"experiment {name!r} has {there.agent} on {there.task} under another protocol "
            f"({'; '.join(changed)}): choose another --name"
        )


def as_it_began(job: Job, there: Job) -> Job:
    """Return ``job`` with the settings of the one that is there, if these mean the same.

    A setting that an agent has got since has its default in what was trained before.
    """
    config_class = find_agent(job.agent_name).agent.config_class
    later = {
        name: value
        for name, value in as_json(job.agent_name, config_class()).items()
        if name not in there.settings
    }
    same = later and there.settings | later == job.settings
    return job.model_copy(update={"settings": there.settings}) if same else job


def _flat(job: Job) -> dict[str, Any]:
    """A job's fields, those of its protocol and its settings in one dict."""
    fields = job.model_dump(mode="json")
    # What the protocol sets for every agent stands among the agent's own settings.
    protocol = {key: value for key, value in fields.pop("protocol").items() if key != "settings"}
    settings = {f"settings.{key}": value for key, value in fields.pop("settings").items()}
    return fields | protocol | settings
