"""Whether the nodes of a cluster see a folder: a file is written here, and read there."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsm_bench.errors import UserError


@contextmanager
def token_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Have a file of random text in the folder; yield its path and the text.

    A folder of the same name on the other machine does not have it. Raises UserError if the folder
    cannot be written.
    """
    file, text = folder / f".seen-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        file.write_text(text)
        yield file, text
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        file.unlink(missing_ok=True)
