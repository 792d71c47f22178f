"""Measure a GPU and write reports/performance-gpu.md: ``make gpu``, on a machine that has one.

    python tests/benchmarks/gpu.py reports/performance-gpu.md

Two things are measured. Updates of every trainer, for 1, 10 and 64 seeds: how many a second, and
how much of the time the GPU works and does not wait to be told what to do; those of five trainers
in bfloat16 and tf32, too. Then these five trainers' training steps and evaluations: of one job
after the other, and of all five jobs at once, which share GPU and cores as ``--jobs-per-gpu 5``
lets them: each works until the last of them has been timed. From these follows how long a suite
would take. The page is written after every row, and a row that cannot be
measured says why.
"""

import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from agents.protocol import MatmulPrecision
from agents.registry import built_in_trainers
from agents.speed import precision
from agents.speed.toolchain import why_not_compiled
from qsm_bench.machine import usable_cores
from qsm_bench.process import configure_process
from qsm_bench.provenance import describe_commit, describe_hardware
from qsm_bench.replay import ReplayBuffer
from qsm_bench.suites import find_suite
from tests.benchmarks.core import describe_core
from tests.benchmarks.lockstep import prepared, take_steps
from tests.benchmarks.performance import HEADER, table_row, versions_in_words
from tests.benchmarks.workload import ACTION, BATCH, OBSERVATION, new_agent, row

REFUSED = 2
BUSY = "busy"
"""Asks a job to go on working when it has answered, so that the others are timed beside it."""
TASK, SUITE, SUITE_STEPS, SUITE_SEEDS = "walker-walk", "dmc_easy_medium", 100_000, 5
FIVE = "qsm", "diffusion_ql", "diffusion_pg", "sac", "td3"
"""The trainers of the project's own record."""
GOALS = {("qsm", 10): 20_000, ("qsm", 64): 60_000}
"""The seed-updates a second that the project wants of an H100."""
SUITE_GOAL = 60
"""The minutes that it wants the suite to take at most, with the five trainers."""

INTRODUCTION = """\
# Performance on a GPU

Written by `make gpu`; no number is typed by hand.

On {gpu} and a machine of {cores} cores and {memory_gib} GiB; {versions}; commit {commit}.

A *seed-update* is one update of critic, actor and target of one seed, with 24 observation entries,
6 action entries, batches of 256 and networks of 2 x 256, with the sample from the replay buffer.
Updates are compiled and captured in CUDA graphs; their random numbers are drawn before, of all
seeds at once. Products are float32 where nothing else is said. *Waiting* is the share of the time
in which the GPU runs no kernel: it waits to be told what to do. A *step* is one of all {seeds}
seeds of a job on {task}: acting, environments, replay and update. Goals are for an H100.

One core: {core}

"""


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how long."""

    device: str = "cuda"
    seeds: tuple[int, ...] = (1, 10, 64)
    trainers: tuple[str, ...] = built_in_trainers()
    in_steps: tuple[str, ...] = FIVE
    """The trainers whose steps are measured, and whose updates in the other precisions are."""
    hidden: int = 256
    batch: int = BATCH
    updates: int = 200
    rounds: int = 10
    warmup: int = 500
    steps: int = 500
    eval_episodes: int = 10

    @property
    def compiled(self) -> bool:
        """A CPU's run is there to try the whole way in seconds."""
        return self.device == "cuda"


SMALL = Sizes(
    "cpu",
    (1, 2),
    ("qsm", "td3"),
    ("qsm", "sac"),
    hidden=8,
    batch=8,
    updates=2,
    rounds=2,
    warmup=4,
    steps=3,
    eval_episodes=1,
)


def main(
    page: Path,
    on_a_cpu: Annotated[bool, typer.Option("--on-a-cpu", hidden=True)] = False,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    cores: Annotated[int, typer.Option(hidden=True)] = 1,
) -> None:
    """Measure, and write the page."""
    sizes = SMALL if on_a_cpu else Sizes()
    if reason := None if on_a_cpu else why_not_here():
        print(f"make gpu measures a GPU: {reason}", file=sys.stderr)
        raise typer.Exit(REFUSED)
    configure_process()
    if job:
        serve(job, sizes, cores)
        return
    introduction = INTRODUCTION.format(
        **describe_hardware(sizes.device) | {"gpu": gpu_name(sizes)},
        versions=versions_in_words(),
        commit=describe_commit(),
        core=describe_core(),
        seeds=SUITE_SEEDS,
        task=TASK,
    )
    table = introduction + HEADER
    for found in measured(sizes):  # what is known is kept if a later row ends the process
        table += found
        page.write_text(table, encoding="utf-8")
    print(page)


def why_not_here() -> str | None:
    """Say what this machine lacks; None if it lacks nothing."""
    if not torch.cuda.is_available():
        return "torch finds none on this machine"
    return why_not_compiled("cuda")


def gpu_name(sizes: Sizes) -> str:
    """Return the GPU's name, or that there is none."""
    return torch.cuda.get_device_name() if sizes.device == "cuda" else "no GPU (a trial)"


def measured(sizes: Sizes) -> Iterator[str]:
    """Measure everything; yields the rows of the table."""
    for name in sizes.trainers:
        for seeds in sizes.seeds:
            yield row_or_reason(f"{name}, S = {seeds}", updates_row, name, seeds, sizes)
    rounded: tuple[MatmulPrecision, ...] = ("bfloat16", "tf32")
    for name in sizes.in_steps:
        for kind in rounded:
            what = f"{name}, S = {sizes.seeds[1]}, {kind}"
            yield row_or_reason(what, updates_row, name, sizes.seeds[1], sizes, kind)
    try:
        yield from map(table_row, steps_rows(sizes))
    except Exception as error:
        yield failed("steps", error)


def row_or_reason(what: str, measure: Callable[..., dict[str, Any]], *given: Any) -> str:
    """Return the row that is measured, or one that says why it could not be."""
    try:
        return table_row(measure(*given))
    except Exception as error:
        return failed(what, error)


def failed(what: str, error: Exception) -> str:
    """Return a row that says why there is no figure."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].replace("|", "/")
    print(f"\n{what}: {reason}", file=sys.stderr, flush=True)
    return f"| {what} | {reason} | | | |\n"


def updates_row(
    name: str, seeds: int, sizes: Sizes, kind: MatmulPrecision = "float32"
) -> dict[str, Any]:
    """Time updates of a trainer, and how long the device works for them."""
    device = torch.device(sizes.device)
    precision.use(kind)
    agent = new_agent(
        name,
        seeds,
        device=device,
        compiled=sizes.compiled,
        hidden_sizes=(sizes.hidden, sizes.hidden),
        matmul_precision=kind,
    )
    replay = filled_replay(seeds, device)

    def updates() -> None:
        for _ in range(sizes.updates):
            agent.update(replay.sample(sizes.batch))
        wait(device)

    updates()  # compiles, and records the graphs
    seconds = statistics.median(seconds_of(updates) for _ in range(sizes.rounds))
    per_second = seeds * sizes.updates / seconds
    goal = GOALS.get((name, seeds))
    working = working_seconds(updates, device)
    return row(
        f"{name}, S = {seeds}" + f", {kind}" * (kind != "float32"),
        f"{per_second:.0f} seed-updates/s",
        max(0.0, 1 - working / seconds) if working else math.nan,  # nothing was seen to run
        f"of {1e6 * seconds / sizes.updates:.0f} us an update waiting",
        f"{goal:,} seed-updates/s" if goal else "",
    )


def filled_replay(seeds: int, device: torch.device) -> ReplayBuffer:
    """Return a replay buffer of made-up transitions on the device."""
    replay = ReplayBuffer(1_000, OBSERVATION, ACTION, range(seeds), device)
    replay.records.normal_()
    ended = slice(OBSERVATION + ACTION + 1, OBSERVATION + ACTION + 3)
    replay.records[..., ended] = 0.0
    replay.added = replay.capacity
    return replay


def seconds_of(work: Callable[[], None]) -> float:
    """Time a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def working_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that the device's kernels take together in a call."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as trace:
        work()
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return float(sum(getattr(event, name) for event in trace.key_averages())) / 1e6


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_rows(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Time steps of a job of each trainer, one after the other and then all at once."""
    cores = max(1, usable_cores() // len(sizes.in_steps))
    jobs = {name: Job(name, sizes, cores) for name in sizes.in_steps}
    try:
        for job in jobs.values():
            job.prepare()
        alone = {name: job.ask().answer() for name, job in jobs.items()}
        for job in jobs.values():
            job.ask(BUSY)
        together = {name: job.answer() for name, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.close()
    for name, (seconds, of_environments, _) in alone.items():
        at_once = together[name][0]
        yield row(
            f"{name}, S = {SUITE_SEEDS}, a job with {cores} cores for its environments",
            f"{1 / seconds:.0f} steps/s",
            of_environments / seconds,
            "of a step waiting for environments",
        )
        yield row(
            f"{name}, the same beside the other trainers' jobs on the same GPU",
            f"{1 / at_once:.0f} steps/s",
            seconds / at_once,
            "times the pace alone",
        )
    suite = find_suite(SUITE)
    tasks, evaluations = len(suite.tasks), SUITE_STEPS // suite.protocol.eval_every
    busy = sum(
        tasks * (SUITE_STEPS * seconds + evaluations * evaluation)
        for seconds, _, evaluation in together.values()
    )
    minutes = busy / len(jobs) / 60
    yield row(
        f"{SUITE}, {SUITE_STEPS:,} steps, {SUITE_SEEDS} seeds: {tasks * len(jobs)} jobs of these "
        f"{len(jobs)} trainers, {len(jobs)} at a time at that pace; start is not counted",
        f"{minutes:.0f} minutes",
        minutes / SUITE_GOAL,
        f"times {SUITE_GOAL} minutes",
        "at most 1",
    )


class Job:
    """A job's training in a process of its own, which takes some steps when it is asked to."""

    def __init__(self, name: str, sizes: Sizes, cores: int) -> None:
        command = [sys.executable, __file__, os.devnull, f"--job={name}", f"--cores={cores}"]
        self.process = subprocess.Popen(
            [*command, *(() if sizes.compiled else ("--on-a-cpu",))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self) -> None:
        """Wait until it has compiled its updates."""
        self.ask().answer()

    def ask(self, how: str = "alone") -> "Job":
        """Let it work; if ``BUSY``, beyond its answer."""
        assert self.process.stdin
        print(how, file=self.process.stdin, flush=True)
        return self

    def answer(self) -> tuple[float, float, float]:
        """Return the seconds of a step, those of it that were waits for the environments, and the
        seconds of an evaluation.
        """
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError(f"{self.process.args!r} ended")
        step, environments, evaluation = map(float, answer.split())
        return step, environments, evaluation

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(name: str, sizes: Sizes, cores: int) -> None:
    """Work on a job for each line of standard input, and print what that took.

    That is some steps and an evaluation. After the line ``BUSY`` more steps follow, until there is
    another line, or the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        training = prepared(
            name,
            TASK,
            SUITE_SEEDS,
            0,
            Path(folder) / "cell",
            warmup=sizes.warmup,
            device=sizes.device,
            compiled=sizes.compiled,
            cores=cores,
            batch_size=sizes.batch,
            eval_episodes=sizes.eval_episodes,
            settings={"hidden_sizes": [sizes.hidden, sizes.hidden]},
        )
        spent = 0.0
        finish = training.environments.finish

        @wraps(finish)
        def timed() -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return finish()
            finally:
                spent += time.perf_counter() - began

        training.environments.finish = timed  # type: ignore[method-assign]
        for line in iter(sys.stdin.readline, ""):
            spent = 0.0
            seconds = take_steps(training, sizes.steps)
            wait(training.device)
            waited, began = spent, time.perf_counter()
            training._evaluate(lambda: None)
            evaluation = time.perf_counter() - began
            print(seconds / sizes.steps, waited / sizes.steps, evaluation, flush=True)
            while line.strip() == BUSY and not select.select([sys.stdin], [], [], 0)[0]:
                take_steps(training, 1)
        training.close()


if __name__ == "__main__":
    typer.run(main)
