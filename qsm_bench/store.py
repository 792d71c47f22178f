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
                                    checkpoint/       agent state and replay log
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

from filelock import FileLock, Timeout

from qsm_bench.errors import UserError, did_you_mean
from qsm_bench.experiment import Experiment, Job
from qsm_bench.files import MIB, plain_opener, read, read_json, refuse_foreign, write_atomically
from qsm_bench.groups import Groups, folder_name
from qsm_bench.heartbeat import Heartbeat, liveness, process_name
from qsm_bench.manifest import (
    FORMAT,
    MOST_SEEDS,
    LaterFormatError,
    Manifest,
    is_open,
    read_manifest,
    refuse_difference,
    refuse_later,
    refuse_nonsense,
)

GONE = "its process is gone"
"""The reason of a cell that was interrupted, and whose process nobody has seen end."""

TABLE_LIMIT = 1024 * MIB
"""The most bytes of a table that is still read."""
MOST_CELLS = 100_000
"""An experiment that says it has more is damaged."""


class Cell:
    """The folder of one job: a group of seeds of an (agent, task) cell."""

    def __init__(
        self,
        folder: Path,
        agent: str | None = None,
        task: str | None = None,
        seeds: tuple[int, ...] | None = None,
        job: str | None = None,
    ) -> None:
        """Name the agent, task, seeds and job that it must be of, if they are known."""
        self.folder = folder
        self.agent = agent
        self.task = task
        self.seeds = seeds
        self.job = job
        self.manifest_file = folder / "manifest.json"
        self.evaluations_file = folder / "evaluations.csv"
        self.training_file = folder / "training.csv"
        self.diagnostics_file = folder / "diagnostics.csv"
        self.slices_file = folder / "slices.csv"
        self.progress_file = folder / "progress.json"
        self.log_file = folder / "log.txt"
        self.lock_file = folder / ".lock"
        self.checkpoint = folder / "checkpoint"
        self.replay_file = self.checkpoint / "replay.f32"

    @property
    def begun(self) -> bool:
        """Whether the folder holds anything of a job; if it has no manifest then, it is damaged."""
        files = (self.manifest_file, self.evaluations_file, self.checkpoint)
        return any(os.path.lexists(file) for file in files)

    @property
    def anew(self) -> str:
        """The advice for a folder that is damaged."""
        return f"delete {self.folder} and run again to train this cell anew"

    def refuse_foreign(self, *, writing: bool = False) -> None:
        """Raise UserError if there is a link or anything else but plain files in plain folders."""
        above = [self.folder.parent]
        if self.seeds is not None and self.folder.name == folder_name(self.seeds):
            above.append(self.folder.parent.parent)
        for folder in above:
            refuse_foreign(folder, folder=True, remedy="delete it")
        for folder in (self.folder, self.checkpoint):
            refuse_foreign(folder, folder=True, remedy=self.anew)
        names = ("state.pt", "previous.pt", "replay.f32")
        needed = (self.manifest_file, *self.tables, *(self.checkpoint / name for name in names))
        for file in needed:
            refuse_foreign(file, writing=writing, remedy=self.anew)
        for file in (self.lock_file, self.progress_file, self.log_file):
            refuse_foreign(file, writing=writing, remedy="delete it: the cell is whole without it")

    def read_manifest(self) -> Manifest:
        """Return the cell's manifest.

        Raises UserError, with what to do, where the cell is damaged: the file is missing, or it is
        not a manifest, or that of another cell, or a link is there.
        """
        self.refuse_foreign()
        try:
            manifest = read_manifest(self.manifest_file)
            refuse_nonsense(self.manifest_file, manifest)
            for what, mine, named in (
                ("agent", self.agent, manifest.job.agent),
                ("task", self.task, manifest.job.task),
                ("seeds", self.seeds, manifest.job.seeds),
            ):
                if mine not in (None, named):
                    raise UserError(
                        f"{self.manifest_file} is of another cell: of {what} {named!r}, and "
                        f"{mine!r} is right here"
                    )
            if self.job not in (None, manifest.job.identity):
                raise UserError(f"{self.manifest_file} is of another job than was asked for")
        except LaterFormatError:
            raise
        except UserError as error:
            raise UserError(f"{error}; {self.anew}") from error
        return manifest

    def change_manifest(self, before: Manifest, after: Manifest) -> None:
        """Replace the manifest if it changes. Raises UserError while a job writes the cell."""
        if before == after:
            return
        with self.lock():
            self.write_manifest(after)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one writer. Raises UserError while another process writes it."""
        try:
            with FileLock(self.lock_file, timeout=0):
                yield
        except Timeout:
            who = process_name(self.read_progress())
            raise UserError(f"{self.folder} is still written by {who}: wait for its end") from None

    def delete(self) -> None:
        """Delete what the job has written. Raises UserError while a process writes it."""
        with self.lock():
            files = (self.manifest_file, *self.tables, self.progress_file, self.log_file)
            checkpoint = ("state.pt", "previous.pt", "replay.f32", "state.tmp")
            for file in (*files, *(self.checkpoint / name for name in checkpoint)):
                file.unlink(missing_ok=True)
        self.lock_file.unlink(missing_ok=True)
        for folder in (self.checkpoint, self.folder, *self.folder.parents[:2]):
            _remove_if_empty(folder)

    def refuse_without_replay(self, manifest: Manifest, job: Job) -> None:
        """Raise UserError if the cell has finished, is to train on and has no replay buffer."""
        finished = manifest.status == "finished"
        if finished and is_open(manifest, job) and not self.replay_file.exists():
            raise UserError(
                f"{job.agent} on {job.task} has finished its {manifest.job.protocol.steps:,} steps "
                "and its replay buffer was not kept, so it cannot train on: choose another --name "
                "(a run with --keep-replay can be given more steps later)"
            )

    def read_current(self) -> Manifest:
        """Return the manifest as it is true now, for whoever only reads.

        A cell that is running by its manifest, and has no process any more, was interrupted.
        Raises UserError as ``read_manifest`` does.
        """
        manifest = self.read_manifest()
        sign = self.read_progress()
        if manifest.status == "running" and liveness(sign) == "gone":
            manifest = self.read_manifest()  # it may have come to its end in between
        if manifest.status == "running" and liveness(sign) == "gone":
            manifest.status, manifest.reason = "interrupted", GONE
            manifest.end_stretch(sign)
            if manifest.stretches:
                manifest.step = max(manifest.step, manifest.stretches[-1].last_step)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.manifest_file, manifest.model_dump_json(indent=2) + "\n", sync=True)

    def read_progress(self) -> dict[str, Any]:
        """Return the last sign of life of the cell's job; it is empty before the first one."""
        return read_sign(self.progress_file)

    def log_tail(self, lines: int = 5) -> tuple[str, ...]:
        """Return the last lines that the job printed."""
        try:
            with open(self.log_file, "rb", opener=plain_opener) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
                return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
        except (OSError, UserError):
            return ()

    @property
    def tables(self) -> tuple[Path, ...]:
        """The paths of the tables, whether they are there or not."""
        return (
            self.evaluations_file,
            self.training_file,
            self.diagnostics_file,
            self.slices_file,
        )

    def checksums(self) -> dict[str, int]:
        """Return the CRC-32 of each table that is there, by file name."""
        return {f.name: crc32(read(f, TABLE_LIMIT)) for f in self.tables if f.exists()}


class ExperimentStore:
    """The folder of one experiment."""

    def __init__(self, root: Path, name: str) -> None:
        """Raise UserError for a name that would lead out of ``root``."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise UserError(f"experiment name {name!r}: a plain name is wanted, without '/'")
        # Absolute, before a task or an agent can change the working directory.
        self.name = name
        self.folder = root.absolute() / name
        self.file = self.folder / "experiment.json"
        self.holder_file = self.folder / ".holder"

    def cell(self, agent: str, task: str, seeds: tuple[int, ...], job: str | None = None) -> Cell:
        """Return the folder of a job; characters that no path may have are escaped in its name.

        With ``job``, the identity of a job, it holds that one and no other.
        """
        folder = self.folder / as_folder(agent) / as_folder(task)
        # In format 1 the first group's files stand in the folder of the task.
        if not (Cell(folder).begun and seeds in self.groups[:1]):
            folder /= folder_name(seeds)
        return Cell(folder, agent, task, seeds, job)

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

    def is_open(self, job: Job) -> bool:
        """Return whether the job is still to run: neither finished nor damaged."""
        cell = self.cell(job.agent, job.task, job.seeds)
        manifest = _manifest_or_none(cell) if cell.begun else None
        return not cell.begun or (manifest is not None and is_open(manifest, job))

    def existing_cells(self, agent: str, task: str) -> list[Cell]:
        """Return the folders of a cell's jobs. Raises UserError if there is no such cell."""
        asked = self._read_with(agent, task)
        return [self.cell(agent, task, tuple(group)) for group in asked["groups"]]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the experiment for one writer.

        Raises UserError that names the process that has it, or says why it cannot be written.
        """
        lock_file = self.folder / ".lock"
        refuse_foreign(lock_file, writing=True, remedy="delete it")
        lock = FileLock(lock_file, timeout=0)
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

    def holder(self) -> str | None:
        """Say who is running the experiment now; None if nobody is.

        The lock is not touched: whoever asks must not be in the way of one who wants to run.
        """
        sign = read_sign(self.holder_file)
        return process_name(sign) if liveness(sign) != "gone" else None

    def cells(self) -> Iterator[Cell]:
        """Yield the cells that are on disk, in the order in which they were asked for."""
        asked = self.read()
        for task in asked["tasks"]:
            for agent in asked["agents"]:
                for group in asked["groups"]:
                    cell = self.cell(agent, task, tuple(group))
                    if cell.begun:
                        yield cell

    def read(self) -> dict[str, Any]:
        """Return what was asked for. Raises UserError if there is no such experiment."""
        if not os.path.lexists(self.file):
            known = experiment_names(self.folder.parent)
            hint = did_you_mean(self.name, known) if known else "none has been run yet"
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
        """Return the groups of seeds that the cells have, where ``experiment.json`` has none."""
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
        elif len(asked["agents"]) * len(asked["tasks"]) > MOST_CELLS:
            fault = f"more than {MOST_CELLS:,} cells are none that were run"
        elif asked.get("name", self.name) != self.name:
            fault = (
                f"it is of the experiment {asked['name']!r}, which must lie in a folder so named"
            )
        elif fault := _groups_fault(asked["groups"]):
            pass
        elif not isinstance(asked.get("command", ""), str):
            fault = "command must be a text"
        elif not isinstance(asked.get("compiled", False), bool):
            fault = "compiled must be true or false"
        if fault:
            raise UserError(f"{self.file} is damaged: {fault}")

    def prepare(
        self, experiment: Experiment, command: str, *, keep_replay: bool = False
    ) -> list[Cell]:
        """Lay out the cells of ``experiment``, or find them as an earlier run left them.

        Agents, tasks and steps may be added to an experiment; apart from its steps, a cell that is
        there must be the same job. Raises UserError with the difference if it is not, or if a
        finished cell without its replay buffer is to train on; nothing is written then. A cell
        that is damaged is left as it is, for its own ``read_manifest`` to tell of.
        """
        asked = self.read() if os.path.lexists(self.file) else {"agents": [], "tasks": []}
        jobs = experiment.jobs
        cells = [self.cell(job.agent, job.task, job.seeds) for job in jobs]
        found = [_manifest_or_none(cell) if cell.begun else None for cell in cells]
        for cell, job, manifest in zip(cells, jobs, found, strict=True):
            if manifest:
                refuse_difference(experiment.name, manifest.job, job)
                cell.refuse_without_replay(manifest, job)
        asked |= {
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
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(asked, indent=2) + "\n")
            for cell, job, manifest in zip(cells, jobs, found, strict=True):
                if not cell.begun:
                    cell.refuse_foreign(writing=True)
                    cell.write_manifest(Manifest(job=job, keep_replay=keep_replay))
                elif manifest and is_open(manifest, job):
                    cell.change_manifest(manifest, manifest.for_job(job, keep_replay=keep_replay))
        return [self.cell(job.agent, job.task, job.seeds, job.identity) for job in jobs]

    def remove(self, agent: str | None = None, task: str | None = None) -> list[Path]:
        """Delete the cells of ``agent``, of ``task`` or of both; if neither is given, everything.

        Returns the folders that are gone. Files that no run has written stay, and so do the
        folders that they are in. Raises UserError if there is no such cell, a link or something
        else that no run makes is in the way, or a process still writes one of them.
        """
        asked = self._read_with(agent, task)
        with self.lock():
            cells = [
                cell
                for cell in self.cells()
                if agent in (None, cell.agent) and task in (None, cell.task)
            ]
            for cell in cells:
                cell.refuse_foreign(writing=True)
                with cell.lock():
                    pass
            for cell in cells:
                cell.delete()
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
            (self.folder / ".lock").unlink(missing_ok=True)
            _remove_if_empty(self.folder)
        return [cell.folder for cell in cells]


def experiment_names(root: Path) -> list[str]:
    """The names of the experiments in a folder of results."""
    return sorted(file.parent.name for file in root.glob("*/experiment.json"))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


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
    if not 0 < len(seeds) <= MOST_SEEDS or len(groups) > MOST_SEEDS:
        return f"it has {len(seeds)} seeds"
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        return "seeds must be whole numbers from 0 on"
    if len(set(seeds)) < len(seeds):
        return "a seed is in two groups"
    return None


def as_folder(name: str) -> str:
    """A label or a task's name as the name of one folder, which no other one has."""
    folder = quote(name, safe=" []=,.+-_:")
    return folder if folder.strip(".") else folder.replace(".", "%2E")


def read_sign(file: Path) -> dict[str, Any]:
    """Return the sign of life in a file; it is empty where there is none."""
    try:
        sign = read_json(file, MIB)
    except UserError:
        return {}
    return sign if isinstance(sign, dict) else {}


def _manifest_or_none(cell: Cell) -> Manifest | None:
    """Return a cell's manifest; None if it is damaged. Raises UserError for a later format."""
    try:
        return cell.read_manifest()
    except LaterFormatError:
        raise
    except UserError:
        return None
