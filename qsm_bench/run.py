"""Running an experiment: what the command line and a user's own script or notebook call."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import InstanceOf, PositiveInt
from rich.console import Console
from rich.filesize import decimal as format_bytes

from agents.speed import precision
from agents.speed.toolchain import why_not_compiled
from envs import close, make
from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.counting import count
from qsm_bench.errors import UserError, as_user_error
from qsm_bench.executors import Executor, Local, Outcome, Work
from qsm_bench.experiment import Experiment, Job, parse_agents, parse_settings
from qsm_bench.groups import Groups, choose_seeds_per_job, group_seeds, listed_seeds
from qsm_bench.job_folder import JobFolder
from qsm_bench.plan import (
    Memory,
    estimate_memory,
    longest_first,
    refuse_what_does_not_fit,
    rehearse_agents,
)
from qsm_bench.progress import Display, line_printer
from qsm_bench.protocol import Protocol
from qsm_bench.provenance import begin_stretch
from qsm_bench.results import Results, load_results, read_job
from qsm_bench.signals import STOP_SIGNALS, ReceivedSignal, remember_signals
from qsm_bench.stages import FALSE_ALARMS, Stages, refuse_counts
from qsm_bench.statistics.power import warning
from qsm_bench.statistics.stages import Look, looks_at, next_stage, sentence
from qsm_bench.store import ExperimentStore
from qsm_bench.stretches import changes
from qsm_bench.suites import SUITES, Suite, find_suite

WORTH_COMPILING = 50_000
"""The number of updates from which compiling, up to a minute, saves time in total."""

KEPT_BYTES = 10 * 2**30
"""Up to this size in total, the replay buffers of a run stay on the disk by default."""

Compile = Literal["auto", "on", "off"]
Say = Callable[[str], None]


@as_user_error()
@refusing_wrong_types
def run_experiment(
    agents: str,
    *,
    suite: str | None = None,
    tasks: str | None = None,
    protocol: InstanceOf[Protocol] | None = None,
    name: str | None = None,
    seeds: Iterable[int] | None = None,
    stages: Sequence[int] | None = None,
    seeds_per_job: PositiveInt | Literal["auto"] = "auto",
    settings: Sequence[str] = (),
    device: str = "auto",
    compiled: Compile = "auto",
    executor: InstanceOf[Executor] | None = None,
    checkpoint_every: PositiveInt | None = None,
    keep_replay: bool | None = None,
    results: str | Path = "results",
) -> Results:
    """Train every agent on every task, or resume where an earlier run of this name was interrupted.

    ``agents``, ``tasks`` and ``settings`` are written as on the command line: ``"qsm,sac"``,
    ``"walker-walk,Pendulum-v1"``, ``["qsm.alpha=10"]``. Give a named ``suite`` or ``tasks``; the
    suite's ``protocol``, ``seeds`` and name hold unless others are given. Everything is written
    below ``results``, one process for each job at work. Ctrl-C saves every job and raises
    KeyboardInterrupt. A job that fails is told by a warning, and shown as failed by the results.

    With ``stages``, such as ``[5, 10, 20]``, every agent has the first 5 seeds, and agents in a
    pair without a verdict get more, up to all 20; ``seeds`` are then 0, 1, ... unless given.

    Raises UserError for what cannot be run as it was asked.
    """
    prepared = prepare(
        agents,
        choose_suite(suite, tasks),
        protocol=protocol,
        name=name,
        seeds=seeds,
        stages=stages,
        seeds_per_job=seeds_per_job,
        settings=settings,
        device=device,
        compiled=compiled,
        executor=executor or Local(),
        checkpoint_every=checkpoint_every,
        keep_replay=keep_replay,
        results=results,
    )
    prepared.refuse_unrunnable()
    prepared.refuse_what_does_not_fit()
    prepared.rehearse()
    with _interruptible() as received:
        outcome = train(prepared, "run_experiment() of a Python program", Console(), received)
    for folder, reason in outcome.unfinished.items():
        warnings.warn(f"not finished: {folder.path}: {reason}", stacklevel=2)
    return load_results(prepared.store.folder.parent, prepared.experiment.name)


def choose_suite(suite: str | None, tasks: str | None) -> Suite:
    """The named suite, or the tasks named one by one under the default protocol.

    Raises UserError unless exactly one is given.
    """
    if (suite is None) == (tasks is None):
        raise UserError(
            f"give either --suite ({', '.join(SUITES)}) or --tasks, e.g. --tasks cartpole-swingup"
        )
    if suite is not None:
        return find_suite(suite)
    names = tuple(task.strip() for task in (tasks or "").split(",") if task.strip())
    if not names:
        raise UserError("--tasks is empty: name at least one, e.g. cartpole-swingup")
    name = "+".join(names).replace("/", "-").replace(":", "-")
    return Suite(name, "tasks named one by one", names, Protocol())


@dataclass(frozen=True)
class PreparedRun:
    """An experiment that can be run here as it was asked, and where and how."""

    experiment: Experiment
    jobs: tuple[Job, ...]
    """Those of the experiment that are to be finished; with stages, all that may still be."""
    store: ExperimentStore
    executor: Executor
    checkpoint_every: int
    keep_replay: bool | None
    """Whether replay buffers stay on the disk; None: if they take at most KEPT_BYTES together."""
    not_compiled: str | None = None
    """Why updates are not compiled, where that would save time."""

    def stage(self, agents: Collection[str], seeds: Collection[int]) -> "PreparedRun":
        """The run of these agents with these seeds alone."""
        return replace(self, jobs=_jobs_of(self.experiment, agents, seeds))

    @cached_property
    def open_jobs(self) -> list[Job]:
        """The jobs that are neither finished nor damaged."""
        return [job for job in self.jobs if self.store.is_open(job)]

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        return int(min(self.executor.at_once(self.experiment.device), len(self.open_jobs)))

    @cached_property
    def memory(self) -> list[Memory]:
        """What each open job will take."""
        return estimate_memory(self.open_jobs)

    def refuse_what_does_not_fit(self) -> None:
        """Raise UserError if the jobs that run here at a time need more memory than is free."""
        if self.executor.here:
            refuse_what_does_not_fit(self.open_jobs, self.memory, self.workers)

    def rehearse(self) -> None:
        """Raise AgentError if an agent fails at what the jobs ask for that begin on this CPU."""
        if self.executor.here and self.experiment.device == "cpu":
            rehearse_agents(j for j in self.open_jobs if not self.store.folder_of(j).begun)

    def refuse_unrunnable(self) -> None:
        """Raise UserError if the open jobs cannot run as was asked, or gain nothing by it.

        A job that has begun with rounded factors goes on, be it slower.
        """
        self.store.refuse_changes(self.experiment)
        if self.open_jobs:
            self._refuse_uncompilable()
            self._refuse_slower_products()

    def _refuse_slower_products(self) -> None:
        kinds = {job.settings["matmul_precision"]: job.agent_name for job in self.open_jobs}
        refused = [
            (kind, agent, precision.lacks(kind, self.experiment.device))
            for kind, agent in kinds.items()
        ]
        rows = self.experiment.protocol.batch_size
        if not any(reason for _, _, reason in refused):
            refused = [
                ("bfloat16", agent, precision.slows_down(rows, sizes))
                for sizes, agent in sorted(self._networks_to_round().items())
            ]
        for kind, agent, reason in refused:
            if reason:
                raise UserError(
                    f"setting matmul_precision of {agent}: {kind!r}: {reason}: use float32"
                )

    def _networks_to_round(self) -> dict[tuple[int, ...], str]:
        """The hidden sizes of the jobs that begin on this machine's CPU in bfloat16.

        Each with an agent that has them.
        """
        if self.experiment.device != "cpu" or not self.executor.here:
            return {}
        return {
            tuple(job.settings["hidden_sizes"]): job.agent_name
            for job in self.open_jobs
            if job.settings["matmul_precision"] == "bfloat16"
            and not self.store.folder_of(job).begun
        }

    def _refuse_uncompilable(self) -> None:
        experiment = self.experiment
        reason = why_not_compiled(experiment.device) if experiment.compiled else None
        if reason:
            raise UserError(
                f"experiment {experiment.name!r} was begun with compiled updates, and on this "
                f"machine {reason}: install it to go on, or begin anew with --compile off under "
                "another --name"
            )

    @property
    def replay_bytes(self) -> int:
        """What the replay buffers of the open jobs take on the disk, every transition of a run."""
        steps = self.experiment.protocol.steps
        return sum(needs.record * steps for needs in self.memory)

    @property
    def keeps_replay(self) -> bool:
        """Whether the replay buffers of the open jobs stay on the disk."""
        return self.replay_bytes <= KEPT_BYTES if self.keep_replay is None else self.keep_replay

    @property
    def replay_note(self) -> str:
        """Whether the replay buffers stay on the disk, and what that means, in a sentence."""
        buffers = f"replay buffers of {format_bytes(self.replay_bytes)}"
        if self.experiment.stages:  # the plan has a number of steps
            kept = "stay on the disk" if self.keeps_replay else "are deleted as each job finishes"
            return f"{buffers} {kept}"
        if self.keeps_replay:
            return f"{buffers} stay on the disk, so that this run can be given more --steps"
        return (
            f"{buffers} are deleted as each job finishes; with --keep-replay this run could be "
            "given more --steps"
        )


def prepare(
    agents: str,
    suite: Suite,
    *,
    protocol: Protocol | None,
    name: str | None,
    seeds: Iterable[int] | None,
    stages: Sequence[int] | None,
    seeds_per_job: int | str,
    settings: Sequence[str],
    device: str,
    compiled: Compile,
    executor: Executor,
    checkpoint_every: int | None,
    keep_replay: bool | None,
    results: str | Path,
) -> PreparedRun:
    """Check all that can be checked before anything is written.

    Raises UserError, AgentError or TaskError for the first thing that is wrong.
    """
    shared, own = parse_settings(settings)
    protocol = protocol or suite.protocol
    protocol = protocol.but(settings=protocol.settings | shared)
    store = ExperimentStore(Path(results), suite.name if name is None else name)
    device = _device(device, executor)
    entries = parse_agents(agents, own)
    compiling, not_compiled = _compiled(compiled, protocol.updates, device, store)
    workers = executor.at_once(device)
    cells = len(entries) * len(suite.tasks)
    all_seeds, counts = _seeds_and_counts(suite, seeds, stages, store)
    groups = _groups(
        all_seeds,
        counts,
        seeds_per_job,
        lambda new: choose_seeds_per_job(new, cells, workers, device=device, compiled=compiling),
        store.groups,
    )
    experiment = Experiment(
        name=store.name,
        agents=entries,
        tasks=suite.tasks,
        groups=groups,
        protocol=protocol,
        device=device,
        compiled=compiling,
    )
    if counts:
        plan = Stages.declare(all_seeds, counts, experiment.labels, suite.tasks, protocol.steps)
        experiment = replace(experiment, stages=plan)
    store.refuse_other_stages(experiment)
    if counts and len(experiment.labels) < 2:
        raise UserError(
            f"--seeds {','.join(map(str, counts))}: stages compare the agents of --agents, not "
            "those of a record, and there is only one: "
            f"give --seeds {counts[-1]}, or a second agent"
        )
    for job in {job.task: job for job in experiment.jobs}.values():
        close(make(job.environment))  # one that cannot be trained on is refused here
    return PreparedRun(
        experiment,
        _jobs_to_come(experiment, store),
        store,
        executor,
        checkpoint_every=checkpoint_every or experiment.protocol.eval_every,
        keep_replay=keep_replay,
        not_compiled=not_compiled,
    )


@dataclass(frozen=True)
class Trained(Outcome):
    """What became of the jobs of a run."""

    damaged: frozenset[JobFolder] = frozenset()
    """Those among the unfinished that an earlier run left in a state that cannot be resumed."""


def train(
    prepared: PreparedRun, command: str, console: Console, received: ReceivedSignal
) -> Trained:
    """Train what is not finished, showing it on ``console``, until a signal is received.

    ``command`` is noted as what started the run. Raises UserError if another process runs the
    experiment, or it was begun as something else, or the executor cannot run it.
    """
    with prepared.store.lock():
        if prepared.not_compiled:
            line_printer(console)(f"updates are not compiled: {prepared.not_compiled}")
        if prepared.experiment.stages:
            return _train_stages(prepared, prepared.experiment.stages, command, console, received)
        if prepared.open_jobs:
            counts = [len(prepared.experiment.seeds)]
            _say_what_is_in_vain(prepared.experiment, counts, [FALSE_ALARMS], line_printer(console))
        return _train_jobs(prepared, command, console, received)


def _train_stages(
    prepared: PreparedRun,
    stages: Stages,
    command: str,
    console: Console,
    received: ReceivedSignal,
) -> Trained:
    """Train stage after stage, each for the agents that are then in an open pair.

    What was decided is read from the disk, so it does not matter where an earlier run stopped. It
    ends with a stage whose jobs did not all finish, or are in a queue.
    """
    say, outcome, said = line_printer(console), Trained(), 0
    for _ in range(len(stages.seeds) + 1):
        taken = _looks(prepared.store, stages)
        for look in taken[said:]:
            say(sentence(look, stages))
        said = len(taken)
        if next_stage(taken, stages) is None:
            prepared.store.prepare(prepared.experiment, command, jobs=())
            break
        if not taken:
            _say_what_is_in_vain(prepared.experiment, stages.counts, stages.shares, say)
        agents = taken[-1].open_agents if taken else stages.agents
        current = prepared.stage(agents, stages.seeds[said])
        outcome = _train_jobs(current, command, console, received)
        if outcome.queued:
            say(
                f"stage {said + 1} of {len(stages.seeds)} is in SLURM's queue: run this command "
                "again when its jobs have ended, for its test and the next stage"
            )
        if outcome.unfinished or outcome.queued or received:
            break
    return outcome


def _say_what_is_in_vain(
    experiment: Experiment, counts: Sequence[int], shares: Sequence[float], say: Say
) -> None:
    """Say in one line that the first stages, or all seeds, are too few for any verdict."""
    line = warning(len(experiment.labels), len(experiment.tasks), counts, shares)
    if line:
        say(line)


def _train_jobs(
    prepared: PreparedRun, command: str, console: Console, received: ReceivedSignal
) -> Trained:
    """Train those of the jobs that are not finished; the store is locked."""
    experiment, say = prepared.experiment, line_printer(console)
    tasks = prepared.store.queued()
    if any(prepared.store.folder_of(job).path not in tasks for job in prepared.open_jobs):
        prepared.executor.refuse_unusable(prepared.store.folder, experiment.device)
    keep = prepared.keeps_replay
    folders = prepared.store.prepare(experiment, command, jobs=prepared.jobs, keep_replay=keep)
    open_jobs, finished, damaged = _sort(folders)
    if finished:
        say(f"skipped: {count(len(finished), 'finished job')}")
    queued = {folder: tasks[folder.path] for folder in open_jobs if folder.path in tasks}
    if queued:
        say(f"in SLURM's queue and left to it: {count(len(queued), 'job')}")
        open_jobs = [folder for folder in open_jobs if folder not in queued]
    if open_jobs:
        if not keep:
            say(prepared.replay_note)
        if prepared.executor.here:
            _say_changes(open_jobs, command, say)
        open_jobs = _longest_first(open_jobs, prepared.workers)
    outcome = show_and_run(
        prepared.executor,
        prepared.store.folder,
        folders,
        open_jobs,
        console,
        received,
        checkpoint_every=prepared.checkpoint_every,
        command=command,
    )
    return Trained(damaged | outcome.unfinished, queued | outcome.queued, frozenset(damaged))


def show_and_run(
    executor: Executor,
    folder: Path,
    folders: Sequence[JobFolder],
    open_jobs: Sequence[JobFolder],
    console: Console,
    received: ReceivedSignal,
    *,
    checkpoint_every: int,
    command: str,
) -> Outcome:
    """Run ``open_jobs`` while all ``folders`` are shown, until a signal is received."""
    display = Display(lambda: folders, console)
    work = Work(
        folder,
        checkpoint_every=checkpoint_every,
        command=command,
        on_poll=display.refresh,
        stop=lambda: bool(received),
        say=line_printer(console),
    )
    with display.context():
        try:
            return executor.run(open_jobs, work)
        finally:
            display.show()


@contextmanager
def _interruptible() -> Iterator[ReceivedSignal]:
    """Let Ctrl-C save the jobs and raise KeyboardInterrupt after; signals are the caller's again.

    In another thread than the main one Python hears no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield ReceivedSignal()
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with remember_signals() as received:
            yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _sort(
    folders: Sequence[JobFolder],
) -> tuple[list[JobFolder], list[JobFolder], dict[JobFolder, str]]:
    """Jobs that are still to run, finished ones, and damaged ones with what is wrong of each."""
    to_run, finished, damaged = [], [], {}
    for folder in folders:
        try:
            if folder.read_manifest().status != "finished":
                to_run.append(folder)
                continue
            read_job(folder)
            finished.append(folder)
        except UserError as error:
            damaged[folder] = str(error)
    return to_run, finished, damaged


def _say_changes(folders: Sequence[JobFolder], command: str, say: Say) -> None:
    """Say in one line what is different now from when the jobs last ran."""
    begun = [manifest for folder in folders if (manifest := folder.read_manifest()).stretches]
    if not begun:
        return
    now = begin_stretch(begun[0].job.device, command)
    changed = [text for manifest in begun if (text := changes(manifest.stretches, now))]
    if changed:
        say(
            "going on under other conditions than before, for which numbers may differ: "
            f"{count(len(changed), 'job')} ({'; '.join(dict.fromkeys(changed))})"
        )


def _longest_first(folders: Sequence[JobFolder], workers: int) -> list[JobFolder]:
    """Order the jobs for so many workers: where each has its own at once, it does not matter."""
    if len(folders) <= workers:
        return list(folders)
    return [folders[number] for number in longest_first([c.read_manifest().job for c in folders])]


def _seeds_and_counts(
    suite: Suite,
    seeds: Iterable[int] | None,
    stages: Sequence[int] | None,
    store: ExperimentStore,
) -> tuple[Sequence[int], Sequence[int]]:
    """The seeds, and how many of them each stage has at its end; no numbers without stages.

    Where none are given, they are those that were declared, or else the suite's. Raises UserError
    if they do not fit each other.
    """
    if stages is None and seeds is None and (declared := store.stages):
        return declared.all_seeds, declared.counts
    given = None if seeds is None else listed_seeds(seeds)
    if stages is None:
        return given or suite.seeds, ()
    refuse_counts(stages, None if given is None else len(given))
    return given or range(stages[-1]), stages


def _looks(store: ExperimentStore, stages: Stages) -> list[Look]:
    """The tests of the stages that have ended."""
    if not os.path.lexists(store.file):
        return []
    return looks_at(load_results(store.folder.parent, store.name), stages, all_present=True)


def _jobs_to_come(experiment: Experiment, store: ExperimentStore) -> tuple[Job, ...]:
    """The jobs that are to be finished; with stages, all that may have to be."""
    if experiment.stages is None:
        return experiment.jobs
    taken = _looks(store, experiment.stages)
    agents = taken[-1].open_agents if taken else experiment.stages.agents
    return _jobs_of(experiment, agents, experiment.seeds)


def _jobs_of(
    experiment: Experiment, agents: Collection[str], seeds: Collection[int]
) -> tuple[Job, ...]:
    """The jobs of these agents with these seeds."""
    return tuple(job for job in experiment.jobs if job.agent in agents and {*job.seeds} <= {*seeds})


def _groups(
    seeds: Sequence[int],
    counts: Sequence[int],
    per_job: int | str,
    choose: Callable[[int], int],
    earlier: Groups,
) -> Groups:
    """Put new seeds into groups behind the ``earlier`` ones; no group has seeds of two stages.

    Raises UserError for what is no number of seeds.
    """
    groups = earlier
    for begin, end in pairwise([0, *(counts or [len(seeds)])]):
        part = seeds[begin:end]
        new = len({*part}.difference(*earlier))
        groups = group_seeds(part, choose(new) if per_job == "auto" else _size(per_job), groups)
    return groups


def _size(per_job: int | str) -> int:
    """How many seeds a job has. Raises UserError for what is no number of seeds."""
    try:
        number = int(per_job)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"--seeds-per-job {per_job!r}: use auto, or a whole number from 1 on")
    return number


def _compiled(
    asked: Compile, updates: int, device: str, earlier: ExperimentStore
) -> tuple[bool, str | None]:
    """Whether updates are compiled, and why they are not where it would save time.

    Raises UserError if they must be and cannot.
    """
    if asked not in ("auto", "on", "off"):
        raise UserError(f"--compile {asked!r}: use auto, on or off")
    if asked == "auto" and os.path.lexists(earlier.file):
        # What was begun goes on as it was.
        return bool(earlier.read().get("compiled", False)), None
    if asked == "off" or (asked == "auto" and updates < WORTH_COMPILING):
        return False, None
    reason = why_not_compiled(device)
    if reason and asked == "on":
        raise UserError(f"--compile on: {reason}; use auto or off")
    return reason is None, reason


def _device(device: str, executor: Executor) -> str:
    """The kind of device that the jobs have; which of its kind, the executor says as they start."""
    if device not in ("auto", "cpu", "cuda"):
        more = " (CUDA_VISIBLE_DEVICES says which GPUs)" if device.startswith("cuda:") else ""
        raise UserError(f"--device {device!r}: use auto, cpu or cuda{more}")
    if device == "auto":
        return executor.device() or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and executor.here and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA devices")
    return device
