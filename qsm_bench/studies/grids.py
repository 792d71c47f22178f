"""Gridworlds, and where QSM's iteration and soft policy iteration end in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from qsm_bench.studies import tabular
from qsm_bench.studies.tabular import Array, Ending, Process

GOALS = {"A": 1.0, "B": 0.2}
"""The reward of each action that is taken in a goal, whatever it is; it leads to the start."""
DISCOUNT = 0.95
MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
"""The four actions, as steps in rows and columns. A step into a wall or the edge stays."""

QSM, SOFT = "qsm", "soft policy iteration"
ITERATIONS = {QSM: tabular.qsm, SOFT: tabular.soft_policy_iteration}
SMALL, LARGE = 0.001, 10_000.0
"""The alphas that stand for the limits 0 and infinity."""
STARTS = 20
"""From so many other policies each iteration is tried as well: the best one, and random ones."""
APART = 1e-6
"""Policies that differ by more in a probability are different ends of an iteration."""


@dataclass(frozen=True)
class Grid:
    """A gridworld, drawn as rows of characters."""

    rows: Sequence[str]

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        """Row and column of each state: all places that are no wall."""
        size = range(len(self.rows)), range(len(self.rows[0]))
        return [(r, c) for r in size[0] for c in size[1] if self.rows[r][c] != "#"]

    @cached_property
    def marks(self) -> list[str]:
        """The character of each state."""
        return [self.rows[r][c] for r, c in self.cells]

    @property
    def start(self) -> int:
        """The state that an episode starts in."""
        return self.marks.index("S")

    @property
    def choices(self) -> list[int]:
        """The states in which it matters what one does: all but the goals."""
        return [s for s, mark in enumerate(self.marks) if mark not in GOALS]

    @cached_property
    def process(self) -> Process:
        """Its transitions and rewards."""
        transition = np.zeros((len(self.cells), len(MOVES), len(self.cells)))
        reward = np.zeros(transition.shape[:2])
        for state, mark in enumerate(self.marks):
            reward[state] = GOALS.get(mark, 0.0)
            for action, move in enumerate(MOVES.values()):
                transition[state, action, self._next(state, move)] = 1.0
        return Process(transition, reward, DISCOUNT)

    def _next(self, state: int, move: tuple[int, int]) -> int:
        if self.marks[state] in GOALS:
            return self.start
        row, column = self.cells[state]
        place = row + move[0], column + move[1]
        return self.cells.index(place) if place in self.cells else state


def solve(grid: Grid, alphas: Sequence[float]) -> pd.DataFrame:
    """Both iterations from the uniform policy: a row for each iteration and alpha.

    ``entropy`` is the mean over the states that are no goal, in nats; ``return`` the discounted
    reward from the start state, and ``objective`` the same of reward and entropy / alpha; ``apart``
    the mean total-variation distance of the two policies; ``elsewhere`` the number of other starts
    from which the iteration did not come to the same policy.
    """
    rows = []
    for alpha in alphas:
        ends = {agent: end(grid, agent, alpha) for agent in ITERATIONS}
        rows += [
            {
                "agent": agent,
                "alpha": float(alpha),
                "iterations": ending.iterations,
                "period": ending.period,
                "entropy": float(tabular.entropy(ending.policy)[grid.choices].mean()),
                "return": tabular.state_values(grid.process, ending.policy)[grid.start],
                "objective": tabular.soft_values(grid.process, ending.policy, alpha)[grid.start],
                "apart": apart(grid, ends[QSM].policy, ends[SOFT].policy),
                "elsewhere": _elsewhere(grid, agent, alpha, ending),
            }
            for agent, ending in ends.items()
        ]
    return pd.DataFrame(rows)


def end(grid: Grid, agent: str, alpha: float) -> Ending:
    """How an iteration ends from the uniform policy."""
    return ITERATIONS[agent](grid.process, alpha, grid.process.uniform)


def apart(grid: Grid, first: Array, second: Array) -> float:
    """The mean total-variation distance of two policies over the states that are no goal."""
    each = 0.5 * np.abs(first - second).sum(axis=1)
    return float(each[grid.choices].mean())


def _elsewhere(grid: Grid, agent: str, alpha: float, ending: Ending) -> int:
    """How many other starts, the best policy and random ones, do not end in the same policy."""
    stream = np.random.default_rng(0)
    starts = [stream.dirichlet(np.ones(len(MOVES)), len(grid.cells)) for _ in range(STARTS - 1)]
    best = np.eye(len(MOVES))[tabular.greedy_policy_iteration(grid.process).argmax(axis=1)]
    ends = [ITERATIONS[agent](grid.process, alpha, start) for start in (best, *starts)]
    return sum(float(np.abs(other.policy - ending.policy).max()) > APART for other in ends)


def policy_table(grid: Grid, agent: str, alpha: float) -> pd.DataFrame:
    """A row for each cell: agent, alpha, row, column, value, and a column for each action."""
    policy = end(grid, agent, alpha).policy
    table = pd.DataFrame(grid.cells, columns=["row", "column"])
    table["value"] = tabular.state_values(grid.process, policy)
    table[list(MOVES)] = policy
    return table.assign(agent=agent, alpha=alpha)
