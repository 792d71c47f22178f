"""What the user can put right: reported as one line, with exit status 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qsm_bench.visible import visible

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """A wrong input. The message is one line: the thing, the value, and what would be right."""


def user_errors() -> tuple[type[Exception], ...]:
    """Return the whole family: every error whose one line says what a user can put right.

    ``agents`` and ``envs`` do not know this package, so each raises an error of its own.
    """
    # Late: torch takes a second, and it cannot be loaded in a working folder that is gone.
    from agents.registry import AgentError
    from envs import TaskError

    return UserError, AgentError, TaskError


@contextmanager
def as_user_error() -> Iterator[None]:
    """Raise the whole family as UserError: for the functions that a Python user calls.

    It is a decorator, too: ``@as_user_error()``. Inside the package errors stay what they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, user_errors()):
            raise UserError(str(error)) from error
        raise


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """End an error line with the names closest to ``value``, or with all there are."""
    names = list(known)
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"it must be one of {', '.join(names)}"


def reason_of(error: BaseException) -> str:
    """Return an error's kind and message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def first_fault(error: "ValidationError") -> str:
    """Return where the first fault of a file's content is, what is there, and what is wrong."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    shown = where and first["type"] not in ("missing", "extra_forbidden")
    given = f" is {first['input']!r}" if shown else ""
    return f"{where or 'all of it'}{given[:100]}: {first['msg']}"


def one_line(text: str) -> str:
    """Return ``text`` in one line of characters that a terminal shows and does not obey."""
    return visible(" ".join(text.split()))


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let an OSError that names no file name ``path``: a write that fails names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
