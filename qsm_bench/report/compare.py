"""Compare two experiments: before and after a change, or on two machines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from qsm_bench.counting import count
from qsm_bench.errors import UserError
from qsm_bench.external import External
from qsm_bench.relabeling import part_of, relabeled
from qsm_bench.report import figures, runs
from qsm_bench.report.document import (
    Block,
    Bullets,
    Document,
    Section,
    Table,
    Text,
    Warnings,
    write_document,
)
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.folder import replacing
from qsm_bench.report.wording import (
    BOOTSTRAP,
    NONE,
    interval,
    listed,
    number,
    p_value_text,
)
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.estimates import bootstrap
from qsm_bench.statistics.selection import FloatArray, agents_of, tasks_of
from qsm_bench.statistics.significance import FALSE_ALARMS, compare_pairs, names_better

SAME, NOT_FOUND = "the same numbers", "no difference found"
DIFFERENT = "different"
"""The outcome of a verdict where the agent that wins more runs has the lower mean return."""


@dataclass(frozen=True)
class Change:
    """Two experiments as one, in which every agent appears twice."""

    first: Results
    second: Results

    @cached_property
    def names(self) -> tuple[str, str]:
        """The names of the two experiments; different even if both have the same name."""
        if self.first.name == self.second.name:
            return f"{self.first.name} (first)", f"{self.second.name} (second)"
        return self.first.name, self.second.name

    @cached_property
    def agents(self) -> list[str]:
        """The agents that both have. Raises UserError if they share no agent or no task."""
        shared = [a for a in agents_of(self.first) if a in agents_of(self.second)]
        for kind, names in (("agent", shared), ("task", self.tasks)):
            if not names:
                theirs = [agents_of(each) for each in (self.first, self.second)]
                has = f" ({listed(theirs[0])}; {listed(theirs[1])})" if kind == "agent" else ""
                raise UserError(
                    f"{listed(self.names)} have no {kind} in common{has}: nothing to compare"
                )
        return shared

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks that both have."""
        return [t for t in tasks_of(self.first) if t in tasks_of(self.second)]

    @cached_property
    def analysis(self) -> Analysis:
        """The tables of both, for the agents and tasks that they share."""
        sides = [
            _renamed(results, {a: labels[i] for a, labels in self.labels.items()}, self.tasks)
            for i, results in enumerate((self.first, self.second))
        ]
        return Analysis(
            Results(
                name=" and ".join(self.names),
                experiment={
                    "agents": [label for labels in self.labels.values() for label in labels],
                    "tasks": self.tasks,
                },
                cells=[cell for side in sides for cell in side.cells],
                evaluations=pd.concat([s.evaluations for s in sides], ignore_index=True),
                training=pd.concat([s.training for s in sides], ignore_index=True),
                diagnostics=sides[0].diagnostics[:0],
                slices=sides[0].slices[:0],
            )
        )

    @cached_property
    def labels(self) -> Mapping[str, tuple[str, str]]:
        """For each agent, its labels in the first and in the second experiment."""
        before, after = self.names
        return {agent: (f"{agent} in {before}", f"{agent} in {after}") for agent in self.agents}

    @cached_property
    def overall(self) -> pd.DataFrame:
        """A row for each agent: its second experiment against its first, over all tasks.

        The columns of ``compare_pairs``, and: agent, outcome (which is better, or one of ``SAME``,
        ``NOT_FOUND`` and ``DIFFERENT``).
        """
        shared = self.analysis.comparison.shared_tasks
        pairs = {a: (*labels, shared(*labels)) for a, labels in self.labels.items()}
        pairs = {agent: pair for agent, pair in pairs.items() if pair[2]}
        table = compare_pairs(self.analysis.comparison, list(pairs.values()))
        table.insert(0, "agent", list(pairs))
        same = [self._is_same(agent, pair[2]) for agent, pair in pairs.items()]
        return table.assign(outcome=_outcomes(table, same))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for each cell: an agent's second experiment against its first, on one task.

        The columns of ``overall``, and: task, first and second (mean returns), difference (second
        minus first), low and high (the bootstrap interval of the difference).
        """
        comparison = self.analysis.comparison
        keys = [
            (agent, task)
            for agent, labels in self.labels.items()
            for task in comparison.shared_tasks(*labels)
        ]
        table = compare_pairs(comparison, [(*self.labels[agent], [task]) for agent, task in keys])
        same = [self._is_same(agent, [task]) for agent, task in keys]
        table = table.assign(outcome=_outcomes(table, same))
        table = table.drop(columns=["low", "high", "tasks", "wins", "ties"])
        table.insert(0, "agent", [agent for agent, _ in keys])
        table.insert(1, "task", [task for _, task in keys])
        rows = []
        for agent, task in keys:
            x, y = (comparison.final_returns(label, [task]) for label in self.labels[agent])
            value, low, high = bootstrap(_difference, y, x)
            rows.append((x.mean(), y.mean(), value[0], low[0], high[0]))
        table[["first", "second", "difference", "low", "high"]] = rows
        return table

    def _is_same(self, agent: str, tasks: Sequence[str]) -> bool:
        x, y = (
            [self.analysis.comparison.runs[label, task] for task in tasks]
            for label in self.labels[agent]
        )
        return all(
            a.seeds == b.seeds and bool((a.returns == b.returns).all())
            for a, b in zip(x, y, strict=True)
        )

    @cached_property
    def verdict(self) -> list[str]:
        """One sentence for all agents together, then one for each agent."""
        outcomes = list(self.overall["outcome"])
        different = list(self.overall.loc[self.overall["verdict"], "agent"])
        cells = self.cells[self.cells["verdict"]]
        if not outcomes:
            return ["Nothing can be compared: no cell has runs in both."]
        if different:
            summary = f"Difference found: {listed(different)}."
        elif len(cells):
            where = [f"{r['agent']} on {r['task']}" for r in cells.to_dict("records")]
            summary = f"No difference found over all tasks, but in some cells: {listed(where)}."
        elif all(outcome == SAME for outcome in outcomes):
            summary = "Both have exactly the same numbers."
        else:
            summary = "No difference found."
        return [summary, *(self._sentence(row) for row in self.overall.to_dict("records"))]

    def _sentence(self, row: Mapping[Any, Any]) -> str:
        tasks = count(row["tasks"], "task")
        if row["outcome"] == SAME:
            return f"{row['agent']}: exactly the same returns in both, on {tasks}."
        higher = f"higher mean return on {row['wins']} of {tasks}"
        improvement = interval(row["probability"], row["low"], row["high"])
        evidence = (
            f"a run of {row['better']} beats one of {row['worse']} with probability {improvement}; "
            f"{p_value_text(row['p'])}, adjusted for all agents"
        )
        if row["verdict"]:
            subject = f"{row['better']} has the " if row["outcome"] == DIFFERENT else ""
            return f"{row['agent']}: {row['outcome']}; {subject}{higher}; {evidence}."
        why = (
            f"a verdict needed a probability of at least {number(row['detectable'])}"
            if row["attainable"]
            else "so few runs could not have led to a verdict, whatever their returns"
        )
        return f"{row['agent']}: {NOT_FOUND}; {evidence}; {why}."


def write_comparison(first: Results, second: Results, folder: Path) -> tuple[Path, str]:
    """Write index.html, report.md, figures/ and data/ on what changed from ``first`` to ``second``.

    Returns the path of index.html, and the verdict as plain text. Raises UserError if they share no
    agent or no task, and where ``write_report`` does.
    """
    change = Change(first, second)
    verdict = change.verdict
    with replacing(folder) as fresh:
        drawing = Drawing.into(fresh, change.names)
        write_document(
            Document(
                title=f"{change.names[0]} against {change.names[1]}",
                lead="Two experiments, agent by agent, at the steps at which both were evaluated.",
                sections=[
                    _answer(change),
                    _cells(change, drawing),
                    _settings(change),
                    Section("What is missing", [Bullets(_missing(change))]),
                    Section("What the statistics do not show", [Bullets(LIMITS)]),
                ],
            ),
            fresh,
        )
    return folder / "index.html", "\n".join(verdict)


LIMITS = (
    f"If two experiments are equal, at most {FALSE_ALARMS:.0%} of comparisons find a difference "
    "for any agent; the same holds for the cells. The tests are exact permutation tests with "
    "Holm's adjustment, over all agents and over all cells.",
    "If no difference is found, there may still be one: with few seeds, only large differences can "
    "be found.",
    "The runs of one seed in both experiments are treated as independent. If they are more alike "
    "than that, differences are found less often, not more often.",
)


def _answer(change: Change) -> Section:
    blocks: list[Block] = [Bullets(change.verdict)]
    damaged = len(change.first.damaged) + len(change.second.damaged)
    if damaged:
        warning = f'{count(damaged, "job")} of the two cannot be read: see "What is missing".'
        blocks.append(Warnings([warning]))
    return Section("The answer", blocks)


def _cells(change: Change, drawing: Drawing) -> Section:
    table = change.cells
    if table.empty:
        return Section("Cell by cell", [Text("No cell has runs in both.")])
    before, after = change.names
    shown = pd.DataFrame(
        {
            "agent": row["agent"],
            "task": row["task"],
            f"mean return in {before}": number(row["first"], 4),
            f"in {after}": number(row["second"], 4),
            "difference": interval(row["difference"], row["low"], row["high"]),
            "p": number(row["p"], 2),
            "verdict": row["outcome"],
        }
        for row in table.to_dict("records")
    )
    curves = change.analysis.task_curves
    of = {
        label: (agent, name)
        for agent, labels in change.labels.items()
        for label, name in zip(labels, change.names, strict=True)
    }
    curves = curves.assign(
        agent=[of[label][1] for label in curves["agent"]],
        cell=[
            f"{of[label][0]} on {task}"
            for label, task in zip(curves["agent"], curves["task"], strict=True)
        ],
    )
    return Section(
        "Cell by cell",
        [
            Table(
                "cells",
                f"Mean return at the last common evaluation. {BOOTSTRAP} p: exact permutation test "
                "of the hypothesis that the runs are equal, with Holm's adjustment over all cells.",
                shown,
                table,
            ),
            drawing.picture(
                "learning-curves",
                figures.curves(
                    curves,
                    drawing.styles,
                    x="step",
                    x_label="steps",
                    y_label="return",
                    panel_by="cell",
                ),
                curves,
                alt="Mean return over steps in both experiments, a panel for each agent and task. "
                "Differences at the end: "
                + "; ".join(
                    f"{r['agent']} on {r['task']} {r['difference']}"
                    for r in shown.to_dict("records")
                )
                + ".",
                caption=f"Mean return over seeds. {BOOTSTRAP}",
            ),
        ],
    )


def _settings(change: Change) -> Section:
    """The settings and conditions that differ between the two experiments."""
    rows = list(_differences(change))
    blocks: list[Block] = [Text("Settings, protocol, versions and hardware are the same.")]
    if rows:
        frame = pd.DataFrame(rows)
        blocks = [Table("differences", f"{NONE}: not set, or not recorded.", frame, frame)]
    warnings = [runs.condition_warning(results) for results in (change.first, change.second)]
    blocks = [*(Text(warning) for warning in warnings if warning), *blocks]
    return Section("What differs besides the scores", blocks)


def _differences(change: Change) -> Iterator[dict[str, str]]:
    sides = [
        {
            **{row["what"]: row["value"] for row in runs.protocol_of(results)},
            **{row["what"]: row["value"] for row in runs.environment_of(results)},
            **{
                f"{agent}: {name}": value
                for agent in change.agents
                for name, value in runs.settings_of(results, agent).items()
            },
        }
        for results in (change.first, change.second)
    ]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name, NONE) for side in sides]
        if values[0] != values[1]:
            yield {"what": name, **dict(zip(change.names, values, strict=True))}


def _missing(change: Change) -> list[str]:
    sentences = []
    for name, mine, other in (
        (change.names[0], change.first, change.second),
        (change.names[1], change.second, change.first),
    ):
        for kind, names_of in (("agent", agents_of), ("task", tasks_of)):
            only = [n for n in names_of(mine) if n not in names_of(other)]
            if only:
                sentences.append(f"Only {name} has the {kind} {listed(only)}.")
        sentences += [f"In {name}: {sentence}" for sentence in runs.damaged_jobs(mine)]
    sentences += change.analysis.comparison.left_out
    return sentences or ["Nothing: every cell of both is compared."]


def _renamed(results: Results, labels: Mapping[str, str], tasks: list[str]) -> Results:
    """The part of the results with these agents and tasks, the agents under their new labels."""
    kept = part_of(results, labels, tasks)
    return relabeled(replace(kept, external=External()), labels)


def _outcomes(table: pd.DataFrame, same: list[bool]) -> list[str]:
    return [
        SAME
        if equal
        else f"{row['better']} is better"
        if named
        else DIFFERENT
        if row["verdict"]
        else NOT_FOUND
        for row, named, equal in zip(
            table.to_dict("records"), names_better(table), same, strict=True
        )
    ]


def _difference(x: FloatArray, y: FloatArray) -> FloatArray:
    difference: FloatArray = x.mean(axis=0) - y.mean(axis=0)
    return difference
