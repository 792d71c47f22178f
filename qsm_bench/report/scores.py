"""Sections on the scores: learning curves, aggregates, and every run."""

from itertools import cycle

import numpy as np
import pandas as pd

from qsm_bench.counting import count
from qsm_bench.external import ExternalCurve
from qsm_bench.published import Published
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text, Warnings
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import BOOTSTRAP, NONE, interval, listed, number, with_range
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.estimates import (
    STATISTICS,
    aggregate_curves,
    final_scores,
    performance_profiles,
)
from qsm_bench.statistics.selection import AREA_UNDER_CURVE, FINAL, tasks_of


def aggregate_scores(analysis: Analysis, drawing: Drawing) -> Section:
    """IQM, median, mean and optimality gap of normalized scores."""
    table = analysis.aggregates
    if table.empty:
        return Section("Aggregate scores", [Text("No task has scores of all agents to aggregate.")])
    rows = [
        {
            "agent": agent,
            "measured": when,
            **{
                row["statistic"]: interval(row["value"], row["low"], row["high"])
                for row in part.to_dict("records")
            },
            "runs": f"{part['seeds'].iloc[0]} x {part['tasks'].iloc[0]}",
        }
        for (agent, when), part in table.groupby(["agent", "measured"], sort=False)
    ]
    best = table[(table["statistic"] == "IQM") & (table["measured"] == FINAL)]
    iqms = ", ".join(f"{row['agent']} {number(row['value'])}" for row in best.to_dict("records"))
    return Section(
        "Aggregate scores",
        [
            Table(
                "aggregates",
                f"Normalized scores: 0 and 1 are the ends of each task's score range. {BOOTSTRAP} "
                f"{FINAL.capitalize()}: the last evaluation. {AREA_UNDER_CURVE.capitalize()}: the "
                "mean over all evaluations. Runs: seeds x tasks.",
                pd.DataFrame(rows),
                table,
            ),
            drawing.picture(
                "aggregates",
                figures.aggregate_intervals(table, drawing.styles),
                table,
                alt=f"Points with intervals for {', '.join(STATISTICS)}. "
                f"Interquartile means at the end: {iqms}.",
                caption=f"Aggregates of normalized scores. {BOOTSTRAP}",
            ),
        ],
    )


def profiles(analysis: Analysis, drawing: Drawing) -> Section:
    """The share of runs above each score."""
    table = performance_profiles(analysis.comparison)
    if table.empty:
        return Section("Performance profiles", [Text("No task has scores of all agents.")])
    figure = figures.curves(
        table,
        drawing.styles,
        x="score",
        x_label="normalized score",
        y_label="share of runs above it",
    )
    return Section(
        "Performance profiles",
        [
            drawing.picture(
                "profiles",
                figure,
                table,
                alt="For each agent, the share of its runs whose normalized score is above each "
                "value from 0 to 1; a higher line is better.",
                caption="Share of runs whose score at the end of training is above each value. "
                f"{BOOTSTRAP}",
            )
        ],
    )


def learning_curves(analysis: Analysis, drawing: Drawing, published: Published) -> Section:
    """Learning curves over all tasks and on each task, with published scores next to them."""
    comparison = analysis.comparison
    blocks: list[Block] = []
    faults = [f"An external curve is left out: {f}." for f in analysis.results.external.faults]
    if published.fault:
        faults.append(f"Published scores are not shown: {published.fault}.")
    if faults:
        blocks.append(Warnings(faults))
    overall = aggregate_curves(comparison)
    if not overall.empty and len(comparison.aggregate_tasks) > 1:
        blocks.append(
            drawing.picture(
                "learning-overall",
                figures.curves(
                    overall,
                    drawing.styles,
                    x="step",
                    x_label="steps",
                    y_label="IQM of normalized scores",
                ),
                overall,
                alt="Interquartile mean of normalized scores over steps, a line for each agent.",
                caption="IQM of normalized scores over "
                f"{count(len(comparison.aggregate_tasks), 'task')}. {BOOTSTRAP}",
            )
        )
    by_task = analysis.task_curves
    if by_task.empty:
        return Section("Learning curves", [*blocks, Text("No run has finite returns.")])
    marks = _marks(analysis.results, published)
    last = by_task.groupby(["task", "agent"], sort=False).last().reset_index()
    ends = "; ".join(
        f"{r['agent']} on {r['task']} {number(r['value'])}" for _, r in last.iterrows()
    )
    external = _external(analysis)
    shown = analysis.all_curves
    elsewhere = analysis.external_curves
    dashed = set(zip(elsewhere["agent"], elsewhere["task"], strict=True))
    blocks.append(
        drawing.picture(
            "learning-curves",
            figures.curves(
                shown,
                drawing.styles,
                x="step",
                x_label="steps",
                y_label="return",
                panel_by="task",
                marks=marks,
                dashed=dashed,
            ),
            shown,
            alt=f"Mean return over steps, a panel for each task. At the end: {ends}.",
            caption=f"Mean return over seeds. {BOOTSTRAP}"
            + (
                " Other markers: published scores, measured under other protocols. A mean has a "
                "bar from the lowest to the highest seed, an IQM its 95 % interval. See the next "
                "table."
                if marks
                else ""
            )
            + (" Dashed with the word external: measured elsewhere." if external else ""),
        )
    )
    if external:
        blocks.append(Bullets(external))
    if len(published.scores):
        blocks += _published(analysis, published)
    return Section("Learning curves", blocks)


def _external(analysis: Analysis) -> list[str]:
    """A sentence for every agent whose curves were imported."""
    imported: dict[str, list[ExternalCurve]] = {}
    for curve in analysis.results.external.curves:
        imported.setdefault(curve.name, []).append(curve)
    sentences = []
    for name, curves in imported.items():
        files = listed([f"{c.declared.source} ({c.declared.task})" for c in curves])
        if name in analysis.comparison.agents:
            use = "Its protocol was declared equal: it is compared as one more agent."
        elif any(curve.declared.equal_protocol for curve in curves):
            use = "Its protocol was declared equal, but it cannot be compared: see what is missing."
        else:
            use = "Its protocol was not declared equal: it is in no statistic."
        drawn = set(analysis.external_curves["task"][analysis.external_curves["agent"] == name])
        beyond = [c.declared.task for c in curves if c.declared.task not in drawn]
        note = f" No part of it can be drawn on {listed(beyond)}." if beyond else ""
        sentences.append(f"{name}: imported from {files}. {use}{note}")
    return sentences


def _marks(results: Results, published: Published) -> list[figures.Marks]:
    """The published scores with the action repeat of our runs, with a marker for each agent."""
    repeats = {cell["task"]: cell["action_repeat"] for cell in results.cells}
    points = published.points()
    same = points[points["task"].map(repeats) == points["action_repeat"]]
    return [
        figures.Marks(
            f"{agent}, {published.sources[str(source)].label}: {statistic}",
            rows.rename(columns={"steps": "step"}),
            marker,
            bar="seeds" if statistic == "mean" else "interval",
        )
        for marker, ((source, agent, statistic), rows) in zip(
            cycle(figures.OTHER_MARKERS),
            same.groupby(["source", "agent", "statistic"]),
            strict=False,
        )
    ]


def _published(analysis: Analysis, published: Published) -> list[Block]:
    """A table of published scores with ours at the same step, and a list of the differences."""

    def here(agent: str, task: str, step: int) -> str:
        runs = analysis.cell_curves.get((agent, task))
        seeds = runs.finite_seeds() if runs else ()
        if runs is None or not seeds or step not in runs.steps:
            return NONE
        returns = runs.select(seeds, np.array([step])).returns
        return with_range(returns.mean(), returns.min(), returns.max())

    agents = list(dict.fromkeys(analysis.task_curves["agent"]))
    show = {"mean": with_range, "IQM": interval}
    points = published.points()
    rows = [
        {
            "task": row["task"],
            "step": f"{row['steps']:,}",
            "published": f"{row['agent']}, {published.sources[row['source']].label}",
            "value": show[row["statistic"]](row["value"], row["low"], row["high"]),
            **{f"{agent} here": here(agent, row["task"], row["steps"]) for agent in agents},
            "statistic": f"{row['statistic']} of {count(row['seeds'], 'seed')}",
            "action repeat": str(row["action_repeat"]),
        }
        for row in points.sort_values(["task", "steps"], kind="stable").to_dict("records")
    ]
    return [
        Table(
            "published",
            "Published scores next to our means at the same step, in brackets the lowest and the "
            "highest seed. They were measured elsewhere under other protocols, and no statistic of "
            "this report uses them. An IQM, the mean of the middle half of the seeds, has its "
            "95 % interval instead.",
            pd.DataFrame(rows),
            published.scores,
        ),
        Bullets(
            [
                f"{source.label} ({source.url}, {source.files} at {source.commit[:7]}): a step is "
                f"{source.step}. Its protocol: {source.protocol}. Differences from our defaults: "
                f"{source.differs}."
                for source in published.sources.values()
            ]
        ),
    ]


def every_run(analysis: Analysis) -> Section:
    """The return of every seed on every task."""
    table, curves = final_scores(analysis.comparison), analysis.all_curves
    if table.empty:
        return Section("Every run", [Text("There are no runs to compare.")])
    seeds = sorted(table["seed"].unique())
    rows = []
    for (task, agent), part in table.groupby(["task", "agent"], sort=False):
        step = part["step"].iloc[0]
        curve = curves[(curves["task"] == task) & (curves["agent"] == agent)]
        mean = curve[curve["step"] == step].iloc[0]
        returns = dict(zip(part["seed"], part["return"], strict=True))
        rows.append(
            {
                "task": task,
                "agent": agent,
                "step": f"{step:,}",
                "mean return": interval(mean["value"], mean["low"], mean["high"]),
                "standard deviation": number(float(np.std(part["return"], ddof=1)))
                if len(part) > 1
                else NONE,
                "area under the curve": number(part["area"].mean()),
                **{
                    f"seed {seed}": number(returns[seed], 4) if seed in returns else NONE
                    for seed in seeds
                },
            }
        )
    return Section(
        "Every run",
        [
            Table(
                "runs",
                "Return of every seed at the last evaluation that all agents have. "
                f"{BOOTSTRAP} Area under the curve: the mean return over all evaluations.",
                pd.DataFrame(rows),
                table,
            )
        ],
    )


def limits(analysis: Analysis) -> Section:
    """What a reader must not conclude from the statistics."""
    comparison, results = analysis.comparison, analysis.results
    seeds = min((len(runs.seeds) for runs in comparison.runs.values()), default=0)
    budgets = sorted({cell["steps"] for cell in results.cells})
    sentences = [
        f"Budget: {listed([f'{steps:,} steps' for steps in budgets])}. With a longer budget, the "
        "order of the agents may change.",
        f"Seeds: at least {seeds} in each cell. Seeds differ in initial weights, exploration and "
        "episodes. Settings were not tuned, and nothing here shows how much a result depends on "
        "them.",
        "With few seeds, bootstrap intervals are too narrow (docs/statistics.md of the project "
        "says by how much). Verdicts do not depend on them.",
        f"Tasks: {listed(tasks_of(results))}. The intervals treat them as fixed, not as a sample "
        "of all tasks.",
    ]
    held = {cell["task"]: cell["action_repeat"] for cell in results.cells}
    sentences += [
        f"On {task} an action is repeated for {times} environment steps: there a step is more "
        "experience than without action repeat."
        for task, times in held.items()
        if times != 1
    ]
    return Section("What the statistics do not show", [Bullets(sentences)])
