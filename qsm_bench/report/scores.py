"""Sections on what the results say: who is better, by how much, and whether to believe it."""

import numpy as np
import pandas as pd

from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text, Warnings
from qsm_bench.report.drawing import NONE, Drawing, count, interval, listed, number
from qsm_bench.statistics import (
    AREA,
    AT_END,
    CONFIDENCE,
    FALSE_ALARMS,
    REPLICATIONS,
    STATISTICS,
    Comparison,
    aggregate_curves,
    aggregates,
    final_scores,
    learning_curves,
    pairs,
    performance_profiles,
    task_curves,
    tasks_of,
)
from qsm_bench.store import Results

FEW_SEEDS, FEW_TASKS = 5, 3
"""Below these a reader is warned."""

BOOTSTRAP = (
    f"Intervals: {CONFIDENCE:.0%} stratified bootstrap over seeds, {REPLICATIONS:,} replications."
)


def answer(comparison: Comparison, results: Results) -> Section:
    """One plain sentence for each pair of agents, and what a reader must know beside it."""
    sentences = [_verdict(pair) for _, pair in pairs(comparison).iterrows()]
    if not sentences:
        sentences = [f"Only {listed(comparison.agents)} has runs: there is no pair to compare."]
    warnings = _warnings(comparison, results)
    blocks: list[Block] = [Bullets(sentences)]
    if warnings:
        blocks.append(Warnings(warnings))
    return Section("The answer", blocks)


def _verdict(pair: "pd.Series[float]") -> str:
    better, worse = str(pair["better"]), str(pair["worse"])
    seeds = sorted({int(pair["seeds_better"]), int(pair["seeds_worse"])})
    runs = f"{' and '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''}"
    ahead = f"{better} is ahead on {int(pair['wins'])} of {count(int(pair['tasks']), 'task')}"
    improvement = (
        f"probability of improvement {interval(pair['probability'], pair['low'], pair['high'])}"
    )
    if pair["verdict"]:
        return (
            f"{better} is better than {worse}: {ahead}; {improvement}; "
            f"p = {number(pair['p'], 2)} over all pairs."
        )
    why = (
        f"p = {number(pair['p'], 2)} over all pairs"
        if pair["attainable"]
        else "no outcome of so few runs could have told them apart"
    )
    return f"Cannot tell {better} from {worse} with {runs}: {ahead}; {improvement}; {why}."


def _warnings(comparison: Comparison, results: Results) -> list[str]:
    warnings = []
    unfinished = [c for c in results.cells if c["status"] in ("pending", "running", "interrupted")]
    if unfinished:
        warnings.append(
            f"This report is partial: {len(unfinished)} of {count(len(results.cells), 'cell')} "
            "have not finished."
        )
    failed = [c for c in results.cells if c["status"] == "failed"]
    if failed:
        warnings.append(f"{count(len(failed), 'cell')} failed: see what is missing, below.")
    seeds = min((len(runs.seeds) for runs in comparison.runs.values()), default=0)
    if seeds < FEW_SEEDS:
        warnings.append(
            f"Only {count(seeds, 'seed')}: bootstrap intervals from so few are too narrow, and "
            "only large differences can be told from luck."
        )
    tasks = len(comparison.tasks)
    if tasks < FEW_TASKS:
        warnings.append(
            f"Only {count(tasks, 'task')}: this says nothing about other tasks, and an aggregate "
            "over so few is no more than their mean."
        )
    return warnings


def aggregate_scores(comparison: Comparison, drawing: Drawing) -> Section:
    """IQM, median, mean and optimality gap of normalised scores."""
    table = aggregates(comparison)
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
    best = table[(table["statistic"] == "IQM") & (table["measured"] == AT_END)]
    iqms = ", ".join(f"{row['agent']} {number(row['value'])}" for row in best.to_dict("records"))
    return Section(
        "Aggregate scores",
        [
            Table(
                "aggregates",
                f"Normalised scores: 0 and 1 are the ends of each task's range. {BOOTSTRAP} "
                f"Measured {AT_END} of training, and as {AREA}: the mean over all evaluations. "
                "Runs: seeds x tasks.",
                pd.DataFrame(rows),
                table,
            ),
            drawing.picture(
                "aggregates",
                figures.aggregate_intervals(table, drawing.styles),
                table,
                alt=f"Points with intervals for {', '.join(STATISTICS)}. "
                f"Interquartile means at the end: {iqms}.",
                caption=f"Aggregates of normalised scores. {BOOTSTRAP}",
            ),
        ],
    )


def profiles(comparison: Comparison, drawing: Drawing) -> Section:
    """Share of runs above every score."""
    table = performance_profiles(comparison)
    if table.empty:
        return Section("Performance profiles", [])
    figure = figures.curves(
        table,
        drawing.styles,
        x="score",
        x_label="normalised score",
        y_label="share of runs above it",
    )
    return Section(
        "Performance profiles",
        [
            drawing.picture(
                "profiles",
                figure,
                table,
                alt="For each agent, the share of its runs whose normalised score is above each "
                "value from 0 to 1; a higher line is better.",
                caption=f"Share of runs above each score at the end of training. {BOOTSTRAP}",
            )
        ],
    )


def improvement(comparison: Comparison, drawing: Drawing) -> Section:
    """How likely a run of one agent beats a run of another."""
    table = pairs(comparison)
    if table.empty:
        return Section("Probability of improvement", [])
    cells = pd.DataFrame(
        {
            "pair": f"{row['better']} over {row['worse']}",
            "probability of improvement": interval(row["probability"], row["low"], row["high"]),
            "tasks ahead": f"{row['wins']} of {row['tasks']}",
            "p": number(row["p"], 2),
            "verdict": "better" if row["verdict"] else "cannot tell",
        }
        for _, row in table.iterrows()
    )
    return Section(
        "Probability of improvement",
        [
            Table(
                "pairs",
                "Probability that a run of the first beats a run of the second on the same task, "
                f"averaged over tasks. {BOOTSTRAP} p: exact permutation test of equal agents, "
                "Holm's adjustment over all pairs; verdicts rest on it, and name a better agent "
                f"among equals in at most {FALSE_ALARMS:.0%} of experiments.",
                cells,
                table,
            ),
            drawing.picture(
                "improvement",
                figures.pair_intervals(table, drawing.styles),
                table,
                alt="Probability of improvement of each pair with its interval; 0.5 is no "
                "difference. "
                + "; ".join(
                    f"{r['pair']} {r['probability of improvement']}"
                    for r in cells.to_dict("records")
                ),
                caption=f"0.5 is no difference. {BOOTSTRAP}",
            ),
        ],
    )


def sample_efficiency(comparison: Comparison, results: Results, drawing: Drawing) -> Section:
    """Learning curves over all tasks, and on each."""
    blocks: list[Block] = []
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
                    y_label="IQM of normalised scores",
                ),
                overall,
                alt="Interquartile mean of normalised scores over steps, a line for each agent.",
                caption=f"Over {count(len(comparison.aggregate_tasks), 'task')}. {BOOTSTRAP}",
            )
        )
    by_task = task_curves(learning_curves(results))
    last = by_task.groupby(["task", "agent"], sort=False).last().reset_index()
    ends = "; ".join(
        f"{r['agent']} on {r['task']} {number(r['value'])}" for _, r in last.iterrows()
    )
    blocks.append(
        drawing.picture(
            "learning-curves",
            figures.curves(
                by_task,
                drawing.styles,
                x="step",
                x_label="steps",
                y_label="return",
                panel_by="task",
            ),
            by_task,
            alt=f"Mean return over steps, a panel for each task. At the end: {ends}.",
            caption=f"Mean return over seeds. {BOOTSTRAP}",
        )
    )
    return Section("Sample efficiency", blocks)


def every_run(comparison: Comparison, drawing: Drawing) -> Section:
    """Every seed's value, task by task."""
    table = final_scores(comparison)
    curves = task_curves(comparison.runs)
    seeds = sorted(table["seed"].unique())
    rows = []
    for (task, agent), part in table.groupby(["task", "agent"], sort=False):
        mean = curves[(curves["task"] == task) & (curves["agent"] == agent)].iloc[-1]
        returns = dict(zip(part["seed"], part["return"], strict=True))
        rows.append(
            {
                "task": task,
                "agent": agent,
                "step": f"{part['step'].iloc[0]:,}",
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
                "Return at the last evaluation that all agents have, of every seed. "
                f"{BOOTSTRAP} Area under the curve: the mean return over all evaluations.",
                pd.DataFrame(rows),
                table,
            )
        ],
    )


def limits(comparison: Comparison, results: Results) -> Section:
    """What a reader must not conclude."""
    seeds = min((len(runs.seeds) for runs in comparison.runs.values()), default=0)
    budgets = sorted({cell["steps"] for cell in results.cells})
    sentences = [
        f"Budgets: {listed([f'{steps:,} steps' for steps in budgets])}. An order at this budget "
        "can be another at a longer one.",
        f"Seeds: {seeds} at least in each cell. They differ in initial weights, exploration and "
        "episodes; nothing here says how much a result depends on settings, which were not tuned.",
        "Bootstrap intervals resample the seeds that were run: with few of them they are too "
        "narrow. The verdicts do not rest on them.",
        f"Tasks: {listed(tasks_of(results))}. The intervals treat them as given, not as a sample "
        "of all tasks.",
        "Times were measured while other jobs ran on the same machine: compare them loosely.",
    ]
    return Section("What the statistics do not show", [Bullets(sentences)])
