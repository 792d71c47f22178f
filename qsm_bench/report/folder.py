"""Replace the folder of a report as a whole, and keep the files in it that no report wrote."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsm_bench.errors import UserError
from qsm_bench.files import MIB, read, refuse_foreign

MARKER = ".qsm_bench-report"
"""A file in every report that lists the report's files. All other files belong to the user."""
HEADING = "Written by qsm_bench. These files are replaced when the report is made again:"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write a report into. On exit, it replaces ``folder``.

    A reader of ``folder`` sees either the whole old report or the whole new one. If an error is
    raised, the old report stays. The user's own files in ``folder`` are kept.

    Raises UserError if ``folder`` is not empty and no report made it, if one of the user's files
    has the name of a file of the new report, or if the folder cannot be written.
    """
    refuse_foreign(folder, folder=True, remedy="delete it")
    before = _files(folder)
    if before and Path(MARKER) not in before:
        raise UserError(
            f"{folder} contains files that no report made: move them away, or choose another "
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
    """All files, links and empty folders within a folder, as relative paths."""
    found: set[Path] = set()
    for name, folders, files in os.walk(folder):
        inside = Path(name).relative_to(folder)
        links = [entry for entry in folders if Path(name, entry).is_symlink()]
        found |= {inside / entry for entry in (*files, *links)}
        if not (folders or files) and inside != Path():
            found.add(inside)
    return found


def _made(folder: Path) -> set[Path]:
    """The files that the report in ``folder`` lists as its own."""
    lines = read(folder / MARKER, MIB).decode(errors="replace").splitlines()
    if lines[:1] != [HEADING]:
        raise UserError(f"{folder / MARKER} is not the file of a report: move {folder} away")
    return {Path(MARKER), *map(Path, lines[1:])}


def _keep(names: set[Path], old: Path, new: Path) -> None:
    """Link or copy files of ``old`` into ``new``, so that both folders have them."""
    for name in sorted(names):
        target = new / name
        if os.path.lexists(target) or any((new / p).is_file() for p in name.parents if p.name):
            raise UserError(f"{old / name} has the name of a file of the report: move it away")
        if (old / name).is_dir() and not (old / name).is_symlink():
            target.mkdir(parents=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old / name, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(old / name, target, follow_symlinks=False)
