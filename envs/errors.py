"""The errors of this package."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class TaskError(ValueError):
    """A task is unknown, cannot be made, or does something wrong.

    The message is one line that names the thing, the value given, and what would be right.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EnvironmentDiedError(TaskError):
    """The process of an environment ended or was killed. Another try may succeed."""


def unknown_name(kind: str, name: str, known: Iterable[str], otherwise: str) -> TaskError:
    """The error for a name that is not `known`. It suggests similar names, or says `otherwise`."""
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
    """A TaskError for an ``error`` that a task's code raised; ``error`` itself if it is one.

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
    """Raise ``error`` again if it comes from the user's Ctrl-C.

    Python's own handler raises a KeyboardInterrupt, and our handlers raise subclasses of it. If one
    of ours is installed, a plain KeyboardInterrupt comes from the task itself.
    """
    if isinstance(error, KeyboardInterrupt) and (
        type(error) is not KeyboardInterrupt
        or signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        raise error
