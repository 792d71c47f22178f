"""The sections, tables and figures of the study of action modes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from qsm_bench import diagnostics
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import interval, number
from qsm_bench.statistics.estimates import bootstrap
from qsm_bench.studies.initial_state import (
    AXIS,
    BOTH_SIDES,
    COMMITTED,
    EDGE,
    LOW,
    NEAR,
    PROMINENT,
    SAMPLES,
    SECONDS,
    TRAJECTORIES,
    WINDOW,
    Look,
    Play,
    Run,
    shares,
)
from qsm_bench.studies.parts import Part

CELLS: Any = (np.arange(diagnostics.SLICE_CELLS) + 0.5) * 2 / diagnostics.SLICE_CELLS - 1
"""The centers of the cells in which samples are counted."""
SHARE_COLORS = LinearSegmentedColormap.from_list("share", ["#fdfdfd", figures.COLORS[0]])
MAXIMUM = "#111111"
"""A fixed color: the map is as light in a dark page."""
LEFT, RIGHT = figures.COLORS[1], figures.COLORS[0]
MEASURES = {
    "modes": "modes of the samples",
    "maxima": "maxima of Q",
    "followed": "maxima of Q with a mode",
    "at_bounds": "share at a bound",
    "overshoot": "share at a bound where Q is low",
    "q_range": "range of Q",
}
SHOWN_RUNS, SHOWN_TRAJECTORIES = 3, 24
"""How many of them the figure of trajectories has: the first ones."""
EVERY = 0.04
"""Seconds between the drawn points of a trajectory."""


def density(
    looks: Mapping[int, Mapping[Run, Look]], parts: Sequence[Part], drawing: Drawing
) -> Section:
    """The samples through training beside the critic: of the first run, and of all at the end."""
    last = max(looks)
    table = pd.concat(
        [
            _density_table(look).assign(agent=agent, seed=seed, step=step)
            for step, found in looks.items()
            for (agent, seed), look in found.items()
        ],
        ignore_index=True,
    )
    first = table[table["seed"] == table["seed"].min()]
    modes, maxima, bounds, _ = parts
    return Section(
        "Policy and critic in the first state",
        [
            drawing.picture(
                "density",
                _density_chart(first, drawing),
                first,
                alt="Share of samples along the action axis and Q there, a column for each agent "
                f"and a row for each number of steps, first seed. {modes.why} {maxima.why}",
                caption=f"The first seed. Bars: the share of {SAMPLES:,} samples in each cell of "
                "the action axis. Line: Q along the axis, from its lowest value (0) to its highest "
                "(1).",
            ),
            drawing.picture(
                "runs",
                _runs_chart(looks[last], drawing),
                table[table["step"] == last],
                alt=f"Share of samples along the action axis after {last:,} steps, a row for each "
                f"run and a panel for each agent, and the maxima of Q. {bounds.why}",
                caption=f"All runs after {last:,} steps: a row for each seed. Color: the share of "
                f"the samples in a cell. Circles: the maxima of Q that rise by {PROMINENT:g} of "
                "its range.",
            ),
            Text(
                "The state is the first of an episode that is reset with a fixed seed. The samples "
                "are those of the policy without exploration noise, and Q is the mean of the twin "
                f"critics. At a bound: within {EDGE:g} of it. Q is low where it is more than "
                f"{LOW:g} of its range along the axis below its maximum. A maximum has a mode if "
                f"one is within {NEAR:g} of it."
            ),
        ],
    )


def _density_table(look: Look) -> pd.DataFrame:
    q, height = (np.interp(CELLS, AXIS, values) for values in (look.q, look.height))
    return pd.DataFrame({"action": CELLS, "share": shares(look), "q": q, "height": height})


def _named(table: pd.DataFrame, drawing: Drawing) -> list[str]:
    """The agents of a table in the order of their styles."""
    return [agent for agent in drawing.styles if agent in set(table["agent"])]


def _density_chart(first: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    agents, steps = _named(first, drawing), sorted(first["step"].unique())
    with mpl.rc_context(figures.STYLE):
        size = (0.8 + 2.6 * len(agents), 0.9 + 1.2 * len(steps))
        chart = figures.Chart(Figure(figsize=size, layout="constrained"))
        panels = chart.figure.subplots(
            len(steps), len(agents), squeeze=False, sharex=True, sharey=True
        )
        for row, step in zip(panels, steps, strict=True):
            for panel, agent in zip(row, agents, strict=True):
                part = first[(first["agent"] == agent) & (first["step"] == step)]
                width = 2 / diagnostics.SLICE_CELLS
                color = drawing.styles[agent].color
                panel.bar(part["action"], part["share"], width, color=color, alpha=0.6)
                panel.plot(part["action"], part["height"], color=figures.INK)
                panel.set_ylim(0, 1.05)
                chart.values.extend(
                    (panel, r["action"], r["height"], _density_text(r))
                    for r in part.to_dict("records")
                )
            row[0].set_ylabel(f"{step:,} steps")
        for panel, agent in zip(panels[0], agents, strict=True):
            panel.set_title(agent)
        chart.figure.supxlabel("action", fontsize=9)
        handles = [
            Patch(color=figures.INK, alpha=0.4, label="share of the samples"),
            Line2D([], [], color=figures.INK, label="Q, from lowest to highest"),
        ]
        chart.figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return chart


def _density_text(row: Mapping[Any, Any]) -> str:
    return (
        f"{row['agent']}, {row['step']:,} steps, action {row['action']:.2f}: "
        f"share {number(row['share'])}, Q {number(row['q'])}"
    )


def _runs_chart(looks: Mapping[Run, Look], drawing: Drawing) -> figures.Chart:
    agents = [agent for agent in drawing.styles if any(agent == name for name, _ in looks)]
    of_agent = {
        name: [(seed, look) for (agent, seed), look in looks.items() if agent == name]
        for name in agents
    }
    most = max(map(len, of_agent.values()))
    with mpl.rc_context(figures.STYLE):
        size = (1.6 + 2.6 * len(agents), 1.1 + 0.2 * most)
        chart = figures.Chart(Figure(figsize=size, layout="constrained"))
        panels = chart.figure.subplots(1, len(agents), squeeze=False)[0]
        norm = PowerNorm(0.5, 0.0, 1.0)  # a share of 1/40 is to be seen beside one of 1
        for panel, (agent, found) in zip(panels, of_agent.items(), strict=True):
            drawn = panel.imshow(
                [shares(look) for _, look in found],
                cmap=SHARE_COLORS,
                norm=norm,
                extent=(-1, 1, len(found), 0),
                aspect="auto",
            )
            for row, (seed, look) in enumerate(found):
                at = look.maxima
                panel.plot(
                    at,
                    np.full(len(at), row + 0.5),
                    "o",
                    color=MAXIMUM,
                    mfc="none",
                    markersize=4.5,
                    clip_on=False,
                )
                text = f"{agent}, seed {seed}: Q has a maximum"
                chart.values.extend((panel, float(a), row + 0.5, f"{text} at {a:.2f}") for a in at)
            panel.set_yticks(np.arange(len(found)) + 0.5, [str(seed) for seed, _ in found])
            panel.set_title(agent)
            panel.set_xlabel("action")
            panel.grid(visible=False)
        panels[0].set_ylabel("seed")
        chart.figure.colorbar(drawn, ax=panels, label="share", ticks=[0, 0.025, 0.1, 0.25, 0.5, 1])
        return chart


def measures(
    measured: pd.DataFrame,
    returns: Mapping[Run, float],
    left_out: Sequence[str],
    drawing: Drawing,
) -> Section:
    """What the looks come to over training, and at its end."""
    spread = pd.DataFrame(
        [
            {"agent": agent, "measure": title, "step": step, **_mean(group[name])}
            for name, title in MEASURES.items()
            for (agent, step), group in measured.groupby(["agent", "step"], sort=False)
        ]
    )
    ends = measured[measured["step"] == measured["step"].max()]
    of_run = [returns[agent, seed] for agent, seed in zip(ends["agent"], ends["seed"], strict=True)]
    ends = ends.assign(**{"return": of_run})
    missing: list[Block] = [Bullets(left_out)] if left_out else []
    told = " ".join(
        f"{row['agent']}, {row['measure']}: {number(row['value'])}."
        for row in spread[spread["step"] == spread["step"].max()].to_dict("records")
    )
    return Section(
        "Modes, maxima and bounds through training",
        [
            drawing.picture(
                "measures",
                _measure_chart(spread, drawing),
                spread,
                alt=f"Modes, maxima of Q and samples at the bounds against steps. At the end: "
                f"{told}",
                caption="Mean over seeds and its 95% bootstrap interval.",
            ),
            _end_table(ends),
            *missing,
        ],
    )


def _measure_chart(spread: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    """A panel for each measure, with a tick at each look."""
    chart = figures.curves(
        spread,
        drawing.styles,
        x="step",
        x_label="steps",
        y_label="",
        panel_by="measure",
        log_x=True,
    )
    for panel in chart.figure.axes:
        panel.set_xticks(spread["step"].unique())
        panel.set_xticks([], minor=True)
    return chart


def _mean(values: "pd.Series[Any]") -> dict[str, float]:
    value, low, high = bootstrap(lambda x: x.mean(axis=0), values.to_numpy(float)[:, np.newaxis])
    return {"value": float(value[0]), "low": float(low[0]), "high": float(high[0])}


def _end_table(ends: pd.DataFrame) -> Table:
    shown = {"return": "return", **MEASURES, "right": "share to the right"}
    rows = [
        {
            "agent": agent,
            **{title: interval(*_mean(group[name]).values()) for name, title in shown.items()},
            "runs": str(len(group)),
        }
        for agent, group in ends.groupby("agent", sort=False)
    ]
    return Table("ends", "Means over seeds at the end of training [95%].", pd.DataFrame(rows), ends)


def trajectories(
    plays: Mapping[Run, Play],
    measured: pd.DataFrame,
    sides: pd.DataFrame,
    part: Part,
    drawing: Drawing,
) -> Section:
    """Where trajectories from the state go, and whether they commit to a side."""
    table = pd.concat(
        [
            _play_table(play).assign(agent=agent, seed=seed)
            for (agent, seed), play in plays.items()
            if seed < SHOWN_RUNS
        ],
        ignore_index=True,
    )
    return Section(
        "Trajectories",
        [
            drawing.picture(
                "trajectories",
                _fan(table, drawing),
                table,
                alt="Position of the cart over time in many trajectories from one state, a column "
                f"for each agent and a row for each of the first seeds. {part.why}",
                caption=f"{SHOWN_TRAJECTORIES} trajectories of each policy from one state, first "
                f"{SHOWN_RUNS} seeds. Their color and line style are those of their side: the sign "
                f"of the mean push of the first {WINDOW:g} s (shaded).",
            ),
            drawing.picture(
                "sides",
                _side_chart(sides, drawing),
                sides,
                alt="Commitment against the share of trajectories to the right, a point for each "
                f"run. {part.why}",
                caption=f"A point for each run: the share of its {TRAJECTORIES} trajectories that "
                "go to the right, and their commitment, the correlation of two pushes of a "
                "trajectory. Shaded: both sides occur, and trajectories commit. A run whose "
                "trajectories all have the same pushes has no commitment, and no point.",
            ),
            _run_table(measured, sides),
        ],
    )


def _play_table(play: Play) -> pd.DataFrame:
    positions = play.positions[:SHOWN_TRAJECTORIES, :: max(1, round(EVERY / play.seconds))]
    count, points = positions.shape
    return pd.DataFrame(
        {
            "trajectory": np.repeat(np.arange(count), points),
            "right": np.repeat(play.to_the_right[:count], points),
            "seconds": np.tile(np.linspace(0, SECONDS, points, endpoint=False), count),
            "position": positions.flatten(),
        }
    )


def _fan(table: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    agents, seeds = _named(table, drawing), sorted(table["seed"].unique())
    with mpl.rc_context(figures.STYLE):
        size = (0.8 + 2.6 * len(agents), 0.9 + 1.4 * len(seeds))
        chart = figures.Chart(Figure(figsize=size, layout="constrained"))
        panels = chart.figure.subplots(
            len(seeds), len(agents), squeeze=False, sharex=True, sharey=True
        )
        for row, seed in zip(panels, seeds, strict=True):
            for panel, agent in zip(row, agents, strict=True):
                part = table[(table["agent"] == agent) & (table["seed"] == seed)]
                panel.axvspan(0, WINDOW, color=figures.INK, alpha=0.08, linewidth=0)
                for _, path in part.groupby("trajectory"):
                    right = bool(path["right"].iloc[0])
                    panel.plot(
                        path["seconds"],
                        path["position"],
                        color=RIGHT if right else LEFT,
                        linestyle="-" if right else "--",
                        linewidth=0.8,
                        alpha=0.6,
                    )
            row[0].set_ylabel(f"seed {seed}")
        for panel, agent in zip(panels[0], agents, strict=True):
            panel.set_title(agent)
        chart.figure.supxlabel("seconds", fontsize=9)
        chart.figure.supylabel("position of the cart (m)", fontsize=9)
        handles = [
            Line2D([], [], color=LEFT, linestyle="--", label="to the left"),
            Line2D([], [], color=RIGHT, label="to the right"),
        ]
        chart.figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return chart


def _side_chart(sides: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    with mpl.rc_context(figures.STYLE):
        chart = figures.Chart(Figure(figsize=(6.4, 3.4), layout="constrained"))
        panel = chart.figure.subplots()
        across, up = (BOTH_SIDES, 1 - BOTH_SIDES), (COMMITTED, 1.05)
        panel.fill_between(across, *up, color=figures.INK, alpha=0.08, linewidth=0)
        for agent in _named(sides, drawing):
            style, part = drawing.styles[agent], sides[sides["agent"] == agent]
            panel.plot(
                part["right"],
                part["commitment"],
                linestyle="none",
                marker=style.marker,
                color=style.color,
                alpha=0.7,
                label=agent,
                clip_on=False,
            )
            chart.values.extend(
                (panel, r["right"], r["commitment"], _side_text(r))
                for r in part.dropna().to_dict("records")
            )
        panel.set_xlim(0, 1)
        panel.set_ylim(-0.1, 1.05)
        panel.set_xlabel("share of trajectories to the right")
        panel.set_ylabel("commitment")
        chart.figure.legend(loc="outside lower center", ncols=3)
        return chart


def _side_text(row: Mapping[Any, Any]) -> str:
    return (
        f"{row['agent']}, seed {row['seed']}: {number(row['right'])} to the right, commitment "
        f"{number(row['commitment'])}"
    )


def _run_table(measured: pd.DataFrame, sides: pd.DataFrame) -> Table:
    ends = measured[measured["step"] == measured["step"].max()]
    data = ends.drop(columns=["step", "right"]).merge(sides, on=["agent", "seed"])
    counts = {name: MEASURES[name] for name in ("modes", "maxima")}
    values = {
        "overshoot": MEASURES["overshoot"],
        "right": "share of trajectories to the right",
        "commitment": "commitment",
    }
    rows = [
        {
            "agent": row["agent"],
            "seed": str(row["seed"]),
            **{title: str(row[name]) for name, title in counts.items()},
            **{title: number(row[name]) for name, title in values.items()},
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "runs-table",
        "Each run at the end of training: what it samples in the state, and where its trajectories "
        "go. Two modes alone do not make two sides: pushes that are drawn independently mostly end "
        "on the side that is drawn more often.",
        pd.DataFrame(rows),
        data,
    )
