"""Files written so that a reader sees them whole."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from qsm_bench.errors import naming


def write_atomically(file: Path, text: str | bytes, *, sync: bool = False) -> None:
    """Replace ``file`` by ``text``: a reader sees the old one or the new one, whole.

    With ``sync``, so does one who comes after the machine has lost its power.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with naming(file), temporary.open("wb") as out:
            out.write(text.encode() if isinstance(text, str) else text)
            if sync:
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Make ``folder`` and write to it. Raises an OSError that names it if that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder), tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"some text")
