"""A folder of exported files that is brought up to date, file by file.

A small file in it, the marker, says what stands there and what it was made from. What it does not
list is somebody else's and stays as it is.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from qsm_bench.errors import UserError, naming
from qsm_bench.files import MIB, plain_opener, read, read_json, refuse_foreign, write_atomically
from qsm_bench.job_folder import TABLE_LIMIT

MARKER, LOCK = ".qsm_bench-export.json", ".qsm_bench-export.lock"
MARKER_LIMIT = 256 * MIB
LOCK_SECONDS = 60.0
"""How long to wait for another export into the same folder to end."""


@dataclass(frozen=True)
class Output:
    """One file of an export."""

    path: str
    """Within the folder, with slashes."""
    source: str
    """A digest of everything that ``content`` is made from: it is made where that has changed."""
    content: Callable[[], bytes]
    followed: bool = False
    """Readers follow the file while it grows. Content that begins with what stands there is
    appended to. Any other becomes a file of the next number, at which readers look once they have
    read all of the one before; that one is emptied, and not deleted, as they would lose their way.
    """


class Entry(BaseModel):
    """What the marker says of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    """The path of its ``Output``."""
    source: str = ""
    checksum: str = ""
    """SHA-256 of the file; empty where it was to be written, and perhaps was not."""


class Marker(BaseModel):
    """What stands in a folder of exported files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = "Written by qsm_bench: these files are replaced when it exports again."
    experiment: str
    to: str
    files: dict[str, Entry] = {}
    """The exported files, by path within the folder."""


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of some texts; where one ends counts."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(f"{len(data)}:".encode() + data)
    return sha.hexdigest()


def update(folder: Path, experiment: str, to: str, outputs: Iterable[Output]) -> None:
    """Make ``folder`` hold these outputs, and no other file that an export wrote there.

    A file that is as it should be is left alone. Whatever cuts this off, the next call mends it.
    Raises UserError if the folder is not an earlier export of this experiment in this format, if
    a file of somebody else is in the way, or if nothing can be written there.
    """
    before = read_marker(folder, experiment, to)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign(folder / LOCK, writing=True, remedy="delete it")
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            before = read_marker(folder, experiment, to)
            _update(folder, before, list(outputs))
    except Timeout:
        raise UserError(f"{folder} is being written by another export: wait for it") from None
    except OSError as error:
        place = error.filename or folder
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


def read_marker(folder: Path, experiment: str, to: str) -> Marker:
    """What an earlier export wrote into ``folder``. Raises UserError if it holds something else."""
    refuse_foreign(folder, folder=True, remedy="choose another --out")
    file = folder / MARKER
    if not os.path.lexists(file):
        with suppress(FileNotFoundError), naming(folder):
            if {entry.name for entry in folder.iterdir()} - {LOCK}:
                raise UserError(
                    f"{folder} holds something that no export made: move it away, or choose "
                    "another --out"
                )
        return Marker(experiment=experiment, to=to)
    try:
        marker = Marker.model_validate(read_json(file, MARKER_LIMIT))
    except ValidationError as error:
        raise UserError(f"{file} is damaged: move {folder} away") from error
    for path in marker.files:
        if not _is_inside(path):
            raise UserError(f"{file} is damaged: it lists {path!r}; move {folder} away")
    if (marker.experiment, marker.to) != (experiment, to):
        raise UserError(
            f"{folder} holds the export of {marker.experiment} to {marker.to}: choose another --out"
        )
    return marker


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    parts = path.split("/")
    return not pure.is_absolute() and not {"", ".", ".."} & {*parts} and parts[0] != MARKER


def _update(folder: Path, before: Marker, outputs: list[Output]) -> None:
    there: dict[str, list[str]] = {}
    for path in sorted(before.files):
        there.setdefault(before.files[path].output, []).append(path)
    changed = [o for o in outputs if not _stands(folder, before, there.get(o.path), o)]
    files = {
        path: before.files[path]
        for output in outputs
        if output not in changed
        for path in there[output.path]
    }
    targets = {o.path: _targets(o, there.get(o.path, [])) for o in changed}
    for path in (path for paths in targets.values() for path in paths):
        _refuse_in_the_way(folder, path, before)
    if not changed and len(files) == len(before.files):
        return
    # All that may be written is ours from here on, should this be cut off.
    planned = {path: Entry(output=o) for o, paths in targets.items() for path in paths}
    _write_marker(folder, before, {**before.files, **planned})
    for output in changed:
        content = output.content()
        path = _write(folder, targets[output.path], content)
        checksum = hashlib.sha256(content).hexdigest()
        files[path] = Entry(output=output.path, source=output.source, checksum=checksum)
        for earlier in there.get(output.path, []):
            if earlier != path and _empty(folder / earlier):
                files[earlier] = Entry(output=output.path)
    for path in {**before.files, **planned}.keys() - files.keys():
        _remove(folder, path)
    _write_marker(folder, before, files)


def _stands(folder: Path, before: Marker, paths: list[str] | None, output: Output) -> bool:
    """Whether an output's file, the last of ``paths``, is what the output would write."""
    if not paths or before.files[paths[-1]].source != output.source:
        return False
    file = folder / paths[-1]
    known = before.files[paths[-1]].checksum
    return file.exists() and hashlib.sha256(read(file, TABLE_LIMIT)).hexdigest() == known


def _targets(output: Output, there: list[str]) -> list[str]:
    """The paths that an output may be written to: the one that it has, and another."""
    if not output.followed:
        return [output.path]
    if not there:
        return [f"{output.path}.{1:06d}"]
    number = there[-1].removeprefix(f"{output.path}.")
    following = int(number) + 1 if number.isdecimal() else 1
    return [there[-1], f"{output.path}.{following:06d}"]


def _refuse_in_the_way(folder: Path, path: str, before: Marker) -> None:
    """Raise UserError if what stands at a path, or on the way to it, is not ours to replace."""
    parents = [folder.joinpath(*path.split("/")[:k]) for k in range(1, path.count("/") + 1)]
    for parent in parents:
        refuse_foreign(parent, folder=True, remedy="move it away")
    file = folder / path
    refuse_foreign(file, remedy="move it away")
    if path not in before.files and os.path.lexists(file):
        raise UserError(f"{file} is in the export's way, which did not make it: move it away")


def _write(folder: Path, paths: list[str], content: bytes) -> str:
    """Write content to one of ``paths``, which are ours; return which."""
    first, *other = paths
    file = folder / first
    if other and file.exists():
        old = read(file, TABLE_LIMIT)
        if not content.startswith(old):
            return _write(folder, other, content)
        _append(file, content[len(old) :])
        return first
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)
    return first


def _append(file: Path, data: bytes) -> None:
    """Add data to the end of a file. One that cannot be written stays as it was."""
    with naming(file), open(file, "ab", buffering=0, opener=plain_opener) as out:
        size = out.tell()
        try:
            written = 0
            while written < len(data):
                written += out.write(data[written:])
        except OSError:
            with suppress(OSError):
                out.truncate(size)
            raise


def _empty(file: Path) -> bool:
    """Take all out of a file that is there; return whether it is."""
    if not file.exists():
        return False
    with naming(file), open(file, "wb", opener=plain_opener):
        return True


def _remove(folder: Path, path: str) -> None:
    """Delete a file of ours, and the folders that are empty without it."""
    file = folder / path
    for parent in reversed(list(file.parents)[: path.count("/")]):
        refuse_foreign(parent, folder=True, remedy="move it away")
    file.unlink(missing_ok=True)
    for parent in list(file.parents)[: path.count("/")]:
        with suppress(OSError):  # something else is in it
            parent.rmdir()


def _write_marker(folder: Path, marker: Marker, files: dict[str, Entry]) -> None:
    text = json.dumps(marker.model_copy(update={"files": files}).model_dump(), indent=1)
    write_atomically(folder / MARKER, text + "\n")
