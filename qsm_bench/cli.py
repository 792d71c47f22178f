"""The command line. Heavy imports wait inside the commands, so that ``--help`` is instant."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from qsm_bench.ending import ending
from qsm_bench.errors import UserError, naming, near
from qsm_bench.signals import Heard, raised, remembered
from qsm_bench.visible import visible

if TYPE_CHECKING:
    from envs import Suite
    from qsm_bench.experiment import Experiment, Job
    from qsm_bench.regression import Finding
    from qsm_bench.store import Cell, ExperimentStore

app = typer.Typer(
    help="Compare trainers of diffusion-model policies in online reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(text: str | Path) -> Path:
    """Read a path. An empty one, as an unset variable leaves it, would be the working folder.

    It is absolute before a command begins: a task or an agent may change the working folder.
    """
    if not str(text).strip() or "\0" in str(text):
        raise typer.BadParameter(f"{text!r} is no path")
    return Path(text).absolute()


ResultsFolder = Annotated[
    Path,
    typer.Option(
        "--results",
        help="Folder that holds the experiments.",
        envvar="QSM_RESULTS",
        parser=_path,
        metavar="FOLDER",
    ),
]
ReportsFolder = Annotated[
    Path, typer.Option(help="Folder that holds the reports.", parser=_path, metavar="FOLDER")
]
RESULTS, REPORTS = Path("results"), Path("reports")

MOST_STEPS, MOST_SEEDS, MOST_EPISODES = 10**12, 10_000, 10_000
"""Above these a number is a slip of the hand, and a machine would only find out by failing."""

DEFAULT_STEPS = 1_000_000

WORTH_COMPILING = 50_000
"""Updates from which compiling, up to a minute, is won back: see reports/performance.md."""

WATCH_SECONDS = 2.0
NEWLINE = "\n"

CELLS_FAILED = 1
"""Exit status."""


@app.command()
def run(
    agents: Annotated[
        str,
        typer.Option(
            help="Comma-separated agents; settings in brackets: 'qsm,qsm[alpha=10],sac'. "
            "module:Class names an agent of your own."
        ),
    ],
    suite: Annotated[str | None, typer.Option(help="A named suite: see 'list suites'.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Comma-separated tasks instead: DMC names or Gymnasium ids."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the experiment; default: the suite's or the tasks'.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="Seeds of each cell: 0, 1, ...")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=2, max=MOST_STEPS, help="Environment steps, one agent decision each."),
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_STEPS, help="Uniformly random steps before the first update."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Transitions in an update.")
    ] = 256,
    eval_every: Annotated[
        int | None, typer.Option(min=1, max=MOST_STEPS, help="Steps between evaluations.")
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option(min=1, max=MOST_EPISODES, help="Episodes of an evaluation.")
    ] = None,
    replay_capacity: Annotated[
        int | None,
        typer.Option(
            min=1, help="Transitions of each seed that are kept; default: all, up to 1,000,000."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of one agent: qsm.alpha=10. May be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    compiled: Annotated[
        Literal["auto", "on", "off"],
        typer.Option("--compile", help="Compile the updates; auto: if the run is long enough."),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time, a process each; default: the cores.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Steps between checkpoints; default: --eval-every."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the cells and what they will take; run nothing."),
    ] = False,
    results: ResultsFolder = RESULTS,
) -> None:
    """Train every agent on every task, or go on where an earlier run of this name was cut off."""
    from qsm_bench import plan
    from qsm_bench.experiment import Experiment, parse_agents
    from qsm_bench.store import ExperimentStore

    protocol = _protocol(suite, tasks)
    experiment = Experiment(
        name=protocol.name if name is None else name,
        agents=parse_agents(agents, settings or ()),
        tasks=protocol.tasks,
        seeds=seeds or protocol.seeds,
        steps=steps or protocol.steps,
        warmup_steps=warmup_steps or protocol.warmup_steps,
        batch_size=batch_size,
        eval_every=eval_every or protocol.eval_every,
        eval_episodes=eval_episodes or protocol.eval_episodes,
        device=_device(device),
        replay_capacity=replay_capacity,
    )
    earlier = ExperimentStore(results, experiment.name)
    experiment = replace(experiment, compiled=_compiled(compiled, experiment, earlier))
    jobs = list(experiment.jobs())
    _check_tasks(experiment.tasks)
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    to_run = [job for job in jobs if earlier.is_open(job)]
    memory = plan.estimate_memory(to_run)
    if dry_run:
        _show_plan(experiment, jobs, workers, results)
    plan.refuse_what_does_not_fit(to_run, memory, workers)
    if dry_run:
        return
    _run(experiment, workers, checkpoint_every or experiment.eval_every, results)


def _run(experiment: "Experiment", workers: int, checkpoint_every: int, results: Path) -> None:
    from qsm_bench.store import ExperimentStore

    console = Console()
    # Bytes that are no text in this locale are kept as escapes: the manifest is UTF-8.
    typed = shlex.join(sys.argv[1:]).encode(errors="backslashreplace").decode()
    command = f"python -m qsm_bench {typed}"
    store = ExperimentStore(results, experiment.name)
    with remembered() as heard, store.lock():
        cells = store.prepare(experiment, command)
        open_cells, finished, damaged = _sorted_out(cells)
        if finished:
            print(f"{len(finished)} finished cells are skipped", flush=True)
        if open_cells:
            _refuse_uncompilable(experiment)
        _say_changes(open_cells, command, console)
        unfinished = _train(
            cells,
            open_cells,
            console,
            workers,
            checkpoint_every=checkpoint_every,
            command=command,
            heard=heard,
        )
        if heard:
            for cell, reason in unfinished.items():
                print(f"{cell.folder}: {reason}", file=sys.stderr)
            stopped = "stopped" if unfinished else "stopped and saved"
            again = _command(*_with_results(sys.argv[1:], results))
            print(f"{stopped}; to go on: {again}", file=sys.stderr)
            heard.end_if_any()
    unfinished = damaged | unfinished
    for cell, reason in unfinished.items():
        log = f"; its log: {cell.log_file}" if cell not in damaged and cell.log_tail(1) else ""
        print(visible(f"not finished: {cell.folder}: {reason}{log}"), file=sys.stderr)
    if unfinished:
        raise typer.Exit(CELLS_FAILED)
    print(f"done; the report: {_command(*_with_results(['report', experiment.name], results))}")


def _command(*arguments: str) -> str:
    """A command of this program as it can be pasted where this one was typed."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if [*program, *sys.argv[1:]] != sys.orig_argv:  # called by another program
        program = ["python", "-m", "qsm_bench"]
    elif sys.orig_argv[-len(sys.argv)] == sys.argv[0]:  # an installed script
        name = Path(sys.argv[0]).name
        program = [name if shutil.which(name) == sys.argv[0] else sys.argv[0]]
    return shlex.join([*program, *arguments])


def _with_results(arguments: Sequence[str], results: Path) -> list[str]:
    """``arguments`` with the results folder, which may have been the environment's to say."""
    given = any(text == "--results" or text.startswith("--results=") for text in arguments)
    return [
        *arguments,
        *([] if given or results == RESULTS.absolute() else [f"--results={results}"]),
    ]


def _refuse_uncompilable(experiment: "Experiment") -> None:
    """Raise UserError if compiled updates, which an earlier run began with, cannot go on here."""
    from agents.speed.acceleration import why_not_compiled

    reason = why_not_compiled(experiment.device) if experiment.compiled else None
    if reason:
        raise UserError(
            f"experiment {experiment.name!r} was begun with --compile on, and on this machine "
            f"{reason}: install it to go on, or begin anew with --compile off under another --name"
        )


def _say_changes(cells: "Sequence[Cell]", command: str, console: Console) -> None:
    """Say in one line what is other now than when the cells last ran."""
    from qsm_bench.provenance import begin_stretch
    from qsm_bench.stretches import changes

    manifests = [cell.read_manifest() for cell in cells]
    begun = [manifest for manifest in manifests if manifest.stretches]
    if not begun:
        return
    now = begin_stretch(begun[0].job.device, command)
    changed = [text for m in begun if (text := changes(m.stretches, now))]
    if changed:
        console.print(
            f"{len(changed)} cells go on under other conditions than before "
            f"({'; '.join(dict.fromkeys(changed))}): their numbers may differ for that",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _sorted_out(
    cells: "Sequence[Cell]",
) -> "tuple[list[Cell], list[Cell], dict[Cell, str]]":
    """Cells that are still to run, finished ones, and damaged ones with what is wrong of each."""
    from qsm_bench.results import read_cell

    to_run, finished, damaged = [], [], {}
    for cell in cells:
        try:
            if cell.read_manifest().status != "finished":
                to_run.append(cell)
                continue
            read_cell(cell)
            finished.append(cell)
        except UserError as error:
            damaged[cell] = str(error)
    return to_run, finished, damaged


def _train(
    cells: "Sequence[Cell]",
    open_cells: "Sequence[Cell]",
    console: Console,
    workers: int,
    *,
    checkpoint_every: int,
    command: str,
    heard: Heard,
) -> "dict[Cell, str]":
    """Run ``open_cells`` while all ``cells`` are shown; return those not finished, and why."""
    from qsm_bench.executor import run_locally
    from qsm_bench.progress import Display

    display = Display(cells, console)
    with display.context():
        try:
            return run_locally(
                open_cells,
                workers=workers,
                checkpoint_every=checkpoint_every,
                command=command,
                watch=display.refresh,
                stop=lambda: bool(heard),
                say=lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
            )
        finally:
            display.show()


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    results: ResultsFolder = RESULTS,
    reports: ReportsFolder = REPORTS,
) -> None:
    """Write reports/NAME/: index.html (one file), report.md, figures and their numbers."""
    from qsm_bench.report import write_report
    from qsm_bench.results import load_results

    loaded = load_results(results, _safe(name))
    with raised(), naming(reports / name):
        page = write_report(loaded, reports / name)
    print(f"{page}\n{page.with_name('report.md')}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="An experiment.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    results: ResultsFolder = RESULTS,
    other_results: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the second; default: --results.", parser=_path, metavar="FOLDER"
        ),
    ] = None,
    reports: ReportsFolder = REPORTS,
) -> None:
    """Compare two experiments cell by cell and overall: two commits, two machines."""
    from qsm_bench.report.compare import write_comparison
    from qsm_bench.results import load_results

    ours = load_results(results, _safe(first))
    theirs = load_results(other_results or results, _safe(second))
    folder = reports / f"{first}-vs-{second}"
    with raised(), naming(folder):
        page, verdict = write_comparison(ours, theirs, folder)
    print(f"{visible(verdict, keep=NEWLINE)}\n{page}\n{page.with_name('report.md')}")


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until it ends.")] = False,
    results: ResultsFolder = RESULTS,
) -> None:
    """Show where every cell of an experiment stands."""
    from qsm_bench.progress import cell_state, states_view
    from qsm_bench.store import ExperimentStore

    store = ExperimentStore(results, _safe(name))
    if watch:
        _watch(store)
        return
    states = [cell_state(cell, tables=True) for cell in store.cells()]
    console = Console()
    if console.is_terminal:
        console.print(states_view(states, console.width))
    else:
        for state in states:
            print(state.line)


def _watch(store: "ExperimentStore") -> None:
    """Show the cells until none is at work any more, or until Ctrl-C."""
    from qsm_bench.progress import Display

    cells = list(store.cells())
    display = Display(cells, Console())
    with remembered() as heard, display.context():
        while not heard:
            display.show()
            if store.holder() is None and not display.working:
                break
            for _ in range(round(WATCH_SECONDS / 0.1)):
                if not heard:
                    time.sleep(0.1)
    heard.end_if_any()


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="agents|suites|tasks", help="What to list.")],
) -> None:
    """List agents, suites or tasks."""
    import inspect

    if what == "agents":
        from agents.registry import registered_agents

        rows = [
            (
                entry.name,
                (inspect.getdoc(entry.agent) or "").splitlines()[0]
                if not entry.preset
                else f"{entry.agent.name} with {_pairs(entry.preset)}",
            )
            for entry in registered_agents().values()
        ]
    elif what == "suites":
        from envs import SUITES

        rows = [
            (suite.name, f"{suite.description} Tasks: {', '.join(suite.tasks)}.")
            for suite in SUITES.values()
        ]
    elif what == "tasks":
        from envs import find_task, task_names

        rows = [(name, find_task(name).gymnasium_id) for name in task_names()]
    else:
        raise UserError(f"cannot list {what!r}: {near(what, ('agents', 'suites', 'tasks'))}")
    _print_rows(rows)


@app.command()
def describe(
    agent: Annotated[str, typer.Argument(help="An agent or preset, e.g. qsm.")],
) -> None:
    """Show an agent's source, equations and every setting with its meaning and default."""
    from qsm_bench.describe import describe_agent

    print(describe_agent(agent))


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    agent: Annotated[str, typer.Option(help="The agent's label in the report, e.g. qsm.")],
    task: Annotated[str, typer.Option(help="The task.")],
    episodes: Annotated[
        int, typer.Option(min=1, max=MOST_EPISODES, help="Episodes of each seed.")
    ] = 10,
    video: Annotated[
        Path | None,
        typer.Option(
            help="Film the first seed's first episode, e.g. out.mp4.", parser=_path, metavar="FILE"
        ),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A module of your own that the agent or task needs. May be repeated.",
        ),
    ] = None,
    results: ResultsFolder = RESULTS,
) -> None:
    """Evaluate the last checkpoint of a cell on fresh episodes."""
    from qsm_bench.checkpoint_evaluation import evaluate_cell, film_cell
    from qsm_bench.film import Film
    from qsm_bench.outside import refuse_unnamed
    from qsm_bench.store import ExperimentStore

    cell = ExperimentStore(results, _safe(name)).existing_cell(agent, task)
    refuse_unnamed(cell.read_manifest().job, modules or ())
    # What would keep a film from being made is found before the episodes are played.
    film = Film(task, video) if video else None
    outcome = evaluate_cell(cell, episodes, modules or ())
    if outcome.elsewhere:
        print(f"evaluated on the CPU: {outcome.elsewhere}, where it was trained, is not here")
    _print_rows(
        [
            (
                f"seed {seed}",
                f"failed: {outcome.failed[seed]}"
                if seed in outcome.failed
                else f"mean {returns.mean():.1f}  min {returns.min():.1f}  "
                f"max {returns.max():.1f}  ({len(returns)} episodes, step {outcome.step:,})",
            )
            for seed, returns in zip(outcome.seeds, outcome.returns, strict=True)
        ]
    )
    if film:
        film_cell(cell, film)
        print(film.file)


@app.command()
def regress(
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, max=MOST_SEEDS, help="Seeds of each cell; default: 8, or 24 to record."
        ),
    ] = None,
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_STEPS, help="The first of them; the baseline's begin at 0."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; default: the cores.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Make the baseline anew instead of testing against it.")
    ] = False,
    results: ResultsFolder = RESULTS,
) -> None:
    """Train every agent on the small tasks and test its scores against the committed baseline."""
    import tempfile

    from qsm_bench import regression
    from qsm_bench.files import check_writable

    console = Console()
    folder = results / "regression"
    baseline = None if record else regression.read_baseline(folder)
    taken: list[int] = [] if baseline is None else sorted(set(baseline["seed"]))
    if record:
        check_writable(folder)
    count = seeds or (regression.BASELINE_SEEDS if record else regression.SEEDS)
    first = first_seed if first_seed is not None else 0 if record else regression.FIRST_SEED
    if set(taken) & set(range(first, first + count)):
        raise UserError(
            f"--first-seed {first}: seeds {taken[0]} to {taken[-1]} are the baseline's own; "
            f"begin at {taken[-1] + 1} or above"
        )
    with (
        remembered() as heard,
        tempfile.TemporaryDirectory(prefix="qsm_bench-regress-") as temporary,
    ):
        root = Path(temporary)
        cells = regression.prepare(root, count, first)
        unfinished = _train(
            cells,
            cells,
            console,
            workers or os.cpu_count() or 1,
            # Nothing is gone on with here: the last step's checkpoint is enough.
            checkpoint_every=max(course.steps for course in regression.COURSES),
            command="regress",
            heard=heard,
        )
        heard.end_if_any()
        failed = {
            regression.cell_key(cell.read_manifest().job): reason
            for cell, reason in unfinished.items()
        }
        scores = regression.read_scores(root, count, first)
    if baseline is None:
        if failed:
            raise UserError(f"nothing is recorded: {failed}")
        regression.write_baseline(folder, scores)
        console.print(f"{folder / 'baseline.csv'}: {count} seeds of each cell")
        return
    findings = regression.compare(baseline, scores, failed)
    _show_findings(console, findings, count)
    if any(finding.alarm for finding in findings):
        raise typer.Exit(CELLS_FAILED)


def _show_findings(console: Console, findings: "list[Finding]", seeds: int) -> None:
    from rich.table import Table

    from qsm_bench.regression import FALSE_ALARMS

    table = Table("agent", "task", "score", "baseline", "now", "change", "p", "verdict", box=None)
    for f in findings:
        numbers = (f"{f.baseline:.3f}", f"{f.now:.3f}", f"{f.now - f.baseline:+.3f}", f"{f.p:.1e}")
        row = (f.agent, f.task, f.score, *numbers, f.verdict)
        table.add_row(*row, style="bold red" if f.alarm else None)
    console.print(table)
    for f in findings:
        if f.note:
            console.print(
                visible(f"{f.agent} on {f.task}: {f.note}"),
                style="red",
                soft_wrap=True,
                markup=False,
            )
    alarms = sum(f.alarm for f in findings)
    console.print(
        f"{alarms} alarms in {len(findings)} exact rank tests of {seeds} fresh seeds; a score of 0 "
        f"is a random policy's, 1 the best. Unchanged code raises an alarm in at most "
        f"{FALSE_ALARMS:.0%} of runs of all tests together.",
        soft_wrap=True,
        highlight=False,
    )


def _protocol(suite: str | None, tasks: str | None) -> "Suite":
    """The suite, or the given tasks under the default protocol."""
    from envs import SUITES, Suite, TaskError, find_suite

    if (suite is None) == (tasks is None):
        raise UserError(
            f"give either --suite ({', '.join(SUITES)}) or --tasks, e.g. --tasks cartpole-swingup"
        )
    if suite is not None:
        try:
            return find_suite(suite)
        except TaskError as error:
            raise UserError(str(error)) from error
    assert tasks is not None
    names = tuple(task.strip() for task in tasks.split(",") if task.strip())
    if not names:
        raise UserError("--tasks is empty: name at least one, e.g. cartpole-swingup")
    name = "+".join(names).replace("/", "-").replace(":", "-")
    return Suite(name, "tasks named one by one", names, steps=DEFAULT_STEPS)


def _check_tasks(tasks: tuple[str, ...]) -> None:
    """Build each task once: one that cannot be trained on is refused before anything runs."""
    from envs import TaskError, close, make

    for task in tasks:
        try:
            close(make(task))
        except TaskError as error:
            raise UserError(str(error)) from error


def _compiled(asked: str, experiment: "Experiment", earlier: "ExperimentStore") -> bool:
    """Whether updates are compiled. Raises UserError if they must be and cannot."""
    from agents.speed.acceleration import why_not_compiled

    if asked == "auto" and os.path.lexists(earlier.file):
        # What was begun goes on as it was.
        return bool(earlier.read().get("compiled", False))
    updates = experiment.steps - experiment.warmup_steps
    if asked == "off" or (asked == "auto" and updates < WORTH_COMPILING):
        return False
    reason = why_not_compiled(experiment.device)
    if reason and asked == "on":
        raise UserError(f"--compile on: {reason}; use auto or off")
    return reason is None


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if device != "cpu" and kind != "cuda":
        raise UserError(f"--device {device!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if kind == "cuda" and (torch.device(device).index or 0) >= count:
        raise UserError(f"--device {device!r}: this machine has {count} CUDA devices")
    return device


def _safe(name: str) -> str:
    """Refuse a name that would lead out of the results folder."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError(f"experiment name {name!r}: a plain name is wanted, without '/'")
    return name


def _show_plan(experiment: "Experiment", jobs: "list[Job]", workers: int, results: Path) -> None:
    from rich.table import Table

    from qsm_bench.memory import size
    from qsm_bench.plan import calibrate, estimate_memory, makespan
    from qsm_bench.progress import duration

    costs = [calibrate(job) for job in jobs]
    memory = [needs.total for needs in estimate_memory(jobs)]
    at_once = sum(sorted(memory)[-workers:])
    columns = ("agent", "task", "seeds", "steps", "time", "memory", "disk")
    table = Table(*columns, box=None)
    for job, cost, needed in zip(jobs, costs, memory, strict=True):
        table.add_row(
            job.agent.replace("[", r"\["),
            job.task,
            str(len(job.seeds)),
            f"{job.steps:,}",
            duration(cost.seconds),
            size(needed),
            size(cost.disk_bytes),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{len(jobs)} cells, {workers} at a time: about "
        f"{duration(makespan([cost.seconds for cost in costs], workers))} by a calibration just "
        f"now, at most {size(at_once)} of memory at once and "
        f"{size(sum(cost.disk_bytes for cost in costs))} on disk, under "
        f"{results / experiment.name}",
        soft_wrap=True,
        highlight=False,
    )


def _pairs(settings: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(first) for first, _ in rows)
    for first, second in rows:
        print(f"{first:{width}}  {second}")


def _find_modules_here() -> None:
    """Look for modules in the working folder first, as ``python -m`` does."""
    with naming("the working folder"):
        here = str(Path.cwd())
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, here)


def main() -> None:
    """Entry point of ``python -m qsm_bench`` and ``qsm-bench``."""
    with ending():
        _find_modules_here()
        status = app(standalone_mode=False)
    raise SystemExit(status if isinstance(status, int) else 0)
