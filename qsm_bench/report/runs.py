"""Sections on how the results were obtained: cost, diagnostics, settings, and what is missing."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from qsm_bench.counting import count
from qsm_bench.groups import job_name, seeds_text
from qsm_bench.merging import jobs_of
from qsm_bench.protocol import Protocol
from qsm_bench.report import figures, staging
from qsm_bench.report.document import Block, Bullets, Code, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.temperature import EXPLAINED, ROW, temperature_text
from qsm_bench.report.wording import NONE, listed, number
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.selection import agents_of
from qsm_bench.stretches import conditions, varying

MISSING_TITLE = "What failed, diverged or is missing"

MEASURES = {
    "score_gradient_cosine": "cosine of score and action gradient",
    "actor_gradient_norm": "norm of the actor's gradient",
    "clipped_share": "share of action entries at a bound",
    "action_entropy": "action entropy (nats)",
    "action_modes": "modes of the action distribution",
    "critic_bias": "critic bias (Q minus return-to-go)",
}
PROTOCOL = (
    *(name for name in Protocol.model_fields if name != "settings"),
    "seeds",
    "device",
    "compiled",
)
"""What the table of the protocol shows. The protocol's settings are among the agents' settings."""


def cost(analysis: Analysis, drawing: Drawing) -> Section:
    """Training time, rates, and return against time."""
    rows = []
    for cell in analysis.results.cells:
        seeds, train = len(cell["seeds"]), cell["train_seconds"]
        rows.append(
            {
                "agent": cell["agent"],
                "task": cell["task"],
                "seeds": seeds,
                "steps": cell["step"],
                "training_seconds": train,
                "evaluation_seconds": cell["evaluation_seconds"],
                "seed_updates_per_second": seeds * cell["updates"] / train if train else None,
                "environment_steps_per_second": seeds * cell["step"] / train if train else None,
            }
        )
    data = pd.DataFrame(rows)
    cells = pd.DataFrame(
        {
            "agent": row["agent"],
            "task": row["task"],
            "steps x seeds": f"{row['steps']:,} x {row['seeds']}",
            "training (min)": number(row["training_seconds"] / 60),
            "evaluation (min)": number(row["evaluation_seconds"] / 60),
            "updates/s": _rate(row["seed_updates_per_second"]),
            "environment steps/s": _rate(row["environment_steps_per_second"]),
        }
        for row in rows
    )
    blocks: list[Block] = [
        Table(
            "cost",
            "Wall-clock time of each cell's jobs, added up. The seeds of a job share one thread or "
            "device. Rates are those of one job, over all its seeds, and count training time "
            "only. Whatever else ran on the machine is in these times: they are no measurement of "
            "speed.",
            cells,
            data,
        )
    ]
    recorded = [a for a in analysis.results.beside.agents if a in set(data["agent"])]
    if recorded:
        blocks.append(
            Text(
                f"The runs of {listed(recorded)} were trained elsewhere, at "
                "another time and maybe on another machine: their times cannot be compared with "
                "those of the other agents, and are not in the next figure."
            )
        )
    curves = return_against_time(analysis)
    curves = curves[~curves["agent"].isin(recorded)]
    if not curves.empty:
        blocks.append(
            drawing.picture(
                "return-against-time",
                figures.curves(
                    curves,
                    drawing.styles,
                    x="minutes",
                    x_label="minutes since the job began",
                    y_label="return",
                    panel_by="task",
                ),
                curves,
                alt="Mean return against wall-clock minutes, a panel for each task.",
                caption="Mean return against the wall-clock time of the cell's slowest job, "
                "evaluations included.",
            )
        )
    return Section("Cost", blocks)


def return_against_time(analysis: Analysis) -> pd.DataFrame:
    """Columns: those of ``estimates.task_curves``, and minutes (since the job began)."""
    clock = analysis.results.training.groupby(["agent", "task", "step"], as_index=False)[
        "wall_clock"
    ].max()
    curves = analysis.task_curves.merge(clock, on=["agent", "task", "step"])
    return curves.assign(minutes=curves.pop("wall_clock").astype(float) / 60)


def trainers(results: Results, drawing: Drawing) -> Section:
    """Diagnostics of the agents' policies and critics during training."""
    table = _measures(results)
    notes = [Text(note) for note in results.notes]
    if table.empty:
        return Section("Trainers' diagnostics", [Text("No agent has any."), *notes])
    blocks: list[Block] = [
        Text(
            "Measured at every evaluation, at the same states from the warm-up, for every agent "
            "that gives access to its policy or its critic. The cosine is that of the policy's "
            "score and the critic's action gradient, at samples of the policy; only diffusion "
            "policies have it. Many action entries at a bound of the action box are a sign of "
            "overshoot. Entropy and modes are estimated from 64 samples, in the same way for all "
            "agents; a deterministic policy has neither. The critic bias is the critic's value "
            "minus the discounted return that followed in evaluation episodes, where it can be "
            "observed. The value of SAC also includes future entropy."
        )
    ]
    for index, (task, part) in enumerate(table.groupby("task", sort=False), start=1):
        name = f"diagnostics-{index}-{''.join(c if c.isalnum() else '-' for c in str(task))}"
        last = part.groupby(["measure", "agent"], sort=False).last().reset_index()
        ends = "; ".join(
            f"{r['measure']}, {r['agent']}: {number(r['value'])}" for _, r in last.iterrows()
        )
        blocks.append(
            drawing.picture(
                name,
                figures.curves(
                    part,
                    drawing.styles,
                    x="step",
                    x_label="steps",
                    y_label="",
                    panel_by="measure",
                ),
                part,
                alt=f"Diagnostics on {task} over steps. At the end: {ends}.",
                caption=f"{task}: mean and range over seeds.",
            )
        )
    slices = _first_slices(results)
    if slices.empty:
        return Section("Trainers' diagnostics", [*blocks, *notes])
    blocks.append(
        drawing.picture(
            "action-slices",
            figures.action_slices(slices, drawing.styles),
            slices,
            alt="For each agent and task, the critic's value along the first action "
            "dimension and the share of the policy's samples there.",
            caption="The critic along the first action dimension (line), and the share of the "
            "policy's samples there (bars), after training: first seed, first measured state. "
            "Samples at a maximum of Q are a mode. Samples at a bound where Q is low are "
            "overshoot.",
        )
    )
    return Section("Trainers' diagnostics", [*blocks, *notes])


def _first_slices(results: Results) -> pd.DataFrame:
    """The slices of each agent's first seed on each task, at the first measured state."""
    slices = results.slices[results.slices["state"] == 0]
    first = slices.groupby(["agent", "task"])["seed"].transform("min")
    return slices[slices["seed"] == first]


def _measures(results: Results) -> pd.DataFrame:
    """Columns: task, agent, measure, step, value (mean over seeds), low, high (their range)."""
    keys = ["task", "agent", "step"]
    diagnosed = set(results.diagnostics["agent"])
    tables = []
    for measure, title in MEASURES.items():
        for source in (results.diagnostics, results.training):
            if measure in source:
                rows = source[source["agent"].isin(diagnosed)].dropna(subset=[measure])
                spread = rows.groupby(keys, sort=False)[measure].agg(["mean", "min", "max"])
                spread.columns = pd.Index(["value", "low", "high"])
                tables.append(spread.reset_index().assign(measure=title))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


STRETCHES_CAPTION = (
    "The stretches of every run, with the conditions that differ. A stretch is the time between a "
    "start and the next interruption, or the end."
)


def what_ran(results: Results) -> Section:
    """The settings, versions and hardware of an experiment, and the commands to run it again."""
    settings = {agent: settings_of(results, agent) for agent in agents_of(results)}
    agents = [agent for agent, values in settings.items() if values]
    stated = {agent: temperature_of(results, agent) for agent in agents}
    known = any(text != NONE for text in stated.values())
    if known:
        settings |= {agent: {**settings[agent], ROW: text} for agent, text in stated.items()}
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    rows = [
        {"setting": name, **{agent: settings[agent].get(name, NONE) for agent in agents}}
        for name in names
    ]
    different = [row for row in rows if len({row[agent] for agent in agents}) > 1]
    same = [row for row in rows if row not in different]
    blocks: list[Block] = [Text(warning) for warning in [condition_warning(results)] if warning]
    for name, caption, part in (
        (
            "settings-different",
            f"Settings that differ between agents; {NONE}: the agent does not have it, or it "
            "was added after the agent was trained.",
            different,
        ),
        ("settings-same", "Settings that all agents share.", same),
        (
            "protocol",
            "The protocol. Where cells differ, all values are shown.",
            protocol_of(results),
        ),
        (
            "environment",
            "Time, hardware and versions. Where cells differ, all values are shown.",
            environment_of(results),
        ),
        ("stretches", STRETCHES_CAPTION, _stretch_rows(results)),
    ):
        if part:
            frame = pd.DataFrame(part)
            blocks.append(Table(name, caption, frame, frame))
    if known:
        blocks.append(Text(EXPLAINED))
    unknown = [agent for agent, values in settings.items() if not values]
    if unknown:
        blocks.append(Text(f"Settings were not recorded for {listed(unknown)}: see the commands."))
    blocks += [
        Text("Commands that made these results and this report:"),
        Code("\n".join(_unique(_commands(results)))),
    ]
    return Section("What ran", blocks)


def settings_of(results: Results, agent: str) -> dict[str, str]:
    """Each setting of an agent as text. Values that hold for some tasks only name these tasks."""
    cells = [cell for cell in results.cells if cell["agent"] == agent]
    return {
        name: _by_task({cell["task"]: _shown(cell["settings"].get(name, NONE)) for cell in cells})
        for name in dict.fromkeys(name for cell in cells for name in cell["settings"])
    }


def temperature_of(results: Results, agent: str) -> str:
    """An agent's effective temperature as text, as ``settings_of`` shows a setting."""
    cells = [cell for cell in results.cells if cell["agent"] == agent]
    return _by_task({cell["task"]: temperature_text(results, cell) for cell in cells})


def _by_task(values: Mapping[str, str]) -> str:
    """The value on most tasks, and those on the others with the tasks' names."""
    tasks: dict[str, list[str]] = {}
    for task, value in values.items():
        tasks.setdefault(value, []).append(task)
    common = max(tasks, key=lambda value: len(tasks[value]))
    others = [f"{value} on {listed(on)}" for value, on in tasks.items() if value != common]
    return f"{common} ({'; '.join(others)})" if others else common


def protocol_of(results: Results) -> list[dict[str, str]]:
    """The protocol's fields and their values; all values where cells differ."""
    return [
        {"what": name, "value": _values(cell[name] for cell in results.cells)} for name in PROTOCOL
    ]


def environment_of(results: Results) -> list[dict[str, str]]:
    """The commit, times, hardware and versions; all values where cells differ."""
    ran = [stretch for _, stretch in _stretches(results) if stretch["versions"]]
    versions = list(dict.fromkeys(name for s in ran for name in s["versions"]))
    hardware = list(dict.fromkeys(name for s in ran for name in s["hardware"]))
    facts: dict[str, Iterable[Any]] = {
        "commit": (s["commit"] or "unknown" for s in ran),
        "started": [min((s["started"] for s in ran if s["started"]), default=NONE)],
        "last ended": [max((s["ended"] for s in ran if s["ended"]), default=NONE)],
    }
    facts |= {name: [s["hardware"].get(name) for s in ran] for name in hardware}
    facts |= {name: [s["versions"].get(name, NONE) for s in ran] for name in versions}
    return [{"what": name, "value": _values(values)} for name, values in facts.items()]


def condition_warning(results: Results) -> str | None:
    """A warning that names the conditions that differ within an experiment; None if none does."""
    differing = varying(stretch for _, stretch in _stretches(results))
    if not differing:
        return None
    different = "; ".join(f"{name} {' or '.join(values)}" for name, values in differing.items())
    what = results.name + " and the record beside it" * bool(results.beside.agents)
    return (
        f"Warning: not all of {what} ran under the same conditions ({different}). Numbers may "
        "differ for that reason alone."
    )


def _stretches(results: Results) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every stretch together with its cell."""
    return [(cell, stretch) for cell in results.cells for stretch in cell["stretches"]]


def _stretch_rows(results: Results) -> list[dict[str, str]]:
    """A row for each stretch; no rows if every run has one stretch and all conditions agree."""
    stretches = _stretches(results)
    differing = varying(stretch for _, stretch in stretches)
    one_each = all(len(cell["stretches"]) <= len(jobs_of(cell)) for cell in results.cells)
    if not differing and one_each:
        return []
    grouped = any(len(jobs_of(cell)) > 1 for cell in results.cells)
    return [
        {
            "agent": cell["agent"],
            "task": cell["task"],
            **({"seeds": seeds_text(stretch["seeds"])} if grouped else {}),
            "steps": f"{stretch['first_step']:,} to {stretch['last_step']:,}",
            "started": stretch["started"] or NONE,
            "ended": stretch["ended"] or NONE,
            **{name: conditions(stretch).get(name, NONE) for name in differing},
            "command": stretch["command"] or NONE,
        }
        for cell, stretch in stretches
    ]


def _commands(results: Results) -> Iterable[str]:
    for cell in results.cells:
        commands = [stretch["command"] for stretch in cell["stretches"] if stretch["command"]]
        yield from commands or [results.experiment.get("command", "")]
    beside = f" --beside {shlex.quote(results.beside.asked)}" if results.beside.asked else ""
    yield f"python -m qsm_bench report {results.name}{beside}"


def what_is_missing(analysis: Analysis) -> Section:
    """Everything that the experiment should have and the statistics do not use."""
    comparison, results = analysis.comparison, analysis.results
    sentences = damaged_jobs(results)
    sentences += [
        f"{_job_name(cell, job)}: {job['status']} at step {job['step']:,}"
        + (f" ({job['reason']})" if job["reason"] else "")
        + "."
        for cell in results.cells
        for job in jobs_of(cell)
        if job["status"] != "finished"
    ]
    sentences += [
        f"{cell['agent']} on {cell['task']}, seed {seed}: diverged at step {step:,}."
        for cell in results.cells
        for seed, step in cell.get("diverged", {}).items()
    ]
    sentences += [*comparison.left_out, *staging.not_ended(analysis)]
    if not sentences:
        runs = sum(len(run.seeds) for run in comparison.runs.values())
        sentences = [f"Nothing: the statistics use all {count(runs, 'run')}."]
    blocks: list[Block] = [Bullets(_unique(sentences))]
    for cell in results.cells:
        for job in jobs_of(cell):
            if job["status"] == "failed" and job.get("log_tail"):
                blocks.append(Text(f"The last lines of {_job_name(cell, job)}:"))
                blocks.append(Code("\n".join(job["log_tail"])))
    return Section(MISSING_TITLE, blocks)


def damaged_jobs(results: Results) -> list[str]:
    """A sentence for each damaged job."""
    return [
        f"{job_name(job.agent, job.task, job.seeds)}: damaged and left out: {job.fault}."
        for job in results.damaged
    ]


def _job_name(cell: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """A cell's name, with the seeds of one of its jobs if it has several."""
    return job_name(cell["agent"], cell["task"], () if job is cell else job["seeds"])


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _values(values: Iterable[Any]) -> str:
    """All different values as one text."""
    return "; ".join(_unique(_shown(value) for value in values if value is not None)) or NONE


def _rate(value: float | None) -> str:
    return NONE if value is None else number(value)


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
