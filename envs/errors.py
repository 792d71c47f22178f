"""The error of this package, and how it names what was probably meant."""

import signal
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
    matches = get_close_matches(name.lower(), as_written, n=3, cutoff=0.6)
    if matches:
        advice = "did you mean " + " or ".join(repr(as_written[match]) for match in matches) + "?"
    else:
        advice = otherwise
    return TaskError(f"unknown {kind} {name!r}: {advice}")


GYMNASIUM = (
    "reset(seed=..., options=...) must return (observation, info), and step(action) must return"
    " (observation, reward, terminated, truncated, info), as Gymnasium has it since 0.26"
)


def task_error_from(task: str, error: BaseException) -> TaskError:
    """What it means that a task's code raised ``error``; the error itself if it is a TaskError.

    Raises ``error`` again if it is the user's Ctrl-C; see ``pass_on_ctrl_c``.
    """
    pass_on_ctrl_c(error)
    if isinstance(error, TaskError):
        return error
    text = str(error)
    old_interface = "values to unpack" in text or "unexpected keyword argument" in text
    parts = [f"task {task!r} raised {type(error).__name__}", *([text] if text else [])]
    return TaskError(": ".join(parts) + (f" ({GYMNASIUM})" if old_interface else ""))


def pass_on_ctrl_c(error: BaseException) -> None:
    """Raise ``error`` again if a task's code raised it because the user pressed Ctrl-C.

    Python's own handler turns Ctrl-C into a KeyboardInterrupt, and another into an error of a class
    below that. Where another is installed, a plain KeyboardInterrupt is the task's own doing.
    """
    if isinstance(error, KeyboardInterrupt) and (
        type(error) is not KeyboardInterrupt
        or signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        raise error
