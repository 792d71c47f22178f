"""The error of this package, and how it names what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class TaskError(ValueError):
    """A task or a suite that cannot be had, or a task that misbehaves.

    The message is one line that names the thing, the value given, and what would be right.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EnvironmentDiedError(TaskError):
    """The process of an environment ended, or was killed; begun anew, it may well live."""


def unknown_name(kind: str, name: str, known: Iterable[str], otherwise: str) -> TaskError:
    """The error for a name that is not `known`: it suggests near names, or says `otherwise`."""
    as_written = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower(), as_written, n=3, cutoff=0.6)
    if near:
        advice = "did you mean " + " or ".join(repr(as_written[match]) for match in near) + "?"
    else:
        advice = otherwise
    return TaskError(f"unknown {kind} {name!r}: {advice}")
