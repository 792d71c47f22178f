"""Select the runs of an experiment that are compared, and their steps; name what is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from qsm_bench.errors import UserError
from qsm_bench.groups import job_name
from qsm_bench.merging import jobs_of
from qsm_bench.protocol import Protocol
from qsm_bench.results import Results

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CellKey = tuple[str, str]
"""An agent's label and a task's name."""
ScoreRange = tuple[float, float]
FINAL, AREA_UNDER_CURVE = "at the end", "area under the curve"
"""The two scores of a run: its last evaluation, and the mean over its evaluations."""


@dataclass(frozen=True)
class Curves:
    """The learning curves of one cell."""

    seeds: tuple[int, ...]
    steps: IntArray
    """The steps of the evaluations, [steps], in ascending order."""
    returns: FloatArray
    """The mean return over each evaluation's episodes, [seeds, steps]; NaN where a run diverged."""

    def select(self, seeds: Sequence[int], steps: IntArray) -> "Curves":
        """The part with these seeds and steps. The curves must have all of them."""
        rows = [self.seeds.index(seed) for seed in seeds]
        columns = np.searchsorted(self.steps, steps)
        return Curves(tuple(seeds), steps, self.returns[rows][:, columns])

    def finite_seeds(self) -> tuple[int, ...]:
        """The seeds whose returns are all finite."""
        rows = zip(self.seeds, self.returns, strict=True)
        return tuple(seed for seed, returns in rows if np.isfinite(returns).all())


@dataclass(frozen=True)
class Comparison:
    """The runs that are compared, their steps, and what had to be left out.

    On each task, all agents are compared at the same steps: those at which every cell with runs to
    compare was evaluated. In a finished experiment these are all steps with an evaluation.
    """

    agents: tuple[str, ...]
    """The agents with at least one run to compare, in the order they were asked for."""
    tasks: tuple[str, ...]
    """The tasks with at least one run to compare."""
    runs: Mapping[CellKey, Curves]
    """The curves of each cell, finite, at the common steps of the task."""
    score_ranges: Mapping[str, ScoreRange | None]
    left_out: tuple[str, ...]
    """A sentence for everything that is missing from ``runs``, the aggregates or a pair."""
    recorded: frozenset[str] = frozenset()
    """The agents of a record: they are compared with the others, and not with each other."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two agents that are compared, whether or not they share a task."""
        return [pair for pair in combinations(self.agents, 2) if not self.recorded.issuperset(pair)]

    def shared_tasks(self, *agents: str) -> tuple[str, ...]:
        """The tasks on which all of ``agents`` have runs."""
        return tuple(t for t in self.tasks if all((a, t) in self.runs for a in agents))

    @property
    def aggregate_tasks(self) -> tuple[str, ...]:
        """The tasks on which every agent has runs and whose score range is known."""
        return tuple(t for t in self.shared_tasks(*self.agents) if self.score_ranges[t])

    def steps(self, task: str) -> IntArray:
        """The steps at which ``task`` is compared."""
        return next(runs.steps for (_, t), runs in self.runs.items() if t == task)

    def balanced(self, agent: str, tasks: Sequence[str]) -> list[FloatArray]:
        """The agent's returns [seeds, steps] on each task, with as many seeds on each task.

        rliable needs the same number of runs on every task. Where a task has more than another, its
        lowest-numbered seeds are used; runs on different tasks are independent.
        """
        curves = [self.runs[agent, task].returns for task in tasks]
        count = min(len(c) for c in curves)
        return [c[:count] for c in curves]

    def final_returns(self, agent: str, tasks: Sequence[str]) -> FloatArray:
        """The returns of the last evaluation, [seeds, tasks]."""
        return np.stack([c[:, -1] for c in self.balanced(agent, tasks)], axis=1)

    def scores(self, agent: str, measured: str = FINAL) -> FloatArray:
        """The normalized scores on the aggregate tasks, [seeds, tasks].

        ``measured`` is ``FINAL`` or ``AREA_UNDER_CURVE``.
        """
        tasks = self.aggregate_tasks
        columns = [
            normalized(c, self.score_ranges[task])
            for c, task in zip(self.balanced(agent, tasks), tasks, strict=True)
        ]
        return np.stack(
            [c[:, -1] if measured == FINAL else c.mean(axis=1) for c in columns], axis=1
        )

    def score_curves(self, agent: str) -> tuple[IntArray, FloatArray]:
        """The steps that all aggregate tasks have, and the normalized scores there.

        The scores are [seeds, tasks, steps].
        """
        tasks = self.aggregate_tasks
        steps = _common([self.steps(task) for task in tasks])
        return steps, np.stack(
            [
                normalized(c, self.score_ranges[task])[:, np.searchsorted(self.steps(task), steps)]
                for c, task in zip(self.balanced(agent, tasks), tasks, strict=True)
            ],
            axis=1,
        )


def normalized(returns: FloatArray, score_range: ScoreRange | None) -> FloatArray:
    """Map ``score_range`` linearly to [0, 1]. Values outside the range are not clipped.

    Raises ValueError if ``score_range`` is None.
    """
    if score_range is None:
        raise ValueError("a task without a score range has no normalized scores")
    low, high = score_range
    return (returns - low) / (high - low)


def learning_curves(results: Results) -> dict[CellKey, Curves]:
    """The complete evaluations of every cell that has any.

    An evaluation is complete if every seed that has evaluations has all episodes of this one. An
    evaluation that a running job is still writing is not complete, even within its last row.
    """
    curves = {}
    cells = {(c["agent"], c["task"]): c for c in results.cells}
    whole_rows = results.evaluations.dropna(subset=["length"])
    for key, found in whole_rows.groupby(["agent", "task"], sort=False):
        agent, task = str(key[0]), str(key[1])
        jobs, failed = jobs_of(cells[agent, task]), failed_jobs(cells[agent, task])
        if len(failed) < len(jobs):  # those that failed must not keep the others back
            seeds = [seed for job in failed for seed in job["seeds"]]
            found = found[~found["seed"].isin(seeds)]
        returns = found.groupby(["seed", "step"])["return"]
        table = returns.mean().where(returns.count() == returns.size()).unstack("step")
        episodes = cells[agent, task]["eval_episodes"]
        complete = (returns.size().unstack("step") >= episodes).all(axis=0).to_numpy()
        if complete.any():
            curves[agent, task] = Curves(
                tuple(int(seed) for seed in table.index),
                table.columns.to_numpy(dtype=np.int64)[complete],
                table.to_numpy(dtype=np.float64)[:, complete],
            )
    return curves


def select_runs(results: Results) -> Comparison:
    """Select the runs to compare. Raises UserError if the experiment has no evaluation yet."""
    curves = learning_curves(results)
    if not curves and results.damaged:
        raise UserError(
            f"experiment {results.name!r} has nothing to report: {len(results.damaged)} of its "
            f"jobs cannot be read, the first because {results.damaged[0].fault}"
        )
    if not curves:
        raise UserError(
            f"experiment {results.name!r} has no evaluations yet: there is nothing to report "
            "before the first one"
        )
    runs: dict[CellKey, Curves] = {}
    left_out: list[str] = []
    for task in tasks_of(results):
        task_runs, reasons = _select_runs(task, curves, results)
        runs |= task_runs
        left_out += reasons
    external, reasons = _external_runs(runs, results)
    runs |= external
    left_out += reasons
    agents = [*agents_of(results), *(agent for agent, _ in external)]
    comparison = Comparison(
        agents=tuple(a for a in dict.fromkeys(agents) if any(a == agent for agent, _ in runs)),
        tasks=tuple(t for t in tasks_of(results) if any(t == task for _, task in runs)),
        runs=runs,
        score_ranges=_score_ranges(results),
        left_out=(),
        recorded=frozenset(results.beside.agents),
    )
    left_out += _left_out_of_aggregates(comparison, results)
    left_out += _left_out_of_balance(comparison)
    return replace(comparison, left_out=tuple(left_out))


def agents_of(results: Results) -> list[str]:
    """The labels of the agents: first those of the experiment, then any others on disk."""
    return list(
        dict.fromkeys([*results.experiment["agents"], *(c["agent"] for c in results.cells)])
    )


def tasks_of(results: Results) -> list[str]:
    """The names of the tasks: first those of the experiment, then any others on disk."""
    return list(dict.fromkeys([*results.experiment["tasks"], *(c["task"] for c in results.cells)]))


def _select_runs(
    task: str, curves: Mapping[CellKey, Curves], results: Results
) -> tuple[dict[CellKey, Curves], list[str]]:
    """The runs to compare on one task, and a sentence for everything that is left out there."""
    cells = {cell["agent"]: cell for cell in results.cells if cell["task"] == task}
    finite: dict[CellKey, Curves] = {}
    reasons = []
    for agent in agents_of(results):
        cell, curve = cells.get(agent), curves.get((agent, task))
        damaged = [d for d in results.damaged if (d.agent, d.task) == (agent, task)]
        failed = [] if cell is None else failed_jobs(cell)
        for part in damaged:
            name = job_name(agent, task, part.seeds if cell else ())
            reasons.append(f"{name}: it is damaged.")
        for job in failed:
            name = job_name(agent, task, job["seeds"] if job is not cell else ())
            why = f" ({job['reason']})" if job["reason"] else ""
            step = f"failed at step {job['step']:,}"
            reasons.append(f"{name}: {step}{why}.")
        if cell is None:
            if not damaged and agent not in results.beside.agents:
                reasons.append(f"{agent} on {task}: it was not run.")
        elif len(failed) == len(jobs_of(cell)):
            pass  # each was named above
        elif curve is None:
            reasons.append(f"{agent} on {task}: no complete evaluation.")
        else:
            seeds = curve.finite_seeds()
            named = {seed for job in failed for seed in job["seeds"]}
            failures = {int(seed): fault for seed, fault in cell.get("failed_seeds", {}).items()}
            for seed, fault in failures.items():
                reasons.append(
                    f"{agent} on {task}, seed {seed}: failed at step {fault['step']:,} "
                    f"({fault['reason']})."
                )
            for seed in sorted({*cell["seeds"], *curve.seeds} - {*seeds, *named}):
                if seed in failures:
                    continue
                why = "a return is not finite" if seed in curve.seeds else "no evaluation"
                reasons.append(f"{agent} on {task}, seed {seed}: {why}.")
            if seeds:
                finite[agent, task] = curve.select(seeds, curve.steps)
    steps = _common([curve.steps for curve in finite.values()])
    if finite and not len(steps):
        return {}, [*reasons, f"{task}: its agents were never evaluated at the same step."]
    if finite:
        due = {step for curve in finite.values() for step in curve.steps.tolist()}
        due |= {step for agent, _ in finite for step in evaluated_steps(cells[agent])}
        reasons += _left_out_steps(task, steps.tolist(), sorted(due))
    return {key: curve.select(curve.seeds, steps) for key, curve in finite.items()}, reasons


def failed_jobs(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The jobs of a merged cell that have failed, as ``merging.jobs_of`` has them."""
    return [job for job in jobs_of(cell) if job["status"] == "failed"]


def external_curves(results: Results) -> dict[CellKey, Curves]:
    """Every curve from elsewhere, at the steps that all its seeds have and that ours reach."""
    budgets = results.budgets
    curves = {}
    for curve in results.curves_elsewhere:
        task = curve.task
        table = curve.rows.pivot(index="seed", columns="step", values="return")
        counts = curve.rows.groupby("step").size()
        of_all = [int(step) for step in counts.index[counts == len(table)]]
        steps = [step for step in of_all if step <= budgets.get(task, 0)]
        if steps:
            curves[curve.name, task] = Curves(
                tuple(int(seed) for seed in table.index),
                np.array(steps, dtype=np.int64),
                table[steps].to_numpy(dtype=np.float64),
            )
    return curves


def _external_runs(
    runs: Mapping[CellKey, Curves], results: Results
) -> tuple[dict[CellKey, Curves], list[str]]:
    """The imported runs that are compared, too, and a sentence for what cannot be.

    Their protocol was declared equal, and they have every step of every task at which ours are
    compared: an import never makes the comparison of our own agents smaller.
    """
    curves = external_curves(results)
    equal = [c for c in results.external.curves if c.declared.equal_protocol]
    steps = {task: curve.steps for (_, task), curve in runs.items()}
    joined: dict[CellKey, Curves] = {}
    reasons = []
    for name in dict.fromkeys(curve.name for curve in equal):
        tasks = {c.declared.task for c in equal if c.name == name}
        fits: dict[CellKey, Curves] = {}
        fault = None
        for task, due in steps.items():
            curve = curves.get((name, task)) if task in tasks else None
            missing = np.setdiff1d(due, curve.steps if curve else [])
            if len(missing):
                fault = f"{name}: it has no value at step {missing[0]:,} of {task}."
            elif curve and not (seeds := curve.finite_seeds()):
                fault = f"{name}: no seed of it has finite returns on {task}."
            elif curve:
                fits[name, task] = curve.select(seeds, due)
                reasons += [
                    f"{name} on {task}, seed {seed}: a return is not finite."
                    for seed in curve.seeds
                    if seed not in seeds
                ]
        reasons += [fault] if fault else []
        joined |= {} if fault else fits
    return joined, reasons


def evaluated_steps(cell: Mapping[str, Any]) -> list[int]:
    """The steps at which a finished cell has been evaluated, or one that is planned will be."""
    return Protocol(**cell["protocol"]).evaluated_steps(cell.get("lengths", ()))


def _left_out_steps(task: str, steps: Sequence[int], due: Sequence[int]) -> list[str]:
    """Sentences for the steps of existing or planned evaluations that are not compared."""
    why = "not every agent and seed has a complete evaluation there"
    last, end = steps[-1], due[-1]
    gaps = [f"{step:,}" for step in due if step < last and step not in steps]
    reasons = [f"{task}, at step {', '.join(gaps)}: {why}."] if gaps else []
    return [*reasons, f"{task}, after step {last:,} of {end:,}: {why}."] if end > last else reasons


def _left_out_of_aggregates(comparison: Comparison, results: Results) -> list[str]:
    reasons = []
    for agent in agents_of(results):
        if agent not in comparison.agents:
            reasons.append(f"{agent}: it has no run to compare.")
    shared = comparison.shared_tasks(*comparison.agents)
    for task in comparison.tasks:
        if task not in shared:
            absent = [a for a in comparison.agents if (a, task) not in comparison.runs]
            reasons.append(f"{task} is not in the aggregates: no run of {', '.join(absent)}.")
        elif not comparison.score_ranges[task]:
            reasons.append(f"{task} is not in the aggregates: its score range is not known.")
    common = _common([comparison.steps(task) for task in comparison.aggregate_tasks])
    for task in comparison.aggregate_tasks:
        if count := len(comparison.steps(task)) - len(common):
            reasons.append(
                f"{count} evaluations of {task} are not in the aggregate learning curve: not every "
                "task has one at the same step."
            )
    return reasons


def _left_out_of_balance(comparison: Comparison) -> list[str]:
    """Sentences for the seeds that ``Comparison.balanced`` leaves out of aggregates and pairs."""
    uses = [("the aggregates", agent, comparison.aggregate_tasks) for agent in comparison.agents]
    for pair in comparison.pairs:
        for agent, other in (pair, pair[::-1]):
            uses.append((f"the pair with {other}", agent, comparison.shared_tasks(*pair)))
    without: dict[tuple[str, str, int], list[str]] = {}
    for use, agent, tasks in uses:
        counts = {task: len(comparison.runs[agent, task].seeds) for task in tasks}
        for task, count in counts.items():
            if count > (least := min(counts.values())):
                without.setdefault((agent, task, least), []).append(use)
    return [
        f"{agent} on {task}, seed "
        f"{', '.join(map(str, comparison.runs[agent, task].seeds[least:]))}: not used in "
        f"{', '.join(names)}, since another task has only {least}, and all tasks count equally."
        for (agent, task, least), names in without.items()
    ]


def _score_ranges(results: Results) -> dict[str, ScoreRange | None]:
    ranges: dict[str, ScoreRange | None] = {}
    for cell in results.cells:
        low, high = cell["score_range"] or (0.0, 0.0)
        ranges[cell["task"]] = (low, high) if high > low else None
    return ranges


def _common(steps: Sequence[IntArray]) -> IntArray:
    return reduce(np.intersect1d, steps) if steps else np.array([], dtype=np.int64)
