"""A report's folder is replaced whole or not at all, and no file in it that is somebody else's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsm_bench.errors import UserError
from qsm_bench.files import MIB, read, refuse_foreign

MARKER = ".qsm_bench-report"
"""Stands in every report, and lists its files; what it does not list is somebody else's."""
HEADING = "Written by qsm_bench. These files are replaced when the report is made again:"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Enter with an empty folder to write a report into; it takes the place of ``folder`` after.

    A reader of ``folder`` sees the old report or the new one, whole; if an error is raised, the old
    one. Files in it that no report made are kept. Raises UserError if it holds something and no
    report made it, if a file that is to be kept has the name of one of the new report's, or if
    nothing can be written there.
    """
    refuse_foreign(folder, folder=True, remedy="delete it")
    before = _files(folder)
    if before and Path(MARKER) not in before:
        raise UserError(
            f"{folder} holds something that no report made: move it away, or choose another "
            "--reports"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            yield fresh
            own = sorted(map(str, _files(fresh)))
            marker = "\n".join([HEADING, *own, ""])
            (fresh / MARKER).write_text(marker, encoding="utf-8")
            _keep(before - _made(folder) if before else set(), folder, fresh)
            if folder.exists():
                folder.replace(Path(temporary) / "old")
            fresh.replace(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error


def _files(folder: Path) -> set[Path]:
    """All that is in a folder and is no folder itself, unless an empty one; links as they are."""
    found: set[Path] = set()
    for name, folders, files in os.walk(folder):
        inside = Path(name).relative_to(folder)
        links = [entry for entry in folders if Path(name, entry).is_symlink()]
        found |= {inside / entry for entry in (*files, *links)}
        if not (folders or files) and inside != Path():
            found.add(inside)
    return found


def _made(folder: Path) -> set[Path]:
    """The files that the report in ``folder`` consists of."""
    lines = read(folder / MARKER, MIB).decode(errors="replace").splitlines()
    if lines[:1] != [HEADING]:
        raise UserError(f"{folder / MARKER} is not a report's: move {folder} away")
    return {Path(MARKER), *map(Path, lines[1:])}


def _keep(names: set[Path], old: Path, new: Path) -> None:
    """Give files of ``old`` a place in ``new``, too, so that neither folder ever lacks them."""
    for name in sorted(names):
        target = new / name
        if os.path.lexists(target) or any((new / p).is_file() for p in name.parents if p.name):
            raise UserError(f"{old / name} is in the report's way, which did not make it: move it")
        if (old / name).is_dir() and not (old / name).is_symlink():
            target.mkdir(parents=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, target, follow_symlinks=False)
        except OSError:  # a file system without second names
            shutil.copy2(old / name, target, follow_symlinks=False)
