"""A report's folder is replaced whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsm_bench.errors import UserError


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Enter with an empty folder to write a report into; it takes the place of ``folder`` after.

    A reader of ``folder`` sees the old report or the new one, whole; if an error is raised, the old
    one. Raises UserError if ``folder`` holds something that is no report.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "index.html").exists():
        raise UserError(f"{folder} holds something that is not a report: move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.replace(Path(temporary) / "old")
        fresh.replace(folder)
