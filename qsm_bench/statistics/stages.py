"""Tests of an experiment in stages: each open pair is tested as a stage ends; a verdict stays.

Each stage has its share of the false alarms, and Holm's procedure goes over the pairs that are
still open. Why all stages together keep the promised share: up to the first false verdict, all
pairs of equal agents are open. So a false verdict at a stage needs a p of such a pair of at most
the stage's share / the number of such pairs. That has at most the probability of the stage's share,
and the shares add up.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.counting import count
from qsm_bench.merging import jobs_of
from qsm_bench.results import Results
from qsm_bench.stages import Stages
from qsm_bench.statistics.selection import Comparison, select_runs
from qsm_bench.statistics.significance import (
    AgentPair,
    check_pairs,
    describe_pairs,
    names_better,
    with_tasks,
)

Pair = tuple[str, str]
"""The labels of two agents, in the order of the plan."""
Runs = Callable[[int, Collection[str]], Comparison | None]
"""Returns the runs of the seeds up to a stage, which counts from 0; None if one of the agents has
not finished its seeds there."""


@dataclass(frozen=True)
class Look:
    """The test at the end of one stage."""

    number: int
    """Of the stage, from 0 on."""
    comparison: Comparison
    """The runs of the seeds up to this stage."""
    pairs: tuple[AgentPair, ...]
    """Those that were open and have runs to compare."""
    tests: pd.DataFrame
    """A row for each of ``pairs``: see ``check_pairs`` for the columns."""
    open: tuple[Pair, ...]
    """The pairs that have no verdict after it."""

    @property
    def open_agents(self) -> tuple[str, ...]:
        """The agents that are in a pair without a verdict."""
        return agents_in(self.open)


def looks(stages: Stages, runs: Runs) -> Iterator[Look]:
    """Test stage after stage, up to the last one that has ended.

    It ends earlier if no pair is open.
    """
    still_open = tuple(combinations(stages.agents, 2))
    for number, share in enumerate(stages.shares):
        comparison = runs(number, agents_in(still_open)) if still_open else None
        if comparison is None:
            return
        pairs = tuple(with_tasks(comparison, still_open))
        tests = check_pairs(comparison, pairs, level=share, tests=len(still_open))
        decided = {
            (first, second)
            for (first, second, _), verdict in zip(pairs, tests["verdict"], strict=True)
            if verdict
        }
        still_open = tuple(pair for pair in still_open if pair not in decided)
        yield Look(number, comparison, pairs, tests, still_open)


def looks_at(results: Results, stages: Stages, *, all_present: bool = False) -> list[Look]:
    """The tests of every stage of an experiment that has ended.

    Agents that were removed from it are left out, and their pairs are not tested. For a run, with
    ``all_present``, they have not finished: it trains them again.

    A stage has ended when every agent in an open pair has finished its seeds on every task of the
    plan. A seed that diverged or whose environment failed has finished: it is left out of the
    comparison. A job that failed has not finished: a stage is tested once, on all that it has.
    """

    def runs(number: int, agents: Collection[str]) -> Comparison | None:
        seeds = stages.seeds_until(number)
        there = results.experiment["agents"]
        present = [agent for agent in agents if all_present or agent in there]
        due = {(agent, task, s) for agent in present for task in stages.tasks for s in seeds}
        return select_runs(up_to(results, seeds)) if due and due <= _finished(results) else None

    return list(looks(stages, runs))


def staged_pairs(comparison: Comparison, stages: Stages, taken: Sequence[Look]) -> pd.DataFrame:
    """Describe every pair of the plan as it was at its last test. Returns a row for each pair.

    ``taken`` are the tests so far. Before the first one, pairs are described by ``comparison``.
    Pairs of agents that share no task with runs have no row.

    The columns of ``compare_pairs``, in which p is NaN for a pair that was not tested yet, and:
        stage: the number of seeds of the stage at which the verdict fell; NaN without a verdict.
    """
    rows: dict[Pair, pd.DataFrame] = {
        pair[:2]: describe_pairs(comparison, [pair]).assign(**UNTESTED)
        for pair in with_tasks(comparison, list(combinations(stages.agents, 2)))
        if not taken
    }
    last = {pair[:2]: (look, row) for look in taken for row, pair in enumerate(look.pairs)}
    for pair, (look, row) in last.items():
        tested = look.tests.iloc[[row]].reset_index(drop=True)
        described = describe_pairs(look.comparison, [look.pairs[row]])
        verdict = bool(tested["verdict"].iloc[0])
        rows[pair] = pd.concat([described, tested], axis=1).assign(
            stage=float(stages.counts[look.number]) if verdict else np.nan
        )
    ordered = [rows[pair] for pair in combinations(stages.agents, 2) if pair in rows]
    if ordered:
        return pd.concat(ordered, ignore_index=True)
    empty = pd.concat([describe_pairs(comparison, []), check_pairs(comparison, [])], axis=1)
    return empty.assign(stage=np.nan)


UNTESTED: dict[str, Any] = {
    "p": np.nan,
    "attainable": True,
    "verdict": False,
    "detectable": np.nan,
    "stage": np.nan,
}
"""The columns of a test for a pair before its first one."""


def sentence(look: Look, stages: Stages) -> str:
    """What was decided at a stage, and who gets more seeds, in one line."""
    found = _verdicts(look)
    number, last = len(look.open), look.number + 1 == len(stages.seeds)
    pairs = {0: "no pair is open", 1: "1 pair is open"}.get(number, f"{number} pairs are open")
    parts = [", ".join(found) or "no verdict", pairs]
    if number and not last:
        *others, end = look.open_agents
        more = len(stages.seeds[look.number + 1])
        parts.append(f"{', '.join(others)} and {end} get {more} more seed{'s' if more > 1 else ''}")
    return (
        f"stage {look.number + 1} of {len(stages.seeds)}, "
        f"{count(stages.counts[look.number], 'seed')}: {'; '.join(parts)}"
    )


def next_stage(looks: Sequence[Look], stages: Stages) -> int | None:
    """The number, from 0 on, of the stage that is to be tested next; None if all is decided."""
    ended = len(looks) == len(stages.seeds) or (looks and not looks[-1].open)
    return None if ended else len(looks)


def progress(looks: Sequence[Look], stages: Stages) -> list[str]:
    """What was decided at each stage that has ended, and which one is next, a line each."""
    lines = [sentence(look, stages) for look in looks]
    number = next_stage(looks, stages)
    if number is not None:
        lines.append(
            f"stage {number + 1} of {len(stages.seeds)}, {count(stages.counts[number], 'seed')}, "
            "has not been tested: give the experiment's run command until it has ended"
        )
    return lines


def agents_in(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The agents of the pairs, each once, in the order in which they stand there."""
    return tuple(dict.fromkeys(agent for pair in pairs for agent in pair))


def _verdicts(look: Look) -> list[str]:
    decided = [
        pair for pair, verdict in zip(look.pairs, look.tests["verdict"], strict=True) if verdict
    ]
    return verdict_texts(describe_pairs(look.comparison, decided).assign(verdict=True))


def verdict_texts(pairs: pd.DataFrame) -> list[str]:
    """A clause for each row of ``compare_pairs``, all of which have a verdict."""
    return [
        f"{row['better']} is better than {row['worse']}"
        if better
        else f"{row['better']} and {row['worse']} differ, but neither is better"
        for (_, row), better in zip(pairs.iterrows(), names_better(pairs), strict=True)
    ]


def _finished(results: Results) -> set[tuple[str, str, int]]:
    """Every agent, task and seed whose job has finished."""
    return {
        (cell["agent"], cell["task"], seed)
        for cell in results.cells
        for job in jobs_of(cell)
        if job["status"] == "finished"
        for seed in job["seeds"]
    }


def up_to(results: Results, seeds: Sequence[int]) -> Results:
    """The results as they would be with these seeds alone; no job has others beside them."""
    cells = []
    for cell in results.cells:
        jobs = [job for job in jobs_of(cell) if set(job["seeds"]) <= set(seeds)]
        if jobs:
            groups = jobs if cell.get("groups") else []
            cells.append(cell | {"seeds": [s for j in jobs for s in j["seeds"]], "groups": groups})
    rows = results.evaluations
    return replace(results, cells=cells, evaluations=rows[rows["seed"].isin(seeds)])
