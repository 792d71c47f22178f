"""Signs of life: a small file that a process writes anew every second, and what it tells.

A process is known by its machine, its number and the time it started, so that another one with
its number is not mistaken for it. On its own machine one looks whether it is there; elsewhere its
last sign of life counts.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from qsm_bench.errors import UserError
from qsm_bench.files import write_atomically

BEAT_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""A process on another machine counts as gone after so long without a sign of life.

Clocks of machines that share a disk may differ by seconds, and such a disk may take some to show
what was written."""

Liveness = Literal["alive", "suspended", "silent", "gone"]


class Heartbeat:
    """While entered, a thread writes a sign of life every second, with what ``more`` returns."""

    def __init__(self, file: Path, more: Callable[[], dict[str, Any]] = dict) -> None:
        self.file = file
        self.more = more
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.write()

    def write(self) -> None:
        """Give a sign of life now."""
        with self._writing:
            sign = {
                "place": this_machine(),
                "pid": os.getpid(),
                "born": start_of(os.getpid()),
                "time": time.time(),
                **self.more(),
            }
            # A full disk is for the checkpoint to find, a link in its place for who reads it.
            with suppress(OSError, UserError):
                write_atomically(self.file, json.dumps(sign))

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self.write()


def liveness(sign: dict[str, Any]) -> Liveness:
    """Judge by a sign of life whether the process that gave it still lives."""
    pid, at = sign.get("pid"), sign.get("time")
    at = at if isinstance(at, int | float) and abs(at) < 1e12 else float("-inf")
    age = time.time() - at
    if sign.get("place") != this_machine():
        return "alive" if age <= SILENT_SECONDS else "gone"
    if type(pid) is not int or not 0 < pid < 2**31 or sign.get("born") != start_of(pid):
        return "gone"
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    if status == psutil.STATUS_STOPPED:
        return "suspended"
    return "alive" if age <= SILENT_SECONDS else "silent"


def process_name(sign: dict[str, Any]) -> str:
    """Name the process that gave a sign of life."""
    pid, where = sign.get("pid"), sign.get("place")
    if type(pid) is not int:
        return "another process"
    machine = where.split()[:1] if isinstance(where, str) and where != this_machine() else []
    return " on ".join([f"process {pid}", *machine])


def time_of(sign: dict[str, Any]) -> datetime | None:
    """Return when a sign of life was given; None if it does not say."""
    try:
        return datetime.fromtimestamp(sign["time"]).astimezone()
    except (LookupError, TypeError, ValueError, OverflowError, OSError):
        return None


@cache
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return str(psutil.boot_time())


def this_machine() -> str:
    """Name where a process number is valid: this machine, since this boot, in this container."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return " ".join([platform.node(), _boot(), namespace])


def start_of(pid: int) -> float | None:
    """Return when a process started, in this system's own unit; None if there is none."""
    with suppress(OSError, IndexError, ValueError):
        # Linux's own count does not move when the clock is set; the name may hold anything.
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    with suppress(psutil.Error):
        return psutil.Process(pid).create_time()
    return None
