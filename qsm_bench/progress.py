"""Where every job stands, read from the disk alone: for ``run``, live, and for ``status``."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qsm_bench.counting import count, duration
from qsm_bench.ending import silence_output
from qsm_bench.errors import UserError
from qsm_bench.executors.slurm_queue import queued_tasks
from qsm_bench.groups import job_name, seeds_text
from qsm_bench.heartbeat import liveness, process_name, time_of
from qsm_bench.job_folder import GONE, JobFolder
from qsm_bench.manifest import SeedFailure
from qsm_bench.stages import read_stages, text_of
from qsm_bench.store import ExperimentStore
from qsm_bench.visible import visible

BAR, SHORTEST_NAME = 20, 8
"""The width of a bar, and the least width of a name that goes on in a second line."""
_UNLIMITED = Console(width=1_000)

FOLLOW_SECONDS = 2.0
"""The time between two looks at an experiment that another process runs."""
LINE_SECONDS = 30.0
"""In a log file, a running job gets a line at least this often."""
AT_WORK = ("running", "queued")
"""The states of a job that somebody runs, or will."""


@dataclass(frozen=True)
class JobState:
    """One line of the display."""

    agent: str
    task: str
    seeds: tuple[int, ...]
    """The seeds of the job, if its agent has other jobs on the task; empty if not."""
    status: str
    step: int
    steps: int
    last_return: float | None
    """Mean return of the last evaluation, over seeds and episodes."""
    updates_per_second: float | None
    """Gradient updates a second while training, summed over the seeds."""
    seconds_left: float | None
    reason: str | None
    diverged: dict[int, int] = field(default_factory=dict)
    """Seeds that diverged, each with its step."""
    failed_seeds: dict[int, SeedFailure] = field(default_factory=dict)
    """Seeds whose environment failed, while the others went on."""
    warnings: tuple[str, ...] = ()
    log_tail: tuple[str, ...] = ()
    """The last lines of a failed job."""

    @property
    def faults(self) -> str:
        """What went wrong, a line for each thing; empty if nothing did."""
        seeds = [f"seed {seed} diverged at step {at:,}" for seed, at in self.diverged.items()]
        seeds += [
            f"seed {seed} failed at step {failure.step:,}: {failure.reason}"
            for seed, failure in self.failed_seeds.items()
        ]
        warnings = [f"warning: {line}" for line in self.warnings]
        lines = [*([self.reason] if self.reason else []), *seeds, *warnings]
        return "\n".join([*lines, *(f"  | {line}" for line in self.log_tail)])

    @property
    def name(self) -> str:
        """What the job trains."""
        return job_name(self.agent, self.task, self.seeds)

    @property
    def line(self) -> str:
        """The state as plain text."""
        gone = f" ({GONE})" if self.reason == GONE else ""
        parts = [f"{self.name}: {self.status}{gone}, step {self.step:,}/{self.steps:,}"]
        if self.last_return is not None:
            parts.append(f"return {self.last_return:.1f}")
        if self.status == "running" and self.updates_per_second:
            parts.append(f"{self.updates_per_second:.0f} updates/s")
        if self.status == "running" and self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        faults = replace(self, reason=None).faults if gone else self.faults
        return ", ".join([*parts, *([faults] if faults else [])])


def read_states(folders: Sequence[JobFolder], *, tables: bool = False) -> list[JobState]:
    """Read the state of every job, with its seeds where an agent has several on a task.

    One that waits in a cluster's queue is "queued".
    """
    jobs = Counter((folder.agent, folder.task) for folder in folders)
    queued = queued_tasks(folders, or_none=True)
    states = []
    for folder in folders:
        state = job_state(folder, tables=tables)
        if jobs[folder.agent, folder.task] > 1:
            state = replace(state, seeds=tuple(folder.seeds or ()))
        if folder in queued and state.status in ("pending", "interrupted"):
            task, how = queued[folder]
            state = replace(state, status="queued", reason=f"SLURM has it as {task}, {how}")
        states.append(state)
    return states


def job_state(folder: JobFolder, *, tables: bool = False) -> JobState:
    """Read a job's state: "damaged" where its manifest or, with ``tables``, one of them is."""
    try:
        manifest = folder.read_current()
        if tables:
            from qsm_bench.results import read_job

            read_job(folder)
    except UserError as error:
        return _damaged(folder, str(error))
    progress = folder.read_progress()
    running = manifest.status == "running"

    def number(key: str) -> float | None:
        value = progress.get(key)
        return value if isinstance(value, (int, float)) and abs(value) < 1e15 else None

    return JobState(
        agent=visible(manifest.job.agent),
        task=visible(manifest.job.task),
        seeds=(),
        status=manifest.status,
        step=int(number("step") or 0) if running else manifest.step,
        steps=manifest.job.protocol.steps,
        last_return=number("return"),
        updates_per_second=number("updates_per_second"),
        seconds_left=number("seconds_left"),
        reason=visible((_trouble(progress) if running else manifest.reason) or "") or None,
        diverged=_diverged(progress) if running else manifest.diverged,
        failed_seeds={
            seed: failure.model_copy(update={"reason": visible(failure.reason)})
            for seed, failure in (
                _failed_seeds(progress) if running else manifest.failed_seeds
            ).items()
        },
        warnings=tuple(map(visible, manifest.warnings)),
        log_tail=tuple(map(visible, manifest.log_tail)),
    )


def _damaged(folder: JobFolder, fault: str) -> JobState:
    """Return the state of a job that cannot be read, and of which only the fault is known."""
    return JobState(
        agent=visible(folder.agent or folder.path.parent.name),
        task=visible(folder.task or folder.path.name),
        seeds=(),
        status="damaged",
        step=0,
        steps=0,
        last_return=None,
        updates_per_second=None,
        seconds_left=None,
        reason=visible(fault),
    )


def _trouble(progress: dict[str, Any]) -> str | None:
    """Say what is the matter with a running job's process; None if nothing is."""
    state, at = liveness(progress), time_of(progress)
    if state == "suspended":
        return f"{process_name(progress)} is suspended"
    if state == "silent" and at:
        return f"{process_name(progress)} has given no sign of life since {at:%Y-%m-%d %H:%M:%S}"
    return None


def _diverged(progress: dict[str, Any]) -> dict[int, int]:
    """Return the seeds that diverged out of a sign of life."""
    try:
        return {int(seed): int(step) for seed, step in progress["diverged"].items()}
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return {}


def _failed_seeds(progress: dict[str, Any]) -> dict[int, SeedFailure]:
    """Return the seeds that failed out of a sign of life."""
    try:
        return TypeAdapter(dict[int, SeedFailure]).validate_python(progress["failed_seeds"])
    except (LookupError, ValidationError):
        return {}


def states_view(states: Sequence[JobState], width: int) -> RenderableType:
    """Lay out the states for a terminal of ``width`` columns; no label or number is cut.

    A table with a bar for each job where it fits; without bars, and with names that go on in a
    second line, where that fits; plain lines else.
    """
    names = max((len(s.agent) + len(s.task) for s in states), default=0)
    numbers = states_table([replace(s, agent="", task="") for s in states], bars=False)
    rest = Measurement.get(_UNLIMITED, _UNLIMITED.options, numbers).maximum
    if rest + names + BAR + 1 <= width:
        return states_table(states, bars=True)
    if rest + min(names, 2 * SHORTEST_NAME) <= width:
        return states_table(states, bars=False)
    return Text("\n".join(state.line for state in states), overflow="fold")


def states_table(states: Sequence[JobState], *, bars: bool) -> Table:
    """Lay out the states as a table, with a bar for each job if asked for."""
    table = Table(box=None, header_style="bold")
    table.add_column("agent", overflow="fold")
    table.add_column("task", overflow="fold")
    seeds = any(state.seeds for state in states)
    if seeds:
        table.add_column("seeds", overflow="fold")
    table.add_column("status", no_wrap=True)
    if bars:
        table.add_column("", width=BAR)
    for heading in ("step", "return", "updates/s", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for state in states:
        running = state.status == "running"
        table.add_row(
            Text(state.agent),
            Text(state.task),
            *([seeds_text(state.seeds)] if seeds else []),
            Text(state.status, style="bold red" if state.status in ("failed", "damaged") else ""),
            *([ProgressBar(total=state.steps, completed=state.step, width=BAR)] if bars else []),
            f"{state.step:,}/{state.steps:,}",
            "" if state.last_return is None else f"{state.last_return:.1f}",
            f"{state.updates_per_second:.0f}" if running and state.updates_per_second else "",
            duration(state.seconds_left) if running and state.seconds_left is not None else "",
        )
    faults = [f"{s.name}: {s.faults}" for s in states if s.faults]
    if faults:
        table.add_section()
        table.caption = Text("\n".join(faults), style="red")
    return table


def summary(store: ExperimentStore) -> str:
    """How far an experiment is, in one line."""
    try:
        asked, states = store.read(), read_states(list(store.job_folders()))
    except UserError as error:
        return visible(str(error))
    counts = Counter(state.status for state in states)
    status = ", ".join(f"{number} {name}" for name, number in counts.items()) or "nothing begun"
    agents, tasks = (", ".join(asked[what]) for what in ("agents", "tasks"))
    seeds = count(len(store.seeds), "seed")
    if stages := read_stages(asked):
        seeds = f"stages of {text_of(stages.counts)} seeds"
    return visible(f"{agents} on {tasks}, {seeds}; jobs: {status}")


def follow(store: ExperimentStore, console: Console, stop: Callable[[], bool]) -> None:
    """Show the jobs until none is at work any more, or ``stop()`` turns true."""
    # In stages, the jobs of a later one appear when it begins.
    display = Display(lambda: list(store.job_folders()), console)
    with display.context():
        while not stop():
            display.show()
            if store.holder() is None and not display.working:
                break
            for _ in range(round(FOLLOW_SECONDS / 0.1)):
                if not stop():
                    time.sleep(0.1)


def at_work(store: ExperimentStore) -> bool:
    """Whether somebody runs the experiment, or a job of it."""
    states = read_states(list(store.job_folders()))
    return store.holder() is not None or any(state.status in AT_WORK for state in states)


def line_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line as it is: nothing in it is cut, colored or obeyed."""
    return partial(console.print, soft_wrap=True, highlight=False, markup=False)


class Display:
    """Shows the jobs while they run: bars on a terminal, plain lines in a log."""

    def __init__(self, folders: Callable[[], Sequence[JobFolder]], console: Console) -> None:
        self.folders = folders
        self.console = console
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.refreshed = 0.0
        self.working = False
        """Whether a job ran, or was queued, when the jobs were last shown."""
        self.shown: dict[Path, tuple[JobState, float]] = {}

    def context(self) -> AbstractContextManager[object]:
        """Keep the terminal's bars in place while this is entered."""
        return self.live or nullcontext()

    def refresh(self) -> None:
        """Show what changed; cheap to call often."""
        now = time.monotonic()
        if now - self.refreshed < 1.0:
            return
        self.refreshed = now
        self.show()

    def show(self) -> None:
        """Show the jobs as they stand now."""
        folders = self.folders()
        states = read_states(folders)
        self.working = any(state.status in AT_WORK for state in states)
        if self.live:
            self.live.update(states_view(states, self.console.width), refresh=True)
            return
        now = time.monotonic()
        for folder, state in zip(folders, states, strict=True):
            before, since = self.shown.get(folder.path, (None, 0.0))
            news = before is None or any(
                getattr(state, what) != getattr(before, what)
                for what in ("status", "last_return", "diverged", "failed_seeds", "warnings")
            )
            overdue = state.status == "running" and now - since >= LINE_SECONDS
            if (news and state.status not in ("pending", "queued")) or overdue:
                self._say(state.line)
                self.shown[folder.path] = (state, now)

    def _say(self, line: str) -> None:
        """Write a line to the log. The jobs go on without it if it cannot be written."""
        try:
            print(line, file=self.console.file, flush=True)
        except OSError as error:
            silence_output()
            print(
                f"standard output cannot be written ({error.strerror}); the jobs go on: "
                "'status' shows them",
                file=sys.stderr,
            )
