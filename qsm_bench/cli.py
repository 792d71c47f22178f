"""The command line. Heavy imports wait inside the commands, so that ``--help`` is instant."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from qsm_bench.counting import count, duration
from qsm_bench.ending import ending
from qsm_bench.errors import UserError, did_you_mean, naming
from qsm_bench.executors import EXECUTORS, make_executor
from qsm_bench.groups import MOST_SEEDS
from qsm_bench.listing import LISTS
from qsm_bench.machine import usable_cores, visible_gpus
from qsm_bench.options import placement_options, run_options
from qsm_bench.protocol import MOST_EPISODES, MOST_STEPS
from qsm_bench.signals import raise_signals, remember_signals
from qsm_bench.stages import FALSE_ALARMS, Stages, parse_counts, text_of
from qsm_bench.visible import visible

if TYPE_CHECKING:
    from qsm_bench.record import LoadedRecord
    from qsm_bench.regression import Finding
    from qsm_bench.run import PreparedRun, Trained
    from qsm_bench.statistics.power import Rivals

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
Beside = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RECORD",
        help="Compare with a record, too: see 'list records', or the path of a folder or a zip.",
    ),
]
RESULTS, REPORTS = Path("results"), Path("reports")

EXECUTOR_HELP = f"Where jobs run: {', '.join(EXECUTORS)}. Each has options below."

PLAIN_WIDTH = 1_000
"""Characters of a line where no terminal bounds it."""
NEWLINE = "\n"

JOBS_FAILED = 1
"""Exit status."""


@app.command()
@run_options
def run(
    *,
    agents: Annotated[
        str,
        typer.Option(
            help="Comma-separated agents; settings in brackets: 'qsm,qsm\\[alpha=10],sac'. "
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
        str | None,
        typer.Option(
            metavar="N|N,N,...",
            help="How many seeds each agent has on each task: 0, 1, ... With 5,10,20, agents in a "
            "pair without a verdict after 5 get more.",
        ),
    ] = None,
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_STEPS, help="The first of these seeds; default: 0."),
    ] = None,
    seeds_per_job: Annotated[
        str,
        typer.Option(
            metavar="auto|<int>",
            help="How many seeds share a process; auto: so that every worker has work.",
        ),
    ] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of one agent: qsm.alpha=10; of all: learning_rate=0.001. "
            "May be repeated.",
        ),
    ] = None,
    matmul_precision: Annotated[
        Literal["float32", "bfloat16", "tf32"] | None,
        typer.Option(
            help="What every agent rounds the factors of matrix products to: see docs/precision.md."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compiled: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            "--compile", help="Compile updates and samplers; auto: if the run is long enough."
        ),
    ] = "auto",
    executor: Annotated[str, typer.Option(help=EXECUTOR_HELP)] = "local",
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Steps between checkpoints; default: --eval-every."
        ),
    ] = None,
    keep_replay: Annotated[
        bool | None,
        typer.Option(
            "--keep-replay/--drop-replay",
            help="Whether finished jobs keep their replay buffers, so that the run can be given "
            "more steps; default: if they are small.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the jobs and what they will take; run nothing."),
    ] = False,
    beside: Beside = None,
    results: ResultsFolder = RESULTS,
    reports: ReportsFolder = REPORTS,
    changes: dict[str, Any],
    placement: dict[str, Any],
) -> None:
    """Train every agent on every task, or resume where an earlier run of this name stopped."""
    from qsm_bench.run import choose_suite, prepare, train

    record = _record(beside, results)
    chosen = choose_suite(suite, tasks)
    counts = (len(chosen.seeds),) if seeds is None else parse_counts(seeds)
    if matmul_precision:
        settings = [*(settings or ()), f"matmul_precision={matmul_precision}"]
    first = first_seed or 0
    prepared = prepare(
        agents,
        chosen,
        protocol=chosen.protocol.but(**changes),
        name=name,
        seeds=None if (seeds, first_seed) == (None, None) else range(first, first + counts[-1]),
        stages=counts if len(counts) > 1 else None,
        seeds_per_job=seeds_per_job,
        settings=settings or (),
        device=device,
        compiled=compiled,
        executor=make_executor(executor, placement),
        checkpoint_every=checkpoint_every,
        keep_replay=keep_replay,
        results=results,
    )
    rivals: Rivals | None = None
    if record:
        from qsm_bench.beside import (
            conditions_asked,
            differences_text,
            find_differences,
            refuse_itself,
            rivals_in,
        )
        from qsm_bench.statistics.power import warning_beside

        refuse_itself(prepared.store.folder, record)
        asked = prepared.experiment
        apart = find_differences(conditions_asked(asked), record, staged=asked.stages is not None)
        rivals = rivals_in(record, apart)
        said = differences_text(apart, conditions_asked(asked), record)
        if rivals and not dry_run:
            too_few = warning_beside(len(asked.labels), len(asked.seeds), rivals)
            said += [too_few] if too_few else []
        print(visible("\n".join(said), keep=NEWLINE))
    prepared.refuse_unrunnable()
    if dry_run:
        _show_plan(prepared, rivals)
    prepared.refuse_what_does_not_fit()
    if dry_run:
        return
    prepared.rehearse()
    with remember_signals() as received:
        outcome = train(prepared, _typed(), Console(), received)
        _show_outcome(outcome, prepared, results, stopped=bool(received), reported=bool(record))
        received.exit_if_any()
    if record and not outcome.queued:
        _write_report(prepared.experiment.name, results, reports, record)
    if outcome.unfinished:
        raise typer.Exit(JOBS_FAILED)


def _show_outcome(
    outcome: "Trained", prepared: "PreparedRun", results: Path, *, stopped: bool, reported: bool
) -> None:
    """Say what did not finish, and what to type next; a report may be ``reported`` anyway."""
    for folder, reason in outcome.unfinished.items():
        log = ""
        if not stopped and folder not in outcome.damaged and folder.log_tail(1):
            log = f"; its log: {folder.log_file}"
        print(visible(f"not finished: {folder.path}: {reason}{log}"), file=sys.stderr)
    if outcome.queued:
        name, tasks = prepared.experiment.name, dict.fromkeys(outcome.queued.values())
        number = f"{count(len(outcome.queued), 'job')} as {count(len(tasks), 'task')}"
        print(f"SLURM has {number}, {next(iter(tasks))} and on")
        for purpose, words in (
            ("watch them", ["status", name, "--watch"]),
            ("end them", ["cancel", name]),
        ):
            print(f"to {purpose}: {_command(*_with_results(words, results))}")
    elif stopped:
        saved = "stopped" if outcome.unfinished else "stopped and saved"
        again = _command(*_with_results(sys.argv[1:], results))
        print(f"{saved}; to go on: {again}", file=sys.stderr)
    elif not outcome.unfinished and not reported:
        name = prepared.experiment.name
        print(f"done; the report: {_command(*_with_results(['report', name], results))}")


def _typed() -> str:
    """The command as it was typed; bytes that are no text in this locale are kept as escapes."""
    typed = shlex.join(sys.argv[1:]).encode(errors="backslashreplace").decode()
    return f"python -m qsm_bench {typed}"


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
    has_option = any(text == "--results" or text.startswith("--results=") for text in arguments)
    return [
        *arguments,
        *([] if has_option or results == RESULTS.absolute() else [f"--results={results}"]),
    ]


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    beside: Beside = None,
    results: ResultsFolder = RESULTS,
    reports: ReportsFolder = REPORTS,
) -> None:
    """Write reports/NAME/: index.html (one file), report.md, figures and their numbers."""
    _write_report(name, results, reports, _record(beside, results))


def _record(beside: Sequence[str] | None, results: Path) -> "LoadedRecord | None":
    from qsm_bench.record import find_record, load_record

    if not beside:
        return None
    asked, *more = beside
    if more:
        raise UserError(f"--beside is given {len(beside)} times: a report stands beside one record")
    return load_record(find_record(asked, results), asked)


def _write_report(name: str, results: Path, reports: Path, record: "LoadedRecord | None") -> None:
    from qsm_bench.beside import place_beside
    from qsm_bench.report import write_report
    from qsm_bench.results import load_results

    loaded = load_results(results, name)
    if record:
        loaded = place_beside(loaded, record)
    with raise_signals(), naming(reports / name):
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
    """Compare two experiments task by task and overall: two commits, two machines."""
    from qsm_bench.report.compare import write_comparison
    from qsm_bench.results import load_results

    ours = load_results(results, first)
    theirs = load_results(other_results or results, second)
    folder = reports / f"{first}-vs-{second}"
    with raise_signals(), naming(folder):
        page, verdict = write_comparison(ours, theirs, folder)
    print(f"{visible(verdict, keep=NEWLINE)}\n{page}\n{page.with_name('report.md')}")


@app.command("export")
def export_(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    to: Annotated[
        str, typer.Option(metavar="tensorboard|wandb|tdmpc2|parquet|record", help="The format.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write into; default: exports/NAME/FORMAT.",
            parser=_path,
            metavar="FOLDER",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the run ends, adding what is new.")
    ] = False,
    who: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who publishes it, for a record.")
    ] = None,
    results: ResultsFolder = RESULTS,
) -> None:
    """Write an experiment in the format of another program; what was exported is updated."""
    from qsm_bench.exporters import export, followed
    from qsm_bench.results import load_results
    from qsm_bench.store import ExperimentStore

    with raise_signals():  # an export that is cut off is mended by the next
        whole = (
            followed(ExperimentStore(results, name)) if follow else [load_results(results, name)]
        )
        for loaded in whole:
            folder = export(loaded, to, out, who=who)
    if to == "record":
        from qsm_bench.exporters.to_record import left_out

        print(visible("".join(f"{line}\n" for line in left_out(loaded)), keep=NEWLINE), end="")
    for job in loaded.damaged:
        print(visible(f"left out: {job.agent} on {job.task}: {job.fault}"), file=sys.stderr)
    print(visible(str(folder)))


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A CSV file, or a folder with TASK.csv files.", parser=_path)
    ],
    into: Annotated[str, typer.Option(metavar="NAME", help="The experiment.")],
    agent: Annotated[str, typer.Option(metavar="LABEL", help="What the report calls the curves.")],
    task: Annotated[
        str | None, typer.Option(help="The task of a file; default: the file's name.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the file: step=...,return=...,seed=...; env_step in place of step is "
            "for environment steps. Default: TD-MPC2's, env_step=step,return=reward,seed=seed."
        ),
    ] = None,
    protocol: Annotated[
        Literal["other", "equal"],
        typer.Option(help="equal: measured under the experiment's own protocol, so compare it."),
    ] = "other",
    results: ResultsFolder = RESULTS,
) -> None:
    """Import curves that others measured, to be shown beside an experiment's own."""
    from qsm_bench.external import TDMPC2, import_curves, parse_columns
    from qsm_bench.store import ExperimentStore

    curves = import_curves(
        ExperimentStore(results, into),
        source,
        agent,
        task=task,
        columns=TDMPC2 if columns is None else parse_columns(columns),
        equal_protocol=protocol == "equal",
    )
    for curve in curves:
        seeds, steps = curve.rows["seed"].nunique(), curve.rows["step"].max()
        print(
            visible(
                f"{curve.name} on {curve.declared.task}: {count(seeds, 'seed')}, to step {steps:,}"
            )
        )


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until it ends.")] = False,
    results: ResultsFolder = RESULTS,
) -> None:
    """Show where every job of an experiment stands."""
    from qsm_bench.progress import follow, read_states, states_view
    from qsm_bench.store import ExperimentStore

    store = ExperimentStore(results, name)
    console = Console()
    if watch:
        with remember_signals() as received:
            follow(store, console, lambda: bool(received))
        received.exit_if_any()
        return
    states = read_states(list(store.job_folders()), tables=True)
    if console.is_terminal:
        console.print(states_view(states, console.width))
    else:
        for state in states:
            print(state.line)
    if stages := store.stages:
        from qsm_bench.results import load_results
        from qsm_bench.statistics.stages import looks_at, progress

        for line in progress(looks_at(load_results(results, name), stages), stages):
            print(visible(line))


@app.command()
def cancel(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    results: ResultsFolder = RESULTS,
) -> None:
    """End what runs or waits of an experiment; its jobs save themselves and can go on later."""
    from qsm_bench.cancel import cancel as ask_to_end
    from qsm_bench.store import ExperimentStore

    for line in ask_to_end(ExperimentStore(results, name)):
        print(visible(line))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    agent: Annotated[
        str | None, typer.Option(help="Only this agent's runs: its label in the report.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only this task's runs.")] = None,
    results: ResultsFolder = RESULTS,
) -> None:
    """Delete an experiment, or its runs of one agent, on one task or of both."""
    from qsm_bench.store import ExperimentStore

    with remember_signals() as received:
        for folder in ExperimentStore(results, name).remove(agent, task):
            print(visible(f"removed: {folder}"))
        received.exit_if_any()


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="|".join(LISTS), help="What to list.")],
    results: ResultsFolder = RESULTS,
) -> None:
    """List agents, suites, tasks, the experiments in the folder of results, or records."""
    if what not in LISTS:
        raise UserError(f"cannot list {what!r}: {did_you_mean(what, LISTS)}")
    _print_rows(LISTS[what](results))


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
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Evaluate with another setting than it was trained with: evaluation=mean, or "
            "candidates_evaluate=10. May be repeated.",
        ),
    ] = None,
    results: ResultsFolder = RESULTS,
) -> None:
    """Evaluate an agent's last checkpoint of a task on fresh episodes."""
    from qsm_bench.checkpoint_evaluation import evaluate_job, film_job
    from qsm_bench.experiment import parse_settings
    from qsm_bench.film import Film
    from qsm_bench.store import ExperimentStore
    from qsm_bench.user_modules import refuse_unnamed_modules

    changes, of_agents = parse_settings(settings or ())
    if of_agents:
        raise UserError(f"--set {next(iter(of_agents))}...: write it as setting=value")
    folders = ExperimentStore(results, name).job_folders_of(agent, task)
    first = folders[0].read_manifest().job
    refuse_unnamed_modules(first, modules or ())
    # What would keep a film from being made is found before the episodes are played.
    film = Film(first.environment, video) if video else None
    outcomes = [evaluate_job(folder, episodes, modules or (), changes) for folder in folders]
    for elsewhere in dict.fromkeys(outcome.elsewhere for outcome in outcomes):
        if elsewhere:
            print(f"evaluated on the CPU: {elsewhere}, where it was trained, is not here")
    _print_rows(
        [
            (
                f"seed {seed}",
                f"failed: {outcome.failed[seed]}"
                if seed in outcome.failed
                else f"mean {returns.mean():.1f}  min {returns.min():.1f}  "
                f"max {returns.max():.1f}  "
                f"({count(len(returns), 'episode')}, step {outcome.step:,})",
            )
            for outcome in outcomes
            for seed, returns in zip(outcome.seeds, outcome.returns, strict=True)
        ]
    )
    if film:
        film_job(folders[0], film, changes)
        print(film.file)


@app.command()
@placement_options
def study(
    name: Annotated[
        str | None, typer.Argument(help="A study; without one, all are listed.")
    ] = None,
    *,
    budget: Annotated[
        Literal["tiny", "quick", "full"],
        typer.Option(help="quick: minutes; full: the paper's; tiny: only shows that it runs."),
    ] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    executor: Annotated[str, typer.Option(help=EXECUTOR_HELP)] = "local",
    results: ResultsFolder = RESULTS,
    reports: ReportsFolder = REPORTS,
    placement: dict[str, Any],
) -> None:
    """Try one of the paper's claims, and write reports/studies/NAME/; or list all of them."""
    from qsm_bench.studies import find_study
    from qsm_bench.studies.running import train_cells, write_study

    if name is None:
        _list_studies(reports)
        return
    chosen, console = find_study(name), Console()
    with remember_signals() as received:
        trained = train_cells(
            chosen,
            budget,
            executor=make_executor(executor, placement),
            device=device,
            results=results,
            command=_typed(),
            console=console,
            received=received,
        )
        received.exit_if_any()
    if trained is None:
        print("not all runs of the study have finished: run it again for the rest", file=sys.stderr)
        raise typer.Exit(JOBS_FAILED)
    with raise_signals():
        page, verdict = write_study(chosen, budget, trained, reports)
    print(visible(f"{name}: {verdict.outcome}. {verdict.why}\n{page}", keep=NEWLINE))


def _list_studies(reports: Path) -> None:
    """Show what each study claims, what it costs, and what its report says."""
    from rich.table import Table

    from qsm_bench.studies import STUDIES, find_study
    from qsm_bench.studies.running import published_verdict

    table = Table("study", "quick", "full", "verdict", "claim", box=None)
    for name in STUDIES:
        listed = find_study(name)
        try:
            found = published_verdict(listed, reports)
            said = f"{found.outcome} ({found.budget})" if found else "not run"
        except UserError as error:
            said = visible(str(error))
        minutes = (f"{listed.minutes[budget]:g} min" for budget in ("quick", "full"))
        table.add_row(name, *minutes, said, listed.claim)
    _console().print(table)


@app.command()
def regress(
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=MOST_SEEDS,
            help="Seeds of each agent on each task; default: 8, or 24 to record.",
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
    from qsm_bench import regression

    plan = regression.plan(results / "regression", seeds, first_seed, record=record)
    console = _console()
    with remember_signals() as received:
        findings = regression.run(plan, workers, console, received)
        received.exit_if_any()
    if plan.baseline is None:
        console.print(
            f"{plan.folder / 'baseline.csv'}: {count(len(plan.seeds), 'seed')} of each agent on "
            "each task"
        )
        return
    _show_findings(console, findings, len(plan.seeds))
    if any(finding.alarm for finding in findings):
        raise typer.Exit(JOBS_FAILED)


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


def _show_plan(prepared: "PreparedRun", rivals: "Rivals | None") -> None:
    """Show what each job that is still to run will take, and all of them together.

    The ``rivals`` are the agents of a record that they will be compared with.
    """
    from datetime import datetime, timedelta

    from rich.filesize import decimal as format_bytes
    from rich.table import Table

    from qsm_bench.groups import seeds_text
    from qsm_bench.plan import calibrate, makespan
    from qsm_bench.progress import line_printer
    from qsm_bench.statistics.power import sentence, warning

    console = _console()
    say = line_printer(console)
    experiment, jobs, workers = prepared.experiment, prepared.open_jobs, prepared.workers
    if len(jobs) < len(prepared.jobs):
        left_out = len(prepared.jobs) - len(jobs)
        say(f"left out, as finished or damaged: {count(left_out, 'job')}")
    if not jobs:
        say(f"nothing is left to run of {experiment.name}")
        return
    if experiment.device == "cuda" and not visible_gpus():
        raise UserError("--dry-run: the jobs will train on a GPU, and none is here to time them on")
    # The memory comes first, as in a run: what compiling leaves behind would count in it.
    memory = [needs.total for needs in prepared.memory]
    if experiment.compiled:
        say("compiling each agent's updates to time them, which takes up to a minute each")
    costs = calibrate(jobs)
    at_once = sum(sorted(memory)[-workers:])
    columns = ("agent", "task", "seeds", "steps", "action repeat", "time", "memory", "disk")
    table = Table(*columns, box=None)
    for job, cost, needed in zip(jobs, costs, memory, strict=True):
        table.add_row(
            job.agent.replace("[", r"\["),
            job.task,
            seeds_text(job.seeds),
            f"{job.protocol.steps:,}",
            str(job.protocol.action_repeat),
            duration(cost.seconds),
            format_bytes(needed),
            format_bytes(cost.disk_bytes),
        )
    console.print(table)
    seconds = makespan(sorted((cost.seconds for cost in costs), reverse=True), workers)
    end = datetime.now().astimezone() + timedelta(seconds=seconds)
    on_disk = sum(cost.disk_bytes for cost in costs)
    where = (
        f"on {count(usable_cores(), 'core')}"
        if prepared.executor.here
        else "if the cluster has room"
    )
    lines = [
        f"{count(len(jobs), 'job')}, {workers} at a time {where}: about "
        f"{duration(seconds)} by a calibration just now, until {end:%Y-%m-%d %H:%M}.",
        f"At most {format_bytes(at_once)} of memory at once, and {format_bytes(on_disk)} on disk, "
        f"under {prepared.store.folder}; {prepared.replay_note}.",
    ]
    if prepared.not_compiled:
        lines.insert(1, f"Updates will not be compiled: {prepared.not_compiled}.")
    if experiment.compiled:
        start = duration(max(cost.start_seconds for cost in costs))
        lines.insert(1, f"Updates were timed compiled; compiling takes up to {start} of each job.")
    if stages := experiment.stages:
        timed = [(job.seeds, cost.seconds) for job, cost in zip(jobs, costs, strict=True)]
        lines.append(_next_stage(stages, timed, workers))
        too_few = warning(len(stages.agents), len(stages.tasks), stages.counts, stages.shares)
        lines += [too_few] if too_few else []
    if len(experiment.labels) > 1 or rivals:
        counts = len(experiment.labels), len(experiment.seeds), len(experiment.tasks)
        last_share = stages.shares[-1] if stages else FALSE_ALARMS
        lines.append(sentence(*counts, last_share, rivals))
    for line in lines:
        say(line)


def _next_stage(stages: Stages, jobs: Sequence[tuple[Sequence[int], float]], workers: int) -> str:
    """What the next stage takes by itself, of jobs with their seeds and seconds."""
    from qsm_bench.plan import makespan

    number = next(
        number
        for number, seeds in enumerate(stages.seeds)
        if any({*mine} <= {*seeds} for mine, _ in jobs)
    )
    seconds = [each for mine, each in jobs if {*mine} <= {*stages.seeds[number]}]
    return (
        f"This is the most that stages of {text_of(stages.counts)} seeds can take. Stage "
        f"{number + 1} alone: {count(len(seconds), 'job')}, about "
        f"{duration(makespan(sorted(seconds, reverse=True), workers))}."
    )


def _console() -> Console:
    """The terminal; where there is none, nothing is cut to fit."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


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
