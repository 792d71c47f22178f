"""Ctrl-C, ``kill`` and a closed terminal: what the processes of a run do about them."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ASKING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
IGNORED = frozenset(n for n in ASKING[::2] if signal.getsignal(n) is signal.SIG_IGN)
"""Those that this process was started to ignore: by nohup, or in the background of a script."""
TERMINALS = tuple(fd for fd in (1, 2) if os.isatty(fd))

GRACE_SECONDS = 3.0
"""For a process to save itself once it is asked to stop; it is killed then."""
POLL_SECONDS = 0.2


class Stopped(KeyboardInterrupt):
    """This process was asked to stop, by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def answer(handler: Callable[[int], None]) -> None:
    """Have ``handler`` called with the number of each signal that asks to stop.

    From the main thread alone. Whatever other code made of these signals is undone.
    """
    numbers = set(ASKING) - IGNORED
    for number in numbers:
        signal.signal(number, lambda number, frame: handler(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def leave(number: int) -> None:
    """End this process at once: it has nothing to save."""
    # An exception could be lost in a callback of an import, and would be shown as a traceback.
    os._exit(128 + number)


class Heard:
    """The signal that came, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def hear(self, number: int) -> None:
        """Remember the first signal."""
        self.number = self.number or number
        if number == getattr(signal, "SIGHUP", None):
            # The terminal is gone, and what is still to be said must not fail for that.
            null = os.open(os.devnull, os.O_WRONLY)
            for fd in TERMINALS:
                os.dup2(null, fd)

    def end_if_any(self) -> None:
        """Raise SystemExit with the signal's exit status if one came."""
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def remembered() -> Iterator[Heard]:
    """In here nothing is cut off: signals are remembered, to be asked for."""
    heard = Heard()
    answer(heard.hear)
    try:
        yield heard
    finally:
        answer(leave)


@contextmanager
def raised() -> Iterator[None]:
    """In here the first signal raises Stopped, and no other disturbs the clearing up.

    Stopped becomes SystemExit with the signal's exit status.
    """

    def stop(number: int) -> None:
        answer(lambda _: None)
        # An exception can be lost in other code's callback: then the process ends all the same.
        last = threading.Timer(GRACE_SECONDS, leave, [number])
        last.daemon = True
        last.start()
        raise Stopped(number)

    answer(stop)
    try:
        yield
    except Stopped as stopped:
        raise SystemExit(stopped.exit_status) from None
    finally:
        answer(leave)


class StopRequest:
    """Whether a job is asked to stop: by a signal, or by the end of its lifeline.

    The lifeline is a pipe that whoever started the job holds open. It closes it to have the job
    stop, which no environment can keep from the job as it can a signal; and should it die, the
    system closes it. A job that does not hear within ``GRACE_SECONDS``, because it compiles or
    an environment does not return, is killed with all that it has started.
    """

    def __init__(self, lifeline: int | None) -> None:
        self.asked = False
        self.heard = False
        self.over = False
        self.lifeline = lifeline

    def __enter__(self) -> "StopRequest":
        self.listen()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over = True

    def __call__(self) -> bool:
        """Whether to stop: asked by the job between any two steps."""
        self.heard = self.heard or self.asked
        return self.asked

    def listen(self) -> None:
        """Take the signals, or take them back from an environment."""
        answer(self._ask)

    def _ask(self, number: int) -> None:
        self.asked = True

    def _watch(self) -> None:
        while not self.asked:
            if self.lifeline is None:
                time.sleep(POLL_SECONDS)
            elif select.select([self.lifeline], [], [], POLL_SECONDS)[0]:
                self.asked = True
            if self.over:
                return
        time.sleep(GRACE_SECONDS)
        if not (self.heard or self.over):
            with suppress(OSError):
                os.write(2, b"asked to stop, it could not within the seconds left to it\n")
            kill_family(os.getpid())


def lifeline_of_stdin() -> int:
    """The pipe on standard input, which is set aside: nothing that is started inherits it."""
    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return lifeline


def kill_family(pid: int) -> None:
    """Kill a process, all that it has started, and what is left of its process group."""
    import psutil

    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(pid).children(recursive=True)
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    kill_group(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_group(pid: int) -> None:
    """Kill what is left of the process group that a process led, be that there still or not."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def reap_adopted(own: set[int]) -> None:
    """As the first process of a container: let those end that were left to it by their parents."""
    import psutil

    if os.getpid() != 1:
        return
    for child in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
