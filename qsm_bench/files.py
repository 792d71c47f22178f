"""Files that readers see whole, in folders that a stranger may have filled.

A results folder holds plain files in plain folders. A link in it, or a pipe, a device, a folder
in a file's place, is refused: nothing outside is read or written, and nothing waits.
"""

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from qsm_bench.errors import UserError, naming

MIB = 2**20


def refuse_foreign(
    file: Path, *, folder: bool = False, writing: bool = False, remedy: str = ""
) -> None:
    """Raise UserError if something else than a plain file, or a ``folder``, stands at ``file``.

    To be written, a file must have no second name (hard link) by which it belongs elsewhere, too.
    What is not there is not refused. ``remedy`` says what to do.
    """
    try:
        status = file.lstat()
    except OSError:
        return  # whoever opens it will say why it cannot be
    fault = _fault(status, folder=folder, writing=writing)
    if fault:
        raise UserError("; ".join(filter(None, (_refusal(file, fault), remedy))))


def plain_opener(file: str, flags: int) -> int:
    """Open a plain file, and follow no link: an opener for ``open``.

    Raises UserError for anything else, OSError as ``os.open`` does.
    """
    writing = bool(flags & (os.O_WRONLY | os.O_RDWR))
    refuse_foreign(Path(file), writing=writing)
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    number = os.open(file, flags & ~os.O_TRUNC | safe, 0o666)
    # Again of what is open now: it may have been exchanged since.
    fault = _fault(os.fstat(number), folder=False, writing=writing)
    if fault:
        os.close(number)
        raise UserError(_refusal(file, fault))
    if flags & os.O_TRUNC:
        os.ftruncate(number, 0)
    return number


def new_opener(file: str, flags: int) -> int:
    """Make a new file in the place of whatever has that name: an opener for ``open``."""
    Path(file).unlink(missing_ok=True)
    return os.open(file, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def read(file: Path, limit: int) -> bytes:
    """Return the content of a plain file.

    Raises UserError if it cannot be read, or has more than ``limit`` bytes.
    """
    try:
        with open(file, "rb", opener=plain_opener) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > limit:
                raise UserError(
                    f"{file} is damaged: it has {size:,} bytes, and {limit:,} are more than enough"
                )
            return opened.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{file} cannot be read: {reason}") from error


def read_json(file: Path, limit: int = 16 * MIB) -> Any:
    """Return the JSON in a plain file.

    Raises UserError if there is none, or if two programs could read it differently: keys that
    stand twice and half characters (surrogates) are refused.
    """
    return parse_json(file, read(file, limit))


def parse_json(file: Path, data: bytes) -> Any:
    """Return the JSON that was read from a file. Raises UserError as ``read_json`` does."""
    try:
        content = json.loads(data.decode(), object_pairs_hook=_object)
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise UserError(f"{file} is damaged: it is nested too deep") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged: it is not JSON ({error})") from error
    return content


def write_atomically(file: Path, text: str | bytes, *, sync: bool = False) -> None:
    """Replace ``file`` by ``text``: a reader sees the old one or the new one, whole.

    With ``sync``, so does one who comes after the machine has lost its power. Raises UserError
    where something else than a plain file has that name.
    """
    refuse_foreign(file)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with naming(file), open(temporary, "wb", opener=new_opener) as out:
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


def _refusal(file: object, fault: str) -> str:
    return f"{file} is {fault}: results are plain files in plain folders"


def _fault(status: os.stat_result, *, folder: bool, writing: bool) -> str | None:
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "a link"
    if folder:
        return None if stat.S_ISDIR(mode) else "no folder"
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "a pipe, socket or device"
    if writing and status.st_nlink > 1:
        return "a hard link, which another folder may hold, too"
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice")
    return content
