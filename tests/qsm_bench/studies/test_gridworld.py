"""The study of gridworlds: its maps, and what decides."""

from collections import deque

import numpy as np
import pandas as pd
import pytest

from qsm_bench.studies import tabular
from qsm_bench.studies.grids import DISCOUNT, GOALS, MOVES, QSM, SOFT, Grid, end, solve
from qsm_bench.studies.gridworld import (
    ALPHAS,
    MAPS,
    best_agree,
    entropy_part,
    falls,
    limits_part,
)

GRIDS = [Grid(rows) for rows in MAPS.values()]


def steps_to(grid: Grid, goal: str) -> int:
    """The number of steps from the start to a goal, through no other, by breadth-first search."""
    seen = {grid.cells[grid.start]: 0}
    waiting = deque(seen)
    while waiting:
        row, column = waiting.popleft()
        for down, right in MOVES.values():
            place = row + down, column + right
            if place in grid.cells and place not in seen:
                seen[place] = seen[row, column] + 1
                if grid.rows[place[0]][place[1]] not in GOALS:
                    waiting.append(place)
    return seen[grid.cells[grid.marks.index(goal)]]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_map_is_a_process(grid: Grid) -> None:
    assert len({len(row) for row in grid.rows}) == 1
    process = grid.process
    np.testing.assert_array_equal(process.transition.sum(axis=2), 1.0)
    for goal, reward in GOALS.items():
        state = grid.marks.index(goal)
        np.testing.assert_array_equal(process.reward[state], reward)
        np.testing.assert_array_equal(process.transition[state, :, grid.start], 1.0)
    np.testing.assert_array_equal(process.reward[grid.choices], 0.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_best_policy_walks_straight_to_the_better_goal(grid: Grid) -> None:
    """A goal in d steps pays g^d r, again and again after d + 1 steps: g^d r / (1 - g^(d + 1))."""
    each = {}
    for goal, reward in GOALS.items():
        far = steps_to(grid, goal)
        each[goal] = DISCOUNT**far * reward / (1 - DISCOUNT ** (far + 1))
    q = tabular.greedy_policy_iteration(grid.process)
    assert q[grid.start].max() == pytest.approx(max(each.values()), rel=1e-9)
    assert each["A"] > each["B"]
    assert steps_to(grid, "A") > steps_to(grid, "B")


def test_a_step_into_a_wall_or_over_the_edge_stays() -> None:
    grid = Grid(("S#", "BA"))
    states, moves = {mark: s for s, mark in enumerate(grid.marks)}, list(MOVES)
    for move in ("up", "left", "right"):
        assert grid.process.transition[states["S"], moves.index(move), states["S"]] == 1.0
    assert grid.process.transition[states["S"], moves.index("down"), states["B"]] == 1.0


@pytest.mark.parametrize("agent", [QSM, SOFT])
def test_a_mirrored_map_has_the_mirrored_policy(agent: str) -> None:
    grid = GRIDS[0]
    mirrored = Grid([row[::-1] for row in grid.rows])
    width = len(grid.rows[0])
    states = [mirrored.cells.index((row, width - 1 - column)) for row, column in grid.cells]
    moves = [list(MOVES).index(move) for move in ("up", "left", "down", "right")]
    policy = end(mirrored, agent, 10.0).policy[states][:, moves]
    np.testing.assert_allclose(policy, end(grid, agent, 10.0).policy, atol=1e-8)


def test_both_iterations_are_solved_for_every_alpha() -> None:
    solved = solve(GRIDS[0], ALPHAS["tiny"])
    assert solved["agent"].tolist() == [QSM, SOFT] * len(ALPHAS["tiny"])
    wide = solved.pivot(index="alpha", columns="agent", values="objective")
    assert (wide[SOFT] >= wide[QSM]).all()
    assert (solved["entropy"] <= np.log(len(MOVES))).all()
    best = tabular.greedy_policy_iteration(GRIDS[0].process)[GRIDS[0].start].max()
    assert (solved["return"] <= best + 1e-12).all()


@pytest.mark.parametrize(
    ("entropies", "periods", "outcome"),
    [
        ([1.3, 1.0, 0.2], [1, 1, 1], "holds"),
        ([1.3, 0.2, 0.2], [1, 1, 1], "does not hold"),
        ([1.3, 0.2, 0.3], [1, 1, 1], "does not hold"),
        ([1.3, 1.0, 0.2], [1, 2, 1], "cannot tell"),
        ([1.3, 1.0, 0.2], [1, 1, None], "cannot tell"),
    ],
)
def test_the_entropy_must_fall_at_fixed_points(
    entropies: list[float], periods: list[int | None], outcome: str
) -> None:
    solved = pd.DataFrame(
        {
            "agent": [QSM, QSM, QSM, SOFT],
            "alpha": [1.0, 10.0, 100.0, 1.0],
            "entropy": [*entropies, 0.0],
            "period": [*periods, None],
        }
    )
    assert entropy_part(solved).outcome == outcome


def test_the_limits_hold_on_a_grid_and_not_without_a_fixed_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert limits_part(GRIDS[0]).outcome == "holds"
    monkeypatch.setattr(tabular, "LIMIT", 1)
    assert limits_part(GRIDS[0]).outcome == "cannot tell"


def test_best_actions_must_be_the_same_set() -> None:
    first = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    second = np.array([[2.0, 2.0 - 1e-9], [1.0, 1.0], [0.0, 1.0]])
    assert best_agree(first, second).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("distances", "fall"),
    [
        ([0.2, 0.1, 0.015], True),
        ([0.2, 0.015, 0.018], True),  # chance, within the range of exact samples
        ([0.2, 0.1, 0.11, 0.015], True),
        ([0.2, 0.1, 0.12, 0.015], False),
        ([0.2, 0.1, 0.03], False),
        ([0.018, 0.015], False),  # no step is too large: nothing is shown
    ],
)
def test_distances_must_fall_to_what_exact_samples_have(distances: list[float], fall: bool) -> None:
    assert falls(distances, 0.008, 0.02) is fall
