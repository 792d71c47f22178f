"""How a command ends: in one line for what its user can mend, in a traceback for a bug of ours."""

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from pydantic import ValidationError

from qsm_bench.errors import one_line, user_errors

BUG, BAD_INPUT, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141
"""Exit statuses; the last two are a shell's own for Ctrl-C and for a pipe that was closed."""

OUTPUT = "standard output"


@contextmanager
def ending() -> Iterator[None]:
    """Run a command within: whatever it raises ends the process as its user should see it."""
    _prepare_streams()
    try:
        yield
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        raise SystemExit(_tell(error)) from None


class _Output(io.FileIO):
    """Standard output, whose errors name it: a file's own name none."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, OUTPUT) from None


def silence_output() -> None:
    """Let standard output lead nowhere from now on: it cannot be written, and that was said."""
    with suppress(OSError, ValueError):  # a stream that is no file has nothing to be silenced
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _prepare_streams() -> None:
    """Make every text printable, and keep closed streams from becoming files of the run.

    A stream that is closed leaves its number to the next file that is opened, and whatever a
    library below Python prints would then be written into that.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115, PTH123
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def _tell(error: Exception) -> int:
    """Say what went wrong on standard error; return the exit status."""
    if isinstance(error, OSError) and error.filename == OUTPUT:
        silence_output()
        if isinstance(error, BrokenPipeError):
            return NOBODY_READS
    message = _users(error)
    with suppress(OSError):
        if message is None:
            traceback.print_exception(error)
            print(
                "this is a bug in qsm_bench: please report it to its authors, with the lines "
                "above and the command",
                file=sys.stderr,
            )
            return BUG
        if message:  # no command at all has shown the help
            print(f"error: {one_line(message)}", file=sys.stderr)
    return BAD_INPUT


def _with_value(text: str, cause: object) -> str:
    """The message on an option, with the value that was typed where typer leaves it out."""
    if not isinstance(cause, ValidationError):
        return text
    first = cause.errors()[0]
    said = first["msg"]
    return text.replace(said, f"{first['input']!r}: {said[0].lower()}{said[1:]}")


def _users(error: Exception) -> str | None:
    """What to say of an error that the user can mend; None of a bug."""
    # typer exports no base of its option parser's errors; they have this method in common.
    if hasattr(error, "format_message"):
        return _with_value(str(error.format_message()), error.__cause__)
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return reason if error.filename is None else f"{error.filename}: {reason}"
    if isinstance(error, MemoryError):
        return f"the machine's memory does not suffice: {error}".removesuffix(": ")
    return str(error) if isinstance(error, user_errors()) else None
