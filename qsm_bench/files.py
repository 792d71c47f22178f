"""Files written so that a reader sees them whole."""

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(file: Path, text: str | bytes, *, sync: bool = False) -> None:
    """Replace ``file`` by ``text``: a reader sees the old one or the new one, whole.

    With ``sync``, so does one who comes after the machine has lost its power.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(text.encode() if isinstance(text, str) else text)
            if sync:
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
