"""A record: runs that somebody has published, for others to compare theirs with.

<record>/record.json                          what it is, and the checksum of every file
<record>/experiment.json
<record>/<agent>/<task>/<seeds>/manifest.json, evaluations.csv, training.csv, ...

``export NAME --to record`` writes one. It may be passed on as a folder or as a zip of one. It is
data: nothing in it is executed, no link in it is followed, and a file that is not what was
published makes the whole record damaged.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, Protocol
from zipfile import ZipFile

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qsm_bench import protocol
from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.comparable import protocol_hash
from qsm_bench.errors import UserError, did_you_mean, first_fault
from qsm_bench.files import MIB, parse_json, read, refuse_foreign
from qsm_bench.job_folder import MANIFEST_FILE, TABLE_FILES
from qsm_bench.manifest import Manifest
from qsm_bench.record_jobs import fault_of_jobs, span_of_jobs
from qsm_bench.results import Results, load_results
from qsm_bench.shipped import shipped
from qsm_bench.store import EXPERIMENT_FILE, RECORD_FILE, ExperimentStore

FORMAT: Final = 1
ABOUT_LIMIT, FILE_LIMIT, RECORD_LIMIT = 16 * MIB, 256 * MIB, 1024 * MIB
"""The most bytes of record.json, of another file of a record, and of all of them."""
TO_PUBLISH = "`export NAME --to record` makes a record of an experiment"
JOB_FILES = (MANIFEST_FILE, *TABLE_FILES)
UNKNOWN = "unknown"
"""The commit of a run that was not trained from a checkout."""
DIRTY = "-dirty"
"""What a commit ends with if the checkout had changes that were not committed."""
LONGEST_WHO = 200
"""Characters of the name of who publishes a record."""
ENDED = ("finished", "failed")
"""How the jobs of a record stand: a run that failed stays in it as failed."""


class Record(BaseModel):
    """What ``record.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    name: str
    """The name of the experiment that it was."""
    who: Annotated[str, Field(min_length=1, max_length=LONGEST_WHO)]
    """Who published it."""
    began: str
    ended: str
    """When its first run began and its last one ended, in ISO 8601."""
    commits: tuple[str, ...]
    """The commits of this program that trained it."""
    agents: dict[str, tuple[int, ...]]
    """Its agents, each with its seeds, which are the same on every task."""
    tasks: tuple[str, ...]
    protocol: protocol.Protocol
    protocol_hash: str
    """That of ``comparable``: runs under a protocol of the same hash may be compared."""
    files: dict[str, str]
    """SHA-256 of every other file, by its path within the record."""

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        seeds = sorted({len(seeds) for seeds in self.agents.values()})
        one_task, one_seed = len(self.tasks) == 1, seeds == [1]
        when = f", {self.began[:10]} to {self.ended[:10]}" if self.began and self.ended else ""
        commits = (commit[:7] + DIRTY * commit.endswith(DIRTY) for commit in self.commits)
        return (
            f"{', '.join(self.agents)} on {len(self.tasks)} task{'s' * (not one_task)}, "
            f"{' or '.join(map(str, seeds))} seed{'s' * (not one_seed)}, {self.protocol.steps:,} "
            f"steps; by {self.who}{when}, commit {', '.join(commits)}, protocol "
            f"{self.protocol_hash[:12]}"
        )


@dataclass(frozen=True)
class LoadedRecord:
    """A record whose files are what was published."""

    place: Path
    """The folder or the zip that it was read from."""
    record: Record
    results: Results
    """Its agents' runs."""
    asked: str
    """What it was asked for by: a name, or a path as it was given."""


def find_record(name: str, results: Path) -> Path:
    """The place of a record: a path to a folder or a zip, or a name.

    A name is looked for in the folder ``results`` and among what comes with the program. Raises
    UserError if there is none.
    """
    path = Path(name)
    if not name.strip():
        raise UserError(f"--beside {name!r}: name a record, or give the path of a folder or a zip")
    if "/" in name or os.sep in name or name in (".", "..") or path.suffix == ".zip":
        return path.absolute()
    known = known_records(results)
    if name not in known:
        hint = did_you_mean(name, known) if known else "no record has a name here"
        if os.path.lexists(path):
            hint = f"something of that name is here: give it as ./{name}"
        elif os.path.lexists(results / name / EXPERIMENT_FILE):
            hint = f"there is an experiment of this name: {TO_PUBLISH}"
        raise UserError(
            f"no record {name!r} (one elsewhere is named by a path: ./{name}, {name}.zip): {hint}"
        )
    return known[name]


def known_records(results: Path) -> dict[str, Path]:
    """The records that are here: the program's own, and those in a folder of results.

    Each has the name of its folder. One that has the name of the program's own has its path.
    """
    own = shipped("record")
    known = {own.name: own} if os.path.lexists(own / RECORD_FILE) else {}
    for place in sorted(results.glob("*")):
        if os.path.lexists(place / RECORD_FILE) and place.resolve() != own.resolve():
            known[str(place) if place.name in known else place.name] = place
    return known


def read_record(place: Path) -> Record:
    """Read what a record says of itself. Raises UserError if it is none, or damaged."""
    with _open(place) as source:
        return _parse(place, source.read(RECORD_FILE, ABOUT_LIMIT))


@refusing_wrong_types
def load_record(place: str | Path, asked: str | None = None) -> LoadedRecord:
    """Read a record, from a folder or a zip; ``asked`` is what it goes by, if not by its place.

    Raises UserError if it is none, or if any of its files is not what was published.
    """
    asked, place = asked or str(place), Path(place).absolute()
    with (
        tempfile.TemporaryDirectory(prefix="qsm_bench-record-") as temporary,
        _open(place) as source,
    ):
        record = _parse(place, source.read(RECORD_FILE, ABOUT_LIMIT))
        folder = Path(temporary) / record.name
        try:
            _copy_checked(source, record, folder)
            results = load_results(temporary, record.name)
            if results.damaged:
                raise UserError(results.damaged[0].fault)
            jobs = ExperimentStore(Path(temporary), record.name).job_folders()
            _refuse_contradiction(record, results, [job.read_current() for job in jobs])
        except (UserError, OSError) as error:
            # What is wrong with the copy is wrong with the record; what to do about it is not.
            fault = str(error.strerror if isinstance(error, OSError) else error)
            fault = fault.replace(f"{folder}/", "").partition("; ")[0]
            fault = fault.removeprefix(f"{place} is damaged: ")
            raise UserError(f"record {place} is damaged: {fault}") from error
    return LoadedRecord(place, record, results, asked)


class Source(Protocol):
    """Where the files of a record are read from."""

    def __enter__(self) -> "Source": ...
    def __exit__(self, *error: object) -> None: ...
    def read(self, path: str, limit: int) -> bytes:
        """Return a file's content; raises UserError if it cannot be read or is too long."""


class FolderSource:
    """The files of a record in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "FolderSource":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, path: str, limit: int) -> bytes:
        file = self.folder / path
        for parent in list(file.parents)[: path.count("/") + 1]:
            refuse_foreign(parent, folder=True)
        return read(file, limit)


class ZipSource:
    """The files of a record in a zip, in whatever folder of it."""

    def __init__(self, file: Path) -> None:
        """Raise UserError if it is no zip of a record."""
        refuse_foreign(file)
        self.file = file
        try:
            self.zip = ZipFile(file)
        except Exception as error:  # of a zip that somebody has made, a library raises anything
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"record {file} cannot be read: {reason}") from error
        found = [name for name in self.zip.namelist() if PurePosixPath(name).name == RECORD_FILE]
        if len(found) != 1:
            raise UserError(
                f"record {file} is no zip of one record: {RECORD_FILE} is in it {len(found)} times"
            )
        self.top = found[0].removesuffix(RECORD_FILE)

    def __enter__(self) -> "ZipSource":
        return self

    def __exit__(self, *error: object) -> None:
        self.zip.close()

    def read(self, path: str, limit: int) -> bytes:
        try:
            with self.zip.open(self.top + path) as member:
                content = member.read(limit + 1)
        except KeyError as error:
            raise UserError(f"{self.file} is damaged: it has no {path}") from error
        except Exception as error:  # of a zip that somebody has made, a library raises anything
            raise UserError(f"{self.file} is damaged: {path} cannot be read: {error}") from error
        if len(content) > limit:
            raise UserError(f"{self.file} is damaged: {path} has more than {limit:,} bytes")
        return content


def _open(place: Path) -> Source:
    if not os.path.lexists(place):
        raise UserError(f"no record at {place}: a folder or a zip with a {RECORD_FILE} is wanted")
    if place.is_dir() and not os.path.lexists(place / RECORD_FILE):
        more = ""
        if os.path.lexists(place / EXPERIMENT_FILE):
            more = f": {TO_PUBLISH}"
        raise UserError(f"{place} is no record, as it has no {RECORD_FILE}{more}")
    return FolderSource(place) if place.is_dir() else ZipSource(place)


def _parse(place: Path, text: bytes) -> Record:
    """Read ``record.json``. Raises UserError if it is damaged or of a later version."""
    content = parse_json(place / RECORD_FILE, text)
    if not isinstance(content, dict):
        raise UserError(f"{place / RECORD_FILE} is damaged: it is no JSON object")
    written = content.get("format")
    if type(written) is not int:
        raise UserError(f"{place / RECORD_FILE} is damaged: format is {written!r}")
    if written > FORMAT:
        raise UserError(
            f"record {place} is of format {written}; this version of qsm_bench reads formats up to "
            f"{FORMAT}: upgrade qsm_bench"
        )
    try:
        record = Record.model_validate(content)
        own_hash = protocol_hash(record.protocol)
    except ValidationError as error:
        raise UserError(f"{place / RECORD_FILE} is damaged: {first_fault(error)}") from error
    except UserError as error:
        raise UserError(f"{place / RECORD_FILE} is damaged: protocol: {error}") from error
    if record.protocol_hash != own_hash:
        raise UserError(f"{place / RECORD_FILE} is damaged: its protocol's hash is another")
    strange = [path for path in record.files if not _is_of_a_record(path)]
    if strange:
        raise UserError(f"{place / RECORD_FILE} is damaged: no record has a file {strange[0]!r}")
    plain = record.name.isprintable() and not record.name.startswith(".")
    if not plain or not record.name or Path(record.name).name != record.name:
        raise UserError(f"{place / RECORD_FILE} is damaged: {record.name!r} is no name")
    if EXPERIMENT_FILE not in record.files:
        raise UserError(f"{place / RECORD_FILE} is damaged: it lists no {EXPERIMENT_FILE}")
    if not record.agents or not record.tasks:
        raise UserError(f"{place / RECORD_FILE} is damaged: it has no agent or no task")
    if len({*record.tasks}) < len(record.tasks):
        raise UserError(f"{place / RECORD_FILE} is damaged: it has a task twice")
    return record


def _is_of_a_record(path: str) -> bool:
    *folders, name = path.split("/")
    if not folders:
        return name == EXPERIMENT_FILE
    plain = not {"", ".", ".."} & {*folders} and "\\" not in path and "\0" not in path
    return plain and 2 <= len(folders) <= 3 and name in JOB_FILES


def _copy_checked(source: Source, record: Record, folder: Path) -> None:
    """Copy a record's files into a new folder. Raises UserError if one is not as published."""
    left = RECORD_LIMIT
    for path, known in record.files.items():
        content = source.read(path, min(FILE_LIMIT, left))
        left -= len(content)
        if hashlib.sha256(content).hexdigest() != known:
            raise UserError(f"{path} is not what was published")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _refuse_contradiction(record: Record, results: Results, jobs: Sequence[Manifest]) -> None:
    """Raise UserError if the runs are not those that ``record.json`` tells of."""
    found: dict[tuple[str, str], list[int]] = {}
    for manifest in jobs:
        found.setdefault((manifest.job.agent, manifest.job.task), []).extend(manifest.job.seeds)
    wanted = {(agent, task) for agent in record.agents for task in record.tasks}
    for agent, task in sorted(wanted ^ found.keys()):
        raise UserError(f"{agent} on {task} is in one of {RECORD_FILE} and the files alone")
    asked = results.experiment
    if (set(asked["agents"]), set(asked["tasks"])) != (set(record.agents), set(record.tasks)):
        raise UserError(f"{EXPERIMENT_FILE} has other agents or tasks than {RECORD_FILE} says")
    for (agent, task), seeds in found.items():
        if sorted(seeds) != sorted(record.agents[agent]):
            raise UserError(f"{agent} on {task} has other seeds than {RECORD_FILE} says")
    for manifest in jobs:
        job = manifest.job
        where = f"{job.agent} on {job.task}"
        if protocol_hash(job.protocol) != record.protocol_hash:
            raise UserError(f"{where} has another protocol than {RECORD_FILE} says")
        if job.protocol.steps != record.protocol.steps:
            raise UserError(f"{where} has other steps than {RECORD_FILE} says")
        if manifest.status not in ENDED:
            raise UserError(f"{where} has not ended")
    if fault := fault_of_jobs(jobs, results.evaluations):
        raise UserError(fault)
    if {s.commit or UNKNOWN for manifest in jobs for s in manifest.stretches} != {*record.commits}:
        raise UserError(f"its runs are of other commits than {RECORD_FILE} says")
    if span_of_jobs(jobs) != (record.began, record.ended):
        raise UserError(f"its runs began or ended at other times than {RECORD_FILE} says")
