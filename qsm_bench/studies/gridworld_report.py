"""The sections, tables and figures of the study of gridworlds."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter

from qsm_bench.counting import count
from qsm_bench.report import figures
from qsm_bench.report.document import Picture, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import listed, number
from qsm_bench.studies import langevin, tabular
from qsm_bench.studies.grids import (
    DISCOUNT,
    GOALS,
    ITERATIONS,
    LARGE,
    MOVES,
    QSM,
    SOFT,
    STARTS,
    Grid,
    apart,
    end,
    policy_table,
)
from qsm_bench.studies.langevin import EXACT, EXACT_DRAWS, LANGEVIN, QUANTILE, Moved
from qsm_bench.studies.tabular import Array

BEST = "greedy policy iteration"
LINES = (QSM, SOFT, BEST, LANGEVIN, EXACT)
"""What the curves are of."""
SHOWN = (2, 20, 200)
"""The alphas whose policies are drawn."""
VALUE_COLORS = LinearSegmentedColormap.from_list("value", ["#fdfdfd", figures.COLORS[5]])
WALL, ARROW = "#8c8c8c", "#111111"
"""Fixed colors: the map is as light in a dark page."""
SHORTEST = 0.02
"""Actions with a smaller probability have no arrow."""


def policies(grid: Grid, drawing: Drawing) -> Section:
    """The gridworld, and the policies of both iterations."""
    drawn = pd.concat(
        [policy_table(grid, agent, alpha) for agent in ITERATIONS for alpha in SHOWN],
        ignore_index=True,
    )
    return Section(
        "The policies",
        [
            Text(
                f"The gridworld has {len(grid.rows)} rows of {len(grid.rows[0])} cells. The "
                "actions are steps up, right, down and left; a step into a wall or over the edge "
                f"stays. Any action in goal A pays {GOALS['A']:g}, in goal B {GOALS['B']:g}, and "
                f"leads back to the start S. Nothing else pays, there is no chance in the moves, "
                f"and the discount is {DISCOUNT}. From the start A is worth more than B to one who "
                "walks straight, and B is nearer."
            ),
            drawing.picture(
                "policies",
                _policy_chart(grid, drawn),
                drawn,
                alt="Arrows of the policy on a map of its value, for QSM above and soft policy "
                f"iteration below, at alpha = {_alphas(SHOWN)}. At the smallest alpha the four "
                "arrows of a cell are about as long as each other; at the largest, the arrows of "
                "the shortest ways to a goal are left.",
                caption="Arrows as long as the probability of the action. The color is the "
                "discounted reward from the cell on, without entropy, in both rows.",
            ),
        ],
    )


def iterations(grid: Grid, solved: pd.DataFrame, why: str, drawing: Drawing) -> Section:
    """Where both iterations end: ``solved`` is that of ``solve``, ``why`` part (a) in words."""
    best = tabular.greedy_policy_iteration(grid.process)[grid.start].max()
    return Section(
        "Two iterations",
        [
            Text(
                "Soft policy iteration puts the soft Q in place of Q: it also counts the entropy "
                "of all later actions, each worth 1 / alpha, and its fixed point is the policy "
                "with the largest discounted sum of reward and entropy / alpha. QSM's Q is the "
                "standard one. Its policy is random now, and expects nothing of being random "
                "later. Both become uniform as alpha falls. As alpha grows, QSM's policy spreads "
                "evenly over the actions that are equally good; that of soft policy iteration "
                "prefers those with more equally good ways after them, however large alpha is: "
                f"at alpha = {LARGE:,.0f} the two are still {number(_apart_at_last(grid))} apart."
            ),
            _iterations_table(solved),
            Text(_difference(solved)),
            _entropy_picture(solved, why, drawing),
            _return_picture(solved, best, drawing),
            Text(_convergence(solved)),
        ],
    )


def _apart_at_last(grid: Grid) -> float:
    return apart(grid, *(end(grid, agent, LARGE).policy for agent in ITERATIONS))


def _iterations_table(solved: pd.DataFrame) -> Table:
    cells = pd.DataFrame(
        {
            "alpha": [f"{alpha:g}" for alpha in solved["alpha"]],
            "iteration": solved["agent"],
            "updates": [f"{updates:,}" for updates in solved["iterations"]],
            "ended in": [_ended(period) for period in solved["period"]],
            "entropy": [number(value, 4) for value in solved["entropy"]],
            "return": [number(value, 4) for value in solved["return"]],
            "return and entropy / alpha": [number(value, 4) for value in solved["objective"]],
            "policies apart": solved["apart"].map(number),
        }
    )
    return Table(
        "iterations",
        "Where both iterations ended, from the uniform policy. Entropy in nats, mean over the "
        "cells that are no goal; return and the sum with entropy / alpha from the start, both "
        "discounted; apart: total-variation distance of the two policies, mean over cells.",
        cells,
        solved,
    )


def _ended(period: float | None) -> str:
    if period is None or np.isnan(period):
        return "neither"
    return "a fixed point" if period == 1 else f"a cycle of {period:.0f}"


def _entropy_picture(solved: pd.DataFrame, why: str, drawing: Drawing) -> Picture:
    table = _line(solved, "entropy")
    chart = figures.curves(
        table, drawing.styles, x="alpha", x_label="alpha", y_label="mean entropy, nats"
    )
    return drawing.picture(
        "entropy",
        _logarithmic(chart, "x"),
        table,
        alt=f"Entropy of both policies over alpha. {why}",
        caption=f"Entropy at the fixed point. The uniform policy has {number(np.log(len(MOVES)))}.",
    )


def _return_picture(solved: pd.DataFrame, best: float, drawing: Drawing) -> Picture:
    most = solved[solved["agent"] == QSM].assign(agent=BEST)
    most["return"] = best
    table = _line(pd.concat([solved, most]), "return")
    chart = figures.curves(
        table, drawing.styles, x="alpha", x_label="alpha", y_label="return from the start"
    )
    return drawing.picture(
        "returns",
        _logarithmic(chart, "x"),
        table,
        alt=f"Return of both policies over alpha, up to the best, {number(best)}. "
        + _difference(solved),
        caption="Discounted reward from the start, without entropy.",
    )


def _difference(solved: pd.DataFrame) -> str:
    """Which iteration has more of what, in words."""
    wide = solved.pivot(index="alpha", columns="agent", values=["return", "objective"])
    reward = int((wide["return"][QSM] > wide["return"][SOFT]).sum())
    both = int((wide["objective"][SOFT] > wide["objective"][QSM]).sum())
    return (
        f"The reward alone is larger with QSM at {reward} of {len(wide)} alphas. The sum of reward "
        f"and entropy / alpha, which soft policy iteration maximizes, is larger with it at {both}."
    )


def _line(table: pd.DataFrame, column: str) -> pd.DataFrame:
    line = table[["agent", "alpha"]].assign(value=table[column], low=np.nan, high=np.nan)
    return line.reset_index(drop=True)


def _convergence(solved: pd.DataFrame) -> str:
    """What was found on fixed points, and on other starts."""
    said = []
    for agent, part in solved.groupby("agent", sort=False):
        slowest = part.loc[part["iterations"].idxmax()]
        said.append(
            f"{agent} ended in a fixed point at {(part['period'] == 1).sum()} of "
            f"{count(len(part), 'alpha')}, after {slowest['iterations']:,} updates at most (alpha "
            f"= {slowest['alpha']:g}); of {len(part) * STARTS} other starts, the best policy and "
            f"random ones, {part['elsewhere'].sum()} led elsewhere"
        )
    return (
        "No step is damped. A fixed point is a policy that an update changes by "
        f"{tabular.TOLERANCE:g} at most in any probability. {'; '.join(said)}. Soft policy "
        "iteration always converges; for QSM's iteration there is no such proof."
    )


def langevin_dynamics(moved: Moved, why: str, drawing: Drawing) -> Section:
    """Langevin dynamics beside exp(alpha Q); ``why`` is part (c) in words."""
    once, twice = moved.unit_noise
    return Section(
        "Langevin dynamics has the density exp(alpha Q)",
        [
            Text(
                "We write dX = alpha grad_a Q(X) dt + sqrt(2) dW, whose stationary density is "
                "exp(alpha Q) / Z. Eq. 19 has a diffusion of one; if that is a noise of dW, the "
                "density is exp(2 alpha Q) / Z, and alpha counts twice. At the smallest step, "
                f"with a noise of dW, the distance from exp(alpha Q) is {number(once)}, and from "
                f"exp(2 alpha Q) {number(twice)}."
            ),
            Text(
                f"Q has two maxima, near {-langevin.MAXIMUM} and {langevin.MAXIMUM}; alpha is "
                f"{langevin.ALPHA:g}. {moved.chains:,} independent chains start uniformly in "
                f"[-1, 1] and run for a time of {langevin.DURATION:g} by Euler's method. Their "
                f"last places are counted in {langevin.BINS} bins."
            ),
            _histogram_picture(moved, why, drawing),
            _distance_picture(moved, why, drawing),
            _distance_table(moved),
        ],
    )


def _histogram_picture(moved: Moved, why: str, drawing: Drawing) -> Picture:
    first, *_, last = moved.shares
    data = pd.DataFrame({"action": _bin_centers(), "exp(alpha Q)": moved.expected})
    for step, shares in moved.shares.items():
        data[f"step {step:g}"] = shares
    return drawing.picture(
        "histogram",
        _histogram_chart(moved, (first, last), drawing.styles[LANGEVIN].color),
        data,
        alt=f"Histograms of Langevin dynamics at steps of {first:g} and {last:g}, and "
        f"exp(alpha Q) as a line. {why}",
        caption="Langevin dynamics (bars) and exp(alpha Q) / Z (line) at the largest and the "
        "smallest step.",
    )


def _distance_picture(moved: Moved, why: str, drawing: Drawing) -> Picture:
    chart = figures.curves(
        moved.distances,
        drawing.styles,
        x="step",
        x_label="step",
        y_label="total-variation distance",
    )
    return drawing.picture(
        "distance",
        _logarithmic(chart, "xy"),
        moved.distances,
        alt=f"Distance from exp(alpha Q) over the step. {why}",
        caption="Distance of the histogram from exp(alpha Q). For exact samples, as many as "
        f"chains: the mean of {EXACT_DRAWS:,} draws, and the band from {1 - QUANTILE:.0%} to "
        f"{QUANTILE:.0%} of them.",
    )


def _distance_table(moved: Moved) -> Table:
    rows = moved.distances[moved.distances["agent"] == LANGEVIN]
    cells = pd.DataFrame(
        {
            "step": [f"{step:g}" for step in rows["step"]],
            "distance": rows["value"].map(number),
            f"{QUANTILE:.0%} of exact samples": [number(moved.exact[1])] * len(rows),
        }
    )
    return Table("distances", "Distance from exp(alpha Q) for each step.", cells, rows)


def _bin_centers() -> Array:
    edges = np.linspace(-langevin.EDGE, langevin.EDGE, langevin.BINS + 1)
    centers: Array = 0.5 * (edges[1:] + edges[:-1])
    return centers


def _alphas(alphas: Sequence[float]) -> str:
    return listed([f"{alpha:g}" for alpha in alphas])


def _logarithmic(chart: figures.Chart, axes: str) -> figures.Chart:
    """The chart with logarithmic axes, "x", "y" or "xy", whose ticks are plain numbers."""
    (panel,) = chart.figure.axes
    for name in axes:
        panel.set(**{f"{name}scale": "log"})
        axis = panel.xaxis if name == "x" else panel.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    return chart


def _histogram_chart(moved: Moved, steps: Sequence[float], color: str) -> figures.Chart:
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        panels = list(figure.subplots(1, len(steps), sharey=True))
        at, width = _bin_centers(), 2 * langevin.EDGE / langevin.BINS
        for panel, step in zip(panels, steps, strict=True):
            panel.bar(at, moved.shares[step], width, color=color, alpha=0.45)
            panel.plot(at, moved.expected, color=figures.INK)
            panel.set_title(f"step {step:g}")
            panel.set_xlabel("action")
        panels[0].set_ylabel("share of samples in a bin")
        return figures.Chart(figure)


def _policy_chart(grid: Grid, drawn: pd.DataFrame) -> figures.Chart:
    agents, alphas = list(drawn["agent"].unique()), list(drawn["alpha"].unique())
    with mpl.rc_context(figures.STYLE):
        size = (0.8 + 2.9 * len(alphas), 0.2 + 3.0 * len(agents))
        chart = figures.Chart(Figure(figsize=size, layout="constrained"))
        panels = chart.figure.subplots(len(agents), len(alphas), squeeze=False)
        for across, agent in zip(panels, agents, strict=True):
            for panel, alpha in zip(across, alphas, strict=True):
                part = drawn[(drawn["agent"] == agent) & (drawn["alpha"] == alpha)]
                _policy_panel(chart, panel, grid, part, f"{agent}, alpha {alpha:g}")
                colors = _value_map(panel, grid, part, drawn["value"].max())
        chart.figure.colorbar(colors, ax=panels, label="value, without entropy", shrink=0.6)
        return chart


def _value_map(panel: Axes, grid: Grid, part: pd.DataFrame, top: float) -> AxesImage:
    height, width = len(grid.rows), len(grid.rows[0])
    values = np.full((height, width), np.nan)
    values[part["row"], part["column"]] = part["value"]
    return panel.imshow(
        values, cmap=VALUE_COLORS, vmin=0.0, vmax=top, extent=(0, width, height, 0), zorder=0
    )


def _policy_panel(
    chart: figures.Chart, panel: Axes, grid: Grid, part: pd.DataFrame, title: str
) -> None:
    panel.set_facecolor(WALL)
    panel.set_title(title)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    panel.set_xticks([])
    panel.set_yticks([])
    _arrows(panel, part.iloc[grid.choices])
    for mark, (row, column) in zip(grid.marks, grid.cells, strict=True):
        if mark in GOALS:
            panel.text(column + 0.5, row + 0.5, mark, ha="center", va="center", color=ARROW)
        elif mark == "S":
            panel.text(column + 0.04, row + 0.96, mark, fontsize=7, color=ARROW)
    for cell in part.to_dict("records"):
        taken = ", ".join(f"{move} {number(cell[move], 2)}" for move in MOVES)
        text = f"{title}: value {number(cell['value'])}; {taken}"
        chart.values.append((panel, cell["column"] + 0.5, cell["row"] + 0.5, text))


def _arrows(panel: Axes, part: pd.DataFrame) -> None:
    """Arrows from the middle of each cell, half a cell long at a probability of one."""
    lines = [
        _arrow(row + 0.5, column + 0.5, np.array(move) * 0.48 * share)
        for action, move in MOVES.items()
        for row, column, share in part[["row", "column", action]].itertuples(index=False)
        if share > SHORTEST
    ]
    rows, columns = np.concatenate(lines).T
    panel.plot(columns, rows, color=ARROW, linewidth=1.1, solid_joinstyle="miter")


def _arrow(row: float, column: float, along: Array) -> Array:
    """The corners of an arrow, shaft and head in one line, and a gap after it: [6, 2]."""
    across = along[::-1]
    tip = np.array([row, column]) + along
    barbs = tip - 0.35 * along + 0.25 * across, tip - 0.35 * along - 0.25 * across
    return np.array([(row, column), tip, barbs[0], tip, barbs[1], (np.nan, np.nan)])
