"""The report's figures, drawn from the tables of ``qsm_bench.statistics``.

An agent has the same color, line style and marker in every figure, so that no reader depends on
color alone; the colors are Okabe and Ito's, which color-blind readers can distinguish. The files
of a figure have a white background. Within a page, a figure takes the page's colors, light or dark.
"""

import io
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from qsm_bench.report.wording import interval, number
from qsm_bench.statistics.estimates import STATISTICS
from qsm_bench.statistics.ranking import BOUNDS, Ranking
from qsm_bench.statistics.selection import AREA_UNDER_CURVE, FINAL
from qsm_bench.visible import visible

INK, PAPER = "#1c1e21", "#fefefe"
"""The colors of text and background, which a page replaces by its own."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00")
"""Okabe and Ito's colors without black, which text has; yellow is darker, to be seen on white."""
LINES: tuple[Any, ...] = ("-", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
DASHED = (0, (4, 3))
"""No agent's own line: dashes are for curves from elsewhere."""
MARKERS = "osD^vPX*"
OTHER_MARKERS = "hdp<>+x1234"
"""Those of published points, hollow or thin."""

CHARACTER, LINE = 0.08, 0.17
"""The width of a character of the figures' font, at most, and the height of a line, in inches."""
LABEL, TITLE = 30, 34
"""The number of characters after which an axis label, and a panel's title, are wrapped."""
LONGEST_SIDE = 60_000
"""The longest side of a picture that can be drawn, in pixels."""

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
    """The color, line style and marker of an agent."""

    color: str
    line: Any
    marker: str


@dataclass(frozen=True)
class Chart:
    """A figure, and the values that the page shows at the pointer."""

    figure: Figure
    values: list[tuple[Axes, float, float, str]] = field(default_factory=list)
    """For each value: the panel, x and y in the panel's units, and the text to show there."""


def agent_styles(agents: Sequence[str]) -> dict[str, AgentStyle]:
    """A style for each agent, by its position among all agents."""
    return {
        agent: AgentStyle(COLORS[i % len(COLORS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, agent in enumerate(agents)
    }


def save(chart: Chart, folder: Path, name: str) -> tuple[str, list[tuple[float, float, str]]]:
    """Write <name>.svg and <name>.png into ``folder``.

    Returns the SVG as an element for a page, and the chart's values: x and y as shares of the
    figure's width and height, from the top left, and the text.
    """
    figure, text = chart.figure, io.StringIO()
    lay_out(figure)
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        dpi = min(150.0, LONGEST_SIDE / max(figure.get_size_inches()))
        figure.savefig(folder / f"{name}.png", dpi=dpi, metadata={"Software": None})
    svg = "\n".join(visible(line.rstrip()) for line in text.getvalue().split("\n"))
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    element = svg[svg.index("<svg ") :].replace(INK, "currentColor").replace(PAPER, "none")
    element = re.sub(r"<(metadata)>.*?</\1>\s*|<!--.*?-->\s*", "", element, flags=re.DOTALL)
    # Ids must be unique within a page that shows several figures.
    element = re.sub(r'(\bid="|\bhref="#|\burl\(#)', rf"\g<1>{name}-", element)
    return element, [_place(figure, *value) for value in chart.values]


def lay_out(figure: Figure) -> None:
    """Compute the layout, and fix it."""
    with mpl.rc_context(STYLE):
        engine = figure.get_layout_engine()
        if isinstance(engine, ConstrainedLayoutEngine):
            engine.set(w_pad=0.1, h_pad=0.08)
            # The size of panels determines their tick labels, which in turn determine the size.
            for _ in range(2):
                engine.execute(figure)
        figure.set_layout_engine(None)


def _place(figure: Figure, panel: Axes, x: float, y: float, text: str) -> tuple[float, float, str]:
    across, up = figure.transFigure.inverted().transform(panel.transData.transform((x, y)))
    return round(float(across), 4), round(1 - float(up), 4), text


def aggregate_intervals(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> Chart:
    """A panel for each statistic, with every agent's two scores and their intervals."""
    agents = _agents(table, styles)
    labels = [_wrapped(agent, LABEL) for agent in agents]
    width, lines = _extent(labels)
    size = (8.5 + width, 1.5 + max(0.5, LINE * lines + 0.1) * len(agents))
    with mpl.rc_context(STYLE):
        chart = Chart(Figure(figsize=size, layout="constrained"))
        figure = chart.figure
        panels = figure.subplots(1, len(STATISTICS), sharey=True)
        for panel, statistic in zip(panels, STATISTICS, strict=True):
            rows = table[table["statistic"] == statistic].set_index(["agent", "measured"])
            for y, agent in enumerate(agents):
                for when, offset in ((FINAL, -0.15), (AREA_UNDER_CURVE, 0.15)):
                    row = rows.loc[[(agent, when)]].iloc[0]
                    name = f"{agent}, {statistic} {when}"
                    _interval(chart, panel, row, y + offset, styles[agent], name, when=when)
            panel.set_title(f"{statistic}\n({_better(statistic)} is better)")
            panel.set_xlabel("normalized score")
            panel.set_yticks(range(len(agents)), labels)
            panel.set_ylim(len(agents) - 0.5, -0.5)
            panel.grid(visible=False, axis="y")
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="-", label=FINAL),
            Line2D([], [], color=INK, marker="o", linestyle="-", mfc=PAPER, label=AREA_UNDER_CURVE),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return chart


def ranking(ranked: Ranking, styles: Mapping[str, AgentStyle]) -> Chart:
    """A row for each agent, best first: its values, and the groups that cannot be told apart.

    There is a panel for the value at the end, and one for the area under the curve if it is known.
    At the right, a line with a letter joins the agents of each group of two or more.
    """
    agents = ranked.agents
    labels = [_wrapped(agent, LABEL) for agent in agents]
    width, lines = _extent(labels)
    measure = _wrapped(ranked.measure, TITLE)
    shown = [
        (when, ranked.table[[*columns]].set_axis(["value", "low", "high"], axis=1))
        for when, columns in ((FINAL, BOUNDS[:3]), (AREA_UNDER_CURVE, BOUNDS[3:]))
        if ranked.table[columns[0]].notna().any()
    ]
    joined = [(group, name) for group, name in ranked.named_groups if len(group) > 1]
    widths = [3.2] * len(shown) + [max(1.6, 0.25 * len(joined) + 0.3)] * bool(joined)
    height = 0.8 + LINE * _extent([measure])[1] + max(0.27, LINE * lines + 0.08) * len(agents)
    size = (0.5 + width + sum(widths), height)
    with mpl.rc_context(STYLE):
        chart = Chart(Figure(figsize=size, layout="constrained"))
        panels = chart.figure.subplots(
            1, len(widths), sharey=True, squeeze=False, width_ratios=widths
        )[0]
        for panel, (when, values) in zip(panels, shown, strict=False):
            for y, agent in enumerate(agents):
                name = f"{agent}, {ranked.measure} {when}"
                _interval(chart, panel, values.iloc[y], y, styles[agent], name, when=when)
            panel.set_title(when)
            panel.set_xlabel(measure)
            panel.locator_params(axis="x", nbins=5)
            panel.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(agents)), labels)
        panels[0].set_ylim(len(agents) - 0.5, -0.8)
        if joined:
            _join(chart, panels[-1], agents, joined)
    return chart


def _join(
    chart: Chart, panel: Axes, agents: Sequence[str], joined: Sequence[tuple[Sequence[str], str]]
) -> None:
    """A line with a letter for each group, and a dot on it for each of its agents."""
    for x, (group, letter) in enumerate(joined):
        rows = [agents.index(agent) for agent in group]
        panel.plot([x] * len(rows), rows, color=INK, marker="o", linewidth=2)
        panel.text(x, rows[0] - 0.3, letter, ha="center", va="bottom")
        text = f"Cannot be told apart: {', '.join(group)}"
        chart.values.extend((panel, float(x), float(y), text) for y in rows)
    panel.set_xlim(-0.7, len(joined) - 0.3)
    panel.set_title("cannot be told apart")
    panel.set_axis_off()


def pair_matrix(matrix: pd.DataFrame, verdicts: pd.DataFrame) -> Chart:
    """A square for each pair: the probability that a run of the row beats one of the column.

    A square is blank if the probability is unknown. It is bold, with an asterisk, where
    ``verdicts``, which has the same rows and columns, is True.
    """
    agents = list(matrix.index)
    values, decided = matrix.to_numpy(dtype=float), verdicts.to_numpy(dtype=bool)
    labels = [_wrapped(agent, LABEL) for agent in agents]
    width, lines = _extent(labels)
    across = max(0.5, LINE * lines + 0.1) * len(agents)
    size = (1.5 + width + across, 1.0 + width + max(0.4, LINE * lines + 0.1) * len(agents))
    with mpl.rc_context(STYLE):
        chart = Chart(Figure(figsize=size, layout="constrained"))
        panel = chart.figure.subplots()
        panel.pcolormesh(np.ma.masked_invalid(values), cmap="PuOr", vmin=0, vmax=1, edgecolors=INK)
        for y, x in zip(*np.nonzero(np.isfinite(values)), strict=True):
            dark = abs(values[y, x] - 0.5) > 0.3
            panel.text(
                x + 0.5,
                y + 0.5,
                f"{values[y, x]:.2f}" + "*" * bool(decided[y, x]),
                weight="bold" if decided[y, x] else "normal",
                ha="center",
                va="center",
                color="#ffffff" if dark else "#000000",
            )
            text = f"A run of {agents[y]} beats one of {agents[x]}: {number(values[y, x])}"
            text += ", a verdict" * bool(decided[y, x])
            chart.values.append((panel, x + 0.5, y + 0.5, text))
        ticks = np.arange(len(agents)) + 0.5
        panel.set_xticks(ticks, labels, rotation=90)
        panel.set_yticks(ticks, labels)
        panel.invert_yaxis()
        panel.set_xlabel("... beats a run of this agent")
        panel.set_ylabel("a run of this agent ...")
        panel.grid(visible=False)
        panel.tick_params(length=0)
    return chart


@dataclass(frozen=True)
class Marks:
    """Published points, drawn next to the curves."""

    label: str
    table: pd.DataFrame
    """The same columns as the table of the curves: panel, x, value, low, high."""
    marker: str
    bar: Literal["seeds", "interval"]
    """What lies from low to high: all seeds, or an interval of the value."""


def curves(
    table: pd.DataFrame,
    styles: Mapping[str, AgentStyle],
    *,
    x: str,
    x_label: str,
    y_label: str,
    panel_by: str | None = None,
    marks: Sequence[Marks] = (),
    dashed: Collection[tuple[str, str]] = (),
    log_x: bool = False,
) -> Chart:
    """A line of ``value`` over ``x`` for each agent, with a band from ``low`` to ``high``.

    ``x`` and ``panel_by`` are columns of ``table``. There is a panel for each value of
    ``panel_by``, or a single one. ``dashed`` has the agent and the panel of each dashed line. With
    ``log_x``, the axis of ``x`` is logarithmic: all its values are positive.
    """
    parts: list[tuple[str, pd.DataFrame]] = (
        [(str(name), part) for name, part in table.groupby(panel_by, sort=False)]
        if panel_by
        else [("", table)]
    )
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    titles = [_wrapped(title, TITLE) for title, _ in parts]
    width = 7.0 if len(parts) == 1 else max(5.0, 3.3 * columns)
    height = 3.2 if len(parts) == 1 else 0.6 + (2.3 + LINE * _extent(titles)[1]) * rows
    agents = _agents(table, styles)
    keys, key_columns, key_height = _legend_layout(
        [*agents, *(mark.label for mark in marks)], width
    )
    with mpl.rc_context(STYLE):
        chart = Chart(Figure(figsize=(width, height + key_height), layout="constrained"))
        figure = chart.figure
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, wrapped, (title, part) in zip(panels, titles, parts, strict=False):
            for agent in _agents(part, styles):
                name = f"{agent}, {title}" if title else agent
                style = _dashed(styles[agent]) if (agent, title) in dashed else styles[agent]
                _curve(chart, panel, part[part["agent"] == agent], x, x_label, style, name)
            for mark in marks:
                _mark(chart, panel, mark.table[mark.table[panel_by] == title], x, mark)
            panel.set_title(wrapped)
            _scale_x(panel, log=log_x)
            panel.margins(x=0.02)
        for panel in panels[len(parts) :]:
            panel.set_visible(False)
        _name_axes(panels[: len(parts)], columns, x_label, y_label)
        solid = {a for title, part in parts for a in part["agent"] if (a, title) not in dashed}
        handles = [_key(styles[a] if a in solid else _dashed(styles[a])) for a in agents]
        handles += [
            Line2D([], [], color=INK, linestyle="none", marker=m.marker, mfc=PAPER) for m in marks
        ]
        figure.legend(
            handles, keys, loc="outside lower center", ncols=key_columns, handlelength=KEY_LENGTH
        )
    return chart


def action_slices(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> Chart:
    """A panel for each agent and task: Q along the action axis, and the share of samples there."""
    agents = _agents(table, styles)
    drawn = [
        (task, agent)
        for task in dict.fromkeys(table["task"])
        for agent in agents
        if ((table["task"] == task) & (table["agent"] == agent)).any()
    ]
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    titles = [_wrapped(f"{agent} on {task}", TITLE) for task, agent in drawn]
    size = (1.2 + 2.8 * columns, 0.7 + (1.8 + LINE * _extent(titles)[1]) * rows)
    with mpl.rc_context(STYLE):
        chart = Chart(Figure(figsize=size, layout="constrained"))
        figure = chart.figure
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for panel in panels[len(drawn) :]:
            panel.set_visible(False)
        for panel, title, (task, agent) in zip(panels, titles, drawn, strict=False):
            part = table[(table["task"] == task) & (table["agent"] == agent)]
            at = part["action"].to_numpy(dtype=float)
            width = 2.0 / max(1, len(at))
            share = part["share"].to_numpy(dtype=float)
            panel.bar(at, share, width, color=styles[agent].color, alpha=0.45)
            panel.set_ylim(0.0, 1.05)
            panel.set_title(title)
            value = panel.twinx()
            value.plot(at, part["q"].to_numpy(dtype=float), color=INK)
            value.spines["right"].set_visible(True)
            value.grid(visible=False)
            chart.values.extend(
                (value, a, q, f"{agent} on {task}, action {a:.2f}: Q {number(q)}")
                for a, q in zip(at, part["q"].to_numpy(dtype=float), strict=True)
            )
        _name_axes(
            panels[: len(drawn)], columns, "first action dimension", "share (bars), Q (line)"
        )
    return chart


def _curve(
    chart: Chart,
    panel: Axes,
    part: pd.DataFrame,
    x: str,
    x_label: str,
    style: AgentStyle,
    name: str,
) -> None:
    at, value, low, high = (part[c].to_numpy(dtype=float) for c in (x, "value", "low", "high"))
    panel.plot(
        at,
        value,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markevery=max(1, len(at) // 8),
    )
    panel.fill_between(at, low, high, color=style.color, alpha=0.18, linewidth=0)
    chart.values.extend(
        (panel, a, v, f"{name}, {x_label} {a:,.6g}: {interval(v, lo, hi)}")
        for a, v, lo, hi in zip(at, value, low, high, strict=True)
        if np.isfinite(v)
    )


def _mark(chart: Chart, panel: Axes, part: pd.DataFrame, x: str, mark: Marks) -> None:
    part = part.sort_values(x)
    panel.plot(part[x], part["value"], color=INK, linewidth=0.7, linestyle=":", alpha=0.6)
    for row in part.to_dict("records"):
        at, value = float(row[x]), float(row["value"])
        panel.plot([at, at], [row["low"], row["high"]], color=INK, linewidth=1, alpha=0.6)
        panel.plot([at], [value], color=INK, marker=mark.marker, mfc=PAPER, linestyle="none")
        bounds = f"{mark.bar} from {number(row['low'])} to {number(row['high'])}"
        text = f"{mark.label}, {x} {at:,.6g}: {number(value)}, {bounds}"
        chart.values.append((panel, at, value, text))


def _interval(
    chart: Chart,
    panel: Axes,
    row: "pd.Series[Any]",
    y: float,
    style: AgentStyle,
    name: str,
    *,
    when: str,
) -> None:
    panel.plot([row["low"], row["high"]], [y, y], color=style.color, linewidth=3, alpha=0.5)
    panel.plot(
        [row["value"]],
        [y],
        color=style.color,
        marker=style.marker,
        markersize=7,
        markerfacecolor=style.color if when == FINAL else PAPER,
    )
    if np.isfinite(row["value"]):
        text = f"{name}: {interval(row['value'], row['low'], row['high'])}"
        chart.values.append((panel, float(row["value"]), y, text))


def _scale_x(panel: Axes, *, log: bool) -> None:
    """Set the scale of the horizontal axis, and its labels."""
    if log:
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.locator_params(axis="x", nbins=4)
    panel.xaxis.set_major_formatter(_thousands)


def _name_axes(panels: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Name the axes at the left and lower edges of a grid of panels."""
    for i, panel in enumerate(panels):
        if i % columns == 0:
            panel.set_ylabel(y)
        if i + columns >= len(panels):
            panel.set_xlabel(x)


KEY_LENGTH = 3.5
"""The length of a line in a legend, in units of the font size."""


def _legend_layout(names: Sequence[str], width: float) -> tuple[list[str], int, float]:
    """The layout of a legend that fits into ``width`` inches.

    Returns the wrapped names, the number of columns, and the height in inches.
    """
    key = 0.75
    longest = int((width - 0.5 - key) / CHARACTER)
    wrapped = [_wrapped(name, longest) for name in names]
    across, lines = _extent(wrapped)
    room = max(1, int((width - 0.4) / (across + key)))
    rows = -(-len(names) // room)
    return wrapped, -(-len(names) // rows), 0.25 + (LINE * lines + 0.06) * rows


def _dashed(style: AgentStyle) -> AgentStyle:
    return replace(style, line=DASHED)


def _key(style: AgentStyle) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.line, marker=style.marker)


def _wrapped(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters, broken between an agent's settings."""
    wrapper = textwrap.TextWrapper(width)
    wrapper.wordsep_re = re.compile(r"(\s+)|(?<=[,-])|(?<=\[)(?=[a-z])")
    return "\n".join(wrapper.wrap(visible(text)))


def _extent(texts: Sequence[str]) -> tuple[float, int]:
    """The width in inches of the widest text, and the largest number of lines."""
    lines = [text.splitlines() for text in texts]
    widest = max((len(line) for text in lines for line in text), default=0)
    return CHARACTER * widest, max(map(len, lines), default=0)


def _agents(table: pd.DataFrame, styles: Mapping[str, AgentStyle]) -> list[str]:
    present = set(table["agent"])
    return [agent for agent in styles if agent in present]


def _better(statistic: str) -> str:
    return "lower" if statistic == "optimality gap" else "higher"


def _thousands(value: float, _: float) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value / 1e6:g} M"
