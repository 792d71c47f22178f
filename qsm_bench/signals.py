"""Ctrl-C, ``kill`` and a closed terminal: what the processes of a run do about them."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
IGNORED_SIGNALS = frozenset(n for n in STOP_SIGNALS[::2] if signal.getsignal(n) is signal.SIG_IGN)
"""The ones that this process was started to ignore: by nohup, or in a script's background."""
TERMINALS = tuple(fd for fd in (1, 2) if os.isatty(fd))

GRACE_SECONDS = 3.0
"""How long a process has to save itself once it is asked to stop; then it is killed."""
POLL_SECONDS = 0.2


class Stopped(KeyboardInterrupt):
    """This process was asked to stop, by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def on_stop_signals(handler: Callable[[int], None]) -> None:
    """Have ``handler`` called with the number of each signal that asks to stop.

    Call it from the main thread. Whatever other code has made of these signals is undone.
    """
    numbers = set(STOP_SIGNALS) - IGNORED_SIGNALS
    for number in numbers:
        signal.signal(number, lambda number, frame: handler(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def exit_now(number: int) -> None:
    """End this process at once: it has nothing to save."""
    # An exception could be lost in a callback of an import, and would be shown as a traceback.
    os._exit(128 + number)


class ReceivedSignal:
    """The signal that asked this process to stop; it is false if none came."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def receive(self, number: int) -> None:
        """Remember the first signal."""
        self.number = self.number or number
        if number == getattr(signal, "SIGHUP", None):
            # The terminal is gone, and what is still to be said must not fail for that.
            null = os.open(os.devnull, os.O_WRONLY)
            for fd in TERMINALS:
                os.dup2(null, fd)

    def exit_if_any(self) -> None:
        """Raise SystemExit with the signal's exit status if one came."""
        if self.number is not None:
            raise SystemExit(128 + self.number)


@contextmanager
def remember_signals() -> Iterator[ReceivedSignal]:
    """Interrupt nothing in here: a signal that comes is remembered, to be asked for."""
    received = ReceivedSignal()
    on_stop_signals(received.receive)
    try:
        yield received
    finally:
        on_stop_signals(exit_now)


@contextmanager
def raise_signals() -> Iterator[None]:
    """Let the first signal in here raise Stopped, and no other disturb the clearing up.

    Stopped becomes SystemExit with the signal's exit status.
    """

    def stop(number: int) -> None:
        on_stop_signals(lambda _: None)
        # An exception can be lost in other code's callback: then the process ends all the same.
        last = threading.Timer(GRACE_SECONDS, exit_now, [number])
        last.daemon = True
        last.start()
        raise Stopped(number)

    on_stop_signals(stop)
    try:
        yield
    except Stopped as stopped:
        raise SystemExit(stopped.exit_status) from None
    finally:
        on_stop_signals(exit_now)


class StopRequest:
    """Whether a job is asked to stop: by a signal, or by the end of its lifeline.

    The lifeline is a pipe that whoever started the job holds open. It closes it to have the job
    stop, which no environment can keep from the job as it can a signal; and should it die, the
    system closes it. A job that does not notice within ``GRACE_SECONDS``, because it compiles or
    an environment does not return, is killed with all that it has started.
    """

    def __init__(self, lifeline: int | None) -> None:
        self.asked = False
        self.noticed = False
        self.over = False
        self.lifeline = lifeline

    def __enter__(self) -> "StopRequest":
        self.take_signals()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over = True

    def __call__(self) -> bool:
        """Whether to stop: asked by the job between any two steps."""
        self.noticed = self.noticed or self.asked
        return self.asked

    def take_signals(self) -> None:
        """Take the signals, or take them back from an environment that has taken them."""
        on_stop_signals(self._ask)

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
        if not (self.noticed or self.over):
            with suppress(OSError):
                os.write(2, b"asked to stop, it could not within the seconds left to it\n")
            kill_family(os.getpid())


def lifeline_of_stdin() -> int:
    """Return the pipe on standard input, set aside so that nothing that is started inherits it."""
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
    """Let processes end that their parents left to this one, the first process of a container.

    ``own`` are the processes that it has started itself; elsewhere there is nothing to do.
    """
    import psutil

    if os.getpid() != 1:
        return
    for child in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
