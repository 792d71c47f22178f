"""The results on disk: a folder for each experiment, and in it one for each job.

Everything is written by append or by an atomic rename.

results/<experiment>/experiment.json
results/<experiment>/<agent>/<task>/<seeds>/
                                    manifest.json     what ran, and how it went
                                    evaluations.csv   seed, step, episode, return, length
                                    training.csv      seed, step, wall clock, metrics
                                    diagnostics.csv   seed, step, measures of policy and critic
                                    slices.csv        seed, step, state, action, q, share: the last
                                    progress.json     where a running job stands
                                    log.txt           what the job printed
                                    queued.json       the task of a cluster that runs it
                                    checkpoint/       agent state and replay log
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from qsm_bench.counting import count
from qsm_bench.errors import UserError, did_you_mean
from qsm_bench.executors.slurm_queue import LOGS, queued_tasks
from qsm_bench.experiment import Experiment, Job
from qsm_bench.files import read_json, refuse_foreign, write_atomically
from qsm_bench.groups import Groups, folder_name
from qsm_bench.heartbeat import Heartbeat, liveness, process_name, this_machine
from qsm_bench.job_folder import JobFolder, read_sign, remove_if_empty
from qsm_bench.manifest import (
    FORMAT,
    READABLE_SEEDS,
    LaterFormatError,
    Manifest,
    as_it_began,
    is_open,
    read_manifest,
    refuse_difference,
    refuse_later,
    refuse_other_protocol,
)
from qsm_bench.shipped import shipped
from qsm_bench.stages import DECLARED_LATE, Stages, read_stages, text_of

EXPERIMENT_FILE = "experiment.json"
"""It stands in the folder of an experiment: what was asked for."""
RECORD_FILE = "record.json"
"""Beside it, it makes a record of the experiment: see ``qsm_bench/record.py``."""
MOST_PAIRS = 100_000
"""An experiment that says it has more is damaged."""


class ExperimentStore:
    """The folder of one experiment."""

    def __init__(self, root: Path, name: str) -> None:
        """Raise UserError for a name that would lead out of ``root``."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise UserError(f"experiment name {name!r}: a plain name is wanted, without '/'")
        # Absolute, before a task or an agent can change the working directory.
        self.name = name
        self.folder = root.absolute() / name
        self.file = self.folder / EXPERIMENT_FILE
        self.lock_file = self.folder / ".lock"
        self.holder_file = self.folder / ".holder"

    def job_folder(
        self, agent: str, task: str, seeds: tuple[int, ...], job: str | None = None
    ) -> JobFolder:
        """Return the folder of a job; characters that no path may have are escaped in its name.

        With ``job``, the identity of a job, it holds that one and no other.
        """
        folder = self.folder / as_folder(agent) / as_folder(task)
        # In format 1 the first group's files stand in the folder of the task.
        if not (JobFolder(folder).begun and seeds in self.groups[:1]):
            folder /= folder_name(seeds)
        return JobFolder(folder, agent, task, seeds, job)

    def folder_of(self, job: Job) -> JobFolder:
        """Return the folder of a job."""
        return self.job_folder(job.agent, job.task, job.seeds)

    @property
    def groups(self) -> Groups:
        """The groups of seeds that the experiment has; empty before there is one."""
        if not os.path.lexists(self.file):
            return ()
        return tuple(map(tuple, self.read()["groups"]))

    @property
    def seeds(self) -> list[int]:
        """The seeds that the experiment has."""
        return [seed for group in self.groups for seed in group]

    @property
    def stages(self) -> Stages | None:
        """The plan of an experiment in stages; None of another one, and before there is one."""
        return read_stages(self.read()) if os.path.lexists(self.file) else None

    def is_open(self, job: Job) -> bool:
        """Return whether the job is still to run: neither finished nor damaged."""
        folder = self.folder_of(job)
        manifest = _manifest_or_none(folder) if folder.begun else None
        return not folder.begun or (manifest is not None and is_open(manifest, job))

    def job_folders_of(self, agent: str, task: str) -> list[JobFolder]:
        """Return the folders of an agent's jobs on a task, which need not have all seeds.

        Raises UserError if there is no such agent or task, or if it has no job yet.
        """
        groups = self._read_with(agent, task)["groups"]
        asked_for = [self.job_folder(agent, task, tuple(group)) for group in groups]
        folders = [folder for folder in asked_for if folder.begun]
        if not folders:
            for folder in asked_for:
                folder.refuse_foreign()  # something else may stand where it should be
            raise UserError(f"{agent} on {task} has not been run in {self.name}")
        return folders

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for one writer.

        Raises UserError that names the process that has it, or says why it cannot be written.
        """
        self.refuse_published()
        refuse_foreign(self.lock_file, writing=True, remedy="delete it")
        lock = FileLock(self.lock_file, timeout=0)
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"experiment {self.name!r} is being run by "
                    f"{self.holder() or 'another process'}: wait for it, or choose another --name"
                ) from None
        try:
            with Heartbeat(self.holder_file):
                yield
        finally:
            with suppress(OSError):
                self.holder_file.unlink(missing_ok=True)
            lock.release()

    def refuse_published(self) -> None:
        """Raise UserError for a record: its files would no longer be what was published."""
        if os.path.lexists(self.folder / RECORD_FILE):
            raise UserError(
                f"{self.folder} is a published record, and stays as it is: for runs of your own "
                "choose another --name or --results"
            )

    def holder(self) -> str | None:
        """Say who is running the experiment now; None if nobody is.

        The lock is not touched: whoever asks must not be in the way of one who wants to run.
        """
        sign = read_sign(self.holder_file)
        return process_name(sign) if liveness(sign) != "gone" else None

    def holder_pid(self) -> int | None:
        """The number of the process that runs the experiment; None if it is elsewhere, or none."""
        sign = read_sign(self.holder_file)
        here = sign.get("place") == this_machine() and liveness(sign) != "gone"
        return int(sign["pid"]) if here else None

    def job_folders(self) -> Iterator[JobFolder]:
        """Yield the folders of the jobs that are on disk, in the order they were asked for."""
        asked = self.read()
        for task in asked["tasks"]:
            for agent in asked["agents"]:
                for group in asked["groups"]:
                    folder = self.job_folder(agent, task, tuple(group))
                    if folder.begun:
                        yield folder

    def queued(self) -> dict[Path, str]:
        """The folders of the jobs that SLURM has, each with its task.

        Raises UserError if jobs were given to SLURM, and it cannot be asked.
        """
        if not os.path.lexists(self.file):
            return {}
        return {job.path: task for job, (task, _) in queued_tasks(self.job_folders()).items()}

    def read(self) -> dict[str, Any]:
        """Return what was asked for. Raises UserError if there is no such experiment."""
        if not os.path.lexists(self.file):
            known = experiment_names(self.folder.parent)
            hint = did_you_mean(self.name, known) if known else "none has been run yet"
            if os.path.lexists(shipped(self.name) / "record.json"):
                hint = (
                    f"{self.name} is a record that comes with the program; it is put beside an "
                    f"experiment of yours: report NAME --beside {self.name}"
                )
            raise UserError(f"no experiment {self.name!r} in {self.folder.parent}: {hint}")
        try:
            asked: dict[str, Any] = read_json(self.file)
            refuse_later(self.file, asked)
            if isinstance(asked, dict) and "groups" not in asked:  # of format 1
                seeds = asked.pop("seeds", None)
                asked["groups"] = [seeds] if seeds else self._groups_on_disk()
            self._refuse_nonsense(asked)
        except LaterFormatError:
            raise
        except UserError as error:
            raise UserError(
                f"{error}; delete this file alone, and the experiment's command writes it anew"
            ) from error
        return asked

    def _read_with(self, agent: str | None, task: str | None) -> dict[str, Any]:
        """Return what was asked for. Raises UserError if it has no such agent or task."""
        asked = self.read()
        for what, value, known in (
            ("agent", agent, asked["agents"]),
            ("task", task, asked["tasks"]),
        ):
            if value is not None and value not in known:
                advice = did_you_mean(value, known)
                raise UserError(f"{self.name} has no {what} {value!r}: {advice}")
        return asked

    def _groups_on_disk(self) -> list[list[int]]:
        """Return the groups of seeds that the jobs have, where ``experiment.json`` has none."""
        groups: dict[tuple[int, ...], None] = {}
        for file in sorted(self.folder.rglob("manifest.json")):
            with suppress(UserError):
                groups[read_manifest(file).job.seeds] = None
        return [list(group) for group in groups]

    def _refuse_nonsense(self, asked: Any) -> None:
        """Raise UserError if the content of ``experiment.json`` says no such experiment."""
        fault = None
        if not isinstance(asked, dict):
            fault = "it is no object"
        elif not all(
            isinstance(names := asked.get(key), list)
            and all(isinstance(n, str) for n in names)
            and 0 < len(names) == len(set(names))
            for key in ("agents", "tasks")
        ):
            fault = "agents and tasks must be lists of different names, of one at least"
        elif len(asked["agents"]) * len(asked["tasks"]) > MOST_PAIRS:
            fault = f"it has more than {MOST_PAIRS:,} pairs of an agent and a task"
        elif asked.get("name", self.name) != self.name:
            fault = (
                f"it is of the experiment {asked['name']!r}, which must lie in a folder so named"
            )
        elif fault := _groups_fault(asked["groups"]) or _stages_fault(asked):
            pass
        elif not _are_rising(asked.get("seeds_asked", [1, 2])):
            fault = "seeds_asked must be rising numbers of seeds, of two at least"
        elif not isinstance(asked.get("command", ""), str):
            fault = "command must be a text"
        elif wrong := [
            k for k in ("compiled", DECLARED_LATE) if type(asked.get(k, True)) is not bool
        ]:
            fault = f"{wrong[0]} must be true or false"
        if fault:
            raise UserError(f"{self.file} is damaged: {fault}")

    def refuse_other_stages(self, experiment: Experiment) -> None:
        """Raise UserError if the experiment has begun, and by another plan, or by none."""
        if not os.path.lexists(self.file):
            return
        declared, now = self.stages, experiment.stages
        if declared and now:
            declared.refuse_difference(self.name, now)
        elif declared:
            raise UserError(
                f"experiment {self.name!r} was declared before its first run with stages of "
                f"{text_of(declared.counts)} seeds: give --seeds {text_of(declared.counts)}, or "
                "neither --seeds nor --first-seed, or choose another --name"
            )
        elif now:
            raise UserError(
                f"experiment {self.name!r} has begun without stages, and --seeds "
                f"{text_of(now.counts)} asks for some: they are declared before the first run, so "
                "choose another --name"
            )

    def _refuse_other_protocol(self, experiment: Experiment) -> None:
        """Raise UserError if runs of other agents or tasks have another protocol, but for steps.

        Runs of its own agents and tasks are looked at as a whole: see ``refuse_difference``.
        """
        own = {(job.agent, job.task) for job in experiment.jobs}
        others = []
        for file in sorted(self.folder.rglob("manifest.json")):
            with suppress(UserError):  # a damaged one is told of where it is used
                others.append(read_manifest(file).job)
        for job in others:
            if (job.agent, job.task) not in own:
                refuse_other_protocol(experiment.name, job, experiment.protocol)

    def refuse_changes(
        self, experiment: Experiment
    ) -> list[tuple[JobFolder, Job, Manifest | None]]:
        """Raise UserError if the experiment is not what is there, or more of it.

        Returns its jobs, each with its folder and with the manifest that it has.
        """
        self.refuse_published()
        self.refuse_other_stages(experiment)
        self._refuse_other_protocol(experiment)
        there = []
        for job in experiment.jobs:
            folder = self.folder_of(job)
            manifest = _manifest_or_none(folder) if folder.begun else None
            if manifest:
                job = as_it_began(job, manifest.job)
                refuse_difference(experiment.name, manifest.job, job)
                folder.refuse_without_replay(manifest, job)
            there.append((folder, job, manifest))
        return there

    def prepare(
        self,
        experiment: Experiment,
        command: str,
        *,
        jobs: Sequence[Job] | None = None,
        keep_replay: bool = False,
    ) -> list[JobFolder]:
        """Lay out ``jobs`` of ``experiment``, or find them as an earlier run left them.

        All its jobs, if none are named. Agents, tasks and steps may be added to an experiment
        without stages; apart from its steps, a job that is there must be the same job. Raises
        UserError with the difference if it is not, or if a finished job without its replay buffer
        is to train on; nothing is written then. A job that is damaged is left as it is, for its own
        ``read_manifest`` to tell of.
        """
        there = self.refuse_changes(experiment)
        asked = self.read() if os.path.lexists(self.file) else {"agents": [], "tasks": []}
        jobs = experiment.jobs if jobs is None else jobs
        wanted = [self.folder_of(job).path for job in jobs]
        asked |= self._seeds_asked(asked, experiment) | {
            "format": FORMAT,
            "name": experiment.name,
            "agents": list(dict.fromkeys([*asked["agents"], *experiment.labels])),
            "tasks": list(dict.fromkeys([*asked["tasks"], *experiment.tasks])),
            "groups": [list(group) for group in experiment.groups],
            "protocol": experiment.protocol.model_dump(mode="json"),
            "device": experiment.device,
            "compiled": experiment.compiled,
            "command": command,
        }
        if experiment.stages and "stages" not in asked:
            asked["stages"] = experiment.stages.model_dump(mode="json")
            if any(manifest and manifest.stretches for _, _, manifest in there):
                asked[DECLARED_LATE] = True
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(asked, indent=2) + "\n")
            for folder, job, manifest in there:
                if folder.path not in wanted:
                    continue
                if not folder.begun:
                    folder.refuse_foreign(writing=True)
                    folder.write_manifest(Manifest(job=job, keep_replay=keep_replay))
                elif manifest and is_open(manifest, job):
                    folder.change_manifest(manifest, manifest.for_job(job, keep_replay=keep_replay))
        identities = {folder.path: job.identity for folder, job, _ in there}
        return [
            self.job_folder(job.agent, job.task, job.seeds, identities[path])
            for job, path in zip(jobs, wanted, strict=True)
        ]

    def _seeds_asked(self, asked: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
        """How many seeds were asked for each time, if some are added after a job has begun."""
        before, now = sum(map(len, asked.get("groups", ()))), len(experiment.seeds)
        if not 0 < before < now or not any(map(_has_run, self.job_folders())):
            return {}
        return {"seeds_asked": [*asked.get("seeds_asked", [before]), now]}

    def remove(self, agent: str | None = None, task: str | None = None) -> list[Path]:
        """Delete the jobs of ``agent``, of ``task`` or of both; if neither is given, everything.

        Returns the folders that are gone. Files that no run has written stay, and so do the
        folders that they are in. Raises UserError if there is no such job, a link or something
        else that no run makes is in the way, or a process still writes one of them.
        """
        asked = self._read_with(agent, task)
        with self.lock():
            folders = [
                folder
                for folder in self.job_folders()
                if agent in (None, folder.agent) and task in (None, folder.task)
            ]
            if queued := queued_tasks(folders):
                raise UserError(
                    f"SLURM has {count(len(queued), 'job')} of {self.name}: take them out with "
                    f"'cancel {self.name}' first"
                )
            for folder in folders:
                folder.refuse_foreign(writing=True)
                with folder.lock():
                    pass
            for folder in folders:
                folder.delete()
            if agent is None and task is None:
                self.file.unlink()
            elif task is None or agent is None:
                what, value = ("agents", agent) if task is None else ("tasks", task)
                asked[what] = [name for name in asked[what] if name != value]
                if asked[what]:
                    write_atomically(self.file, json.dumps(asked, indent=2) + "\n")
                else:
                    self.file.unlink()
        if not os.path.lexists(self.file):
            _delete_logs(self.folder / LOGS)
            self.lock_file.unlink(missing_ok=True)
            remove_if_empty(self.folder)
        return [folder.path for folder in folders]


def experiment_names(root: Path) -> list[str]:
    """The names of the experiments in a folder of results."""
    return sorted(file.parent.name for file in root.glob(f"*/{EXPERIMENT_FILE}"))


def _delete_logs(folder: Path) -> None:
    """Delete what SLURM was given and has written; nothing behind a link."""
    refuse_foreign(folder, folder=True, remedy="delete it")
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise UserError, in one line, where a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def _groups_fault(groups: Any) -> str | None:
    """What is wrong with the groups of seeds of an experiment, if anything."""
    if not isinstance(groups, list) or not all(isinstance(g, list) and g for g in groups):
        return "groups must be lists of seeds, of one at least"
    seeds = [seed for group in groups for seed in group]
    if not 0 < len(seeds) <= READABLE_SEEDS or len(groups) > READABLE_SEEDS:
        return f"it has {count(len(seeds), 'seed')}"
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        return "seeds must be whole numbers from 0 on"
    if len(set(seeds)) < len(seeds):
        return "a seed is in two groups"
    return None


def _stages_fault(asked: dict[str, Any]) -> str | None:
    """What is wrong with the stages of an experiment, if anything."""
    try:
        read_stages(asked)
    except ValueError as error:
        return str(error)
    return None


def _are_rising(numbers: Any) -> bool:
    """Whether these are two numbers or more, of which each is above the one before it."""
    return (
        isinstance(numbers, list)
        and len(numbers) > 1
        and all(type(number) is int and 0 < number <= READABLE_SEEDS for number in numbers)
        and all(a < b for a, b in pairwise(numbers))
    )


def _has_run(folder: JobFolder) -> bool:
    """Whether a job has ever been at work; one that is damaged may have been."""
    manifest = _manifest_or_none(folder)
    return manifest is None or bool(manifest.stretches)


def as_folder(name: str) -> str:
    """A label or a task's name as the name of one folder, which no other one has."""
    folder = quote(name, safe=" []=,.+-_:")
    return folder if folder.strip(".") else folder.replace(".", "%2E")


def _manifest_or_none(folder: JobFolder) -> Manifest | None:
    """Return a job's manifest; None if it is damaged. Raises UserError for a later format."""
    try:
        return folder.read_manifest()
    except LaterFormatError:
        raise
    except UserError:
        return None
