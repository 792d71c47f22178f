"""What the user can put right: reported as one line, with exit status 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qsm_bench.visible import visible


class UserError(Exception):
    """A wrong input. The message is one line: the thing, the value, and what would be right."""


def near(value: str, known: Iterable[str]) -> str:
    """End an error line with the names closest to ``value``, or with all there are."""
    names = list(known)
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"it must be one of {', '.join(names)}"


def one_line(text: str) -> str:
    """``text`` in one line of characters that a terminal shows and does not obey."""
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
