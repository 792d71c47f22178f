"""The report's figures, drawn from the tables of ``qsm_bench.statistics``.

An agent keeps its colour (Okabe and Ito's, told apart by colour-blind readers), line style and
marker in every figure, so that none of them is needed alone. A figure's files are white; within a
page it takes the page's own ink and paper, light or dark.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qsm_bench.statistics import AREA, AT_END, STATISTICS

INK, PAPER = "#1c1e21", "#fefefe"
"""Colours that stand for the page's own, where a figure is part of one."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00")
"""Okabe and Ito's without black, which is the ink; their yellow darkened to show on white."""
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*"

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "qsm_bench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class AgentStyle:
    """How an agent is drawn."""

    colour: str
    line: Any
    marker: str


def agent_styles(agents: Sequence[str]) -> dict[str, AgentStyle]:
    """A style for each agent, by its place among all agents of the experiment."""
    return {
        agent: AgentStyle(
            COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
        )
        for i, agent in enumerate(agents)
    }


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write <name>.svg and <name>.png into ``folder``; return the SVG as an element for a page."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    svg = "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    element = svg[svg.index("<svg ") :].replace(INK, "currentColor").replace(PAPER, "none")
    element = re.sub(r"<(metadata)>.*?</\1>\s*|<!--.*?-->\s*", "", element, flags=re.DOTALL)
    # Ids must be unique within a page that shows several figures.
    return re.sub(r'(\bid="|\bhref="#|\burl\(#)', rf"\g<1>{name}-", element)


def aggregate_intervals(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> Figure:
    """A panel a statistic: every agent's value and interval, at the end and over the curve."""
    agents = _agents(table, styles)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 1.3 + 0.5 * len(agents)), layout="constrained")
        panels = figure.subplots(1, len(STATISTICS), sharey=True)
        for panel, statistic in zip(panels, STATISTICS, strict=True):
            rows = table[table["statistic"] == statistic].set_index(["agent", "measured"])
            for y, agent in enumerate(agents):
                for when, offset in ((AT_END, -0.15), (AREA, 0.15)):
                    row = rows.loc[[(agent, when)]].iloc[0]
                    _interval(panel, row, y + offset, styles[agent], when)
            panel.set_title(f"{statistic} ({_better(statistic)} is better)")
            panel.set_yticks(range(len(agents)), agents)
            panel.set_ylim(len(agents) - 0.5, -0.5)
            panel.grid(visible=False, axis="y")
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="-", label=AT_END),
            Line2D([], [], color=INK, marker="o", linestyle="-", mfc=PAPER, label=AREA),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        figure.supxlabel("normalised score", fontsize=9)
    return figure


def pair_intervals(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> Figure:
    """A row a pair: the probability that the first agent's run beats the second's."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.0 + 0.4 * len(table)), layout="constrained")
        panel = figure.subplots()
        panel.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        for y, (_, row) in enumerate(table.iterrows()):
            _interval(panel, row, y, styles[row["better"]], AT_END, value="probability")
        names = [f"{row['better']} over {row['worse']}" for _, row in table.iterrows()]
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(-0.02, 1.02)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("probability of improvement")
    return figure


def curves(
    table: pd.DataFrame,
    styles: Mapping[str, AgentStyle],
    *,
    x: str,
    x_label: str,
    y_label: str,
    panel_by: str | None = None,
) -> Figure:
    """Lines of ``value`` over column ``x`` with bands, an agent each, a panel a ``panel_by``."""
    parts: list[tuple[str, pd.DataFrame]] = (
        [(str(name), part) for name, part in table.groupby(panel_by, sort=False)]
        if panel_by
        else [("", table)]
    )
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    size = (7.0, 3.6) if len(parts) == 1 else (3.3 * columns, 0.6 + 2.3 * rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, (title, part) in zip(panels, parts, strict=False):
            for agent in _agents(part, styles):
                _curve(panel, part[part["agent"] == agent], x, styles[agent])
            panel.set_title(title)
            panel.xaxis.set_major_formatter(_thousands)
            panel.locator_params(axis="x", nbins=5)
            panel.margins(x=0.02)
        for panel in panels[len(parts) :]:
            panel.set_visible(False)
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(y_label, fontsize=9)
        _legend(figure, _agents(table, styles), styles)
    return figure


def action_slices(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> Figure:
    """A row a task, a panel an agent: Q along the action axis over the share of samples there."""
    agents = _agents(table, styles)
    tasks = list(dict.fromkeys(table["task"]))
    with mpl.rc_context(STYLE):
        size = (1.2 + 2.6 * len(agents), 0.7 + 2.0 * len(tasks))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(tasks), len(agents), squeeze=False, sharex=True)
        for row, task in zip(panels, tasks, strict=True):
            for panel, agent in zip(row, agents, strict=True):
                part = table[(table["task"] == task) & (table["agent"] == agent)]
                at = part["action"].to_numpy(dtype=float)
                width = 2.0 / max(1, len(at))
                share = part["share"].to_numpy(dtype=float)
                panel.bar(at, share, width, color=styles[agent].colour, alpha=0.45)
                panel.set_ylim(0.0, 1.05)
                panel.set_title(f"{agent} on {task}")
                value = panel.twinx()
                value.plot(at, part["q"].to_numpy(dtype=float), color=INK)
                value.spines["right"].set_visible(True)
                value.grid(visible=False)
        figure.supxlabel("first action dimension", fontsize=9)
        figure.supylabel("share of samples (bars); Q on the right axis (line)", fontsize=9)
    return figure


def _curve(panel: Axes, part: pd.DataFrame, x: str, style: AgentStyle) -> None:
    at = part[x].to_numpy(dtype=float)
    panel.plot(
        at,
        part["value"].to_numpy(dtype=float),
        color=style.colour,
        linestyle=style.line,
        marker=style.marker,
        markevery=max(1, len(at) // 8),
    )
    low, high = part["low"].to_numpy(dtype=float), part["high"].to_numpy(dtype=float)
    panel.fill_between(at, low, high, color=style.colour, alpha=0.18, linewidth=0)


def _interval(
    panel: Axes, row: "pd.Series[Any]", y: float, style: AgentStyle, when: str, value: str = "value"
) -> None:
    panel.plot([row["low"], row["high"]], [y, y], color=style.colour, linewidth=3, alpha=0.5)
    panel.plot(
        [row[value]],
        [y],
        color=style.colour,
        marker=style.marker,
        markersize=7,
        markerfacecolor=style.colour if when == AT_END else PAPER,
    )


def _legend(figure: Figure, agents: Iterable[str], styles: Mapping[str, AgentStyle]) -> None:
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker)
        for s in (styles[agent] for agent in agents)
    ]
    names = list(agents)
    figure.legend(handles, names, loc="outside upper center", ncols=4, handlelength=3.5)


def _agents(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> list[str]:
    present = set(table["agent"])
    return [agent for agent in styles if agent in present]


def _better(statistic: str) -> str:
    return "lower" if statistic == "optimality gap" else "higher"


def _thousands(value: float, _: int) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value / 1e6:g} M"
