"""Measure what stages cost and save, on simulated scores with known truth.

    python tests/benchmarks/stages.py

rewrites the tables of docs/statistics.md. The worlds are those of ``coverage.py``. Verdicts come
from the code that the report uses.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qsm_bench.stages import FALSE_ALARMS, Stages, text_of
from qsm_bench.statistics.selection import Comparison, Curves, FloatArray
from qsm_bench.statistics.stages import Look, looks
from tests.benchmarks.coverage import MEANS, WORLDS, draw, percent, table

COUNTS = (5, 10, 20)
EQUAL = {"2 equal agents": (0, 0), "5 equal agents": (0, 0, 0, 0, 0)}
UNEQUAL = {
    "one of 2 better": (1, 0),
    "one of 5 better": (1, 0, 0, 0, 0),
    "all 5 different": (4, 3, 2, 1, 0),
}
"""How many steps each agent is better than the worst."""
STEPS = (0.25, 0.5, 1.0, 2.0)
"""The steps, in spreads of a task."""
TASKS = tuple(f"task-{number}" for number in range(len(MEANS)))
DOCUMENT = Path("docs/statistics.md")
BEGIN, END = "<!-- tests/benchmarks/stages.py -->\n", "<!-- end -->\n"


def plan(agents: int, counts: Sequence[int]) -> Stages:
    """Return a plan for agents that are named by their numbers."""
    seeds = range(counts[-1])
    return Stages.declare(seeds, counts, [str(number) for number in range(agents)], TASKS, 1)


@dataclass
class Simulated:
    """An experiment whose runs all exist; it notes those that were asked for."""

    scores: FloatArray
    """Of shape [agents, seeds, tasks]."""
    stages: Stages

    def __post_init__(self) -> None:
        self.seeds = dict.fromkeys(self.stages.agents, 0)
        """How many seeds each agent was trained with."""

    def runs(self, number: int, agents: Collection[str]) -> Comparison:
        """Train ``agents`` with the seeds up to a stage, and return the runs."""
        self.seeds |= dict.fromkeys(agents, self.stages.counts[number])
        curves = {
            (agent, task): self._curves(int(agent), column, self.seeds[agent])
            for agent in self.stages.agents
            for column, task in enumerate(TASKS)
        }
        return Comparison(self.stages.agents, TASKS, curves, dict.fromkeys(TASKS), ())

    def _curves(self, agent: int, column: int, seeds: int) -> Curves:
        returns = self.scores[agent, :seeds, column, np.newaxis]
        return Curves(tuple(range(seeds)), np.array([1]), returns)

    def verdicts(self) -> set[tuple[str, str]]:
        """Go through the stages. Returns the pairs that have a verdict, each in its order."""
        taken: list[Look] = list(looks(self.stages, self.runs))
        return {*combinations(self.stages.agents, 2)} - {*taken[-1].open}


@dataclass(frozen=True)
class Rates:
    """What came of many experiments."""

    false_alarms: float
    """The share of experiments with a verdict on equal agents."""
    found: float
    """The share of the different pairs that have a verdict; NaN if all agents are equal."""
    runs: float
    """The mean number of runs that were trained."""


def rates(world: str, shifts: Sequence[float], counts: Sequence[int], simulations: int) -> Rates:
    """Simulate experiments in which the agents are ``shifts`` spreads better than the scores."""
    rng = np.random.default_rng([*(round(100 * shift) for shift in shifts), *world.encode()])
    stages = plan(len(shifts), counts)
    pairs = combinations(stages.agents, 2)
    different = {(a, b) for a, b in pairs if shifts[int(a)] != shifts[int(b)]}
    alarms, found, runs = 0, 0, 0
    for _ in range(simulations):
        drawn = [draw(rng, COUNTS[-1], fails=WORLDS[world], shift=shift) for shift in shifts]
        experiment = Simulated(np.stack(drawn), stages)
        verdicts = experiment.verdicts()
        alarms += bool(verdicts - different)
        found += len(verdicts & different)
        runs += sum(experiment.seeds.values()) * len(TASKS)
    due = len(different) * simulations
    return Rates(alarms / simulations, found / due if due else np.nan, runs / simulations)


def tables(simulations: int) -> Iterator[str]:
    """Return the lines of the document."""
    last, name = COUNTS[-1], text_of(COUNTS)
    heads = [f"{last} seeds at once", f"stages {name}", "runs", "share of runs"]
    yield (
        f"How often equal agents get a verdict ({simulations:,} experiments each, {len(TASKS)} "
        f"tasks; at most {FALSE_ALARMS:.0%} is promised), and how many runs are trained in stages:"
    )
    yield from table(
        ["world", "agents", *heads],
        [
            [world, kind, *_compared(world, steps, simulations)]
            for world in WORLDS
            for kind, steps in EQUAL.items()
        ],
    )
    yield (
        "How often two different agents get a verdict, with a step of so many spreads of a task "
        f"from an agent to the next better one ({simulations:,} experiments each; the share of "
        "all different pairs):"
    )
    yield from table(
        ["world", "agents", "step", *heads],
        [
            [world, kind, step, *_compared(world, [step * n for n in steps], simulations)]
            for world in WORLDS
            for kind, steps in UNEQUAL.items()
            for step in STEPS
        ],
    )


def _compared(world: str, shifts: Sequence[float], simulations: int) -> list[str]:
    """Compare stages with all seeds at once, in one world."""
    at_once = rates(world, shifts, COUNTS[-1:], simulations)
    staged = rates(world, shifts, COUNTS, simulations)
    shown = [r.found if any(shifts) else r.false_alarms for r in (at_once, staged)]
    return [
        *map(percent, shown),
        f"{staged.runs:.0f} of {at_once.runs:.0f}",
        percent(staged.runs / at_once.runs),
    ]


def main(
    simulations: Annotated[int, typer.Option(help="Simulated experiments of each case.")] = 4_000,
) -> None:
    """Rewrite the tables of docs/statistics.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(tables(simulations))
    DOCUMENT.write_text(f"{before}{BEGIN}{lines}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
