"""Figures can be read: nothing lies over anything else, and nothing is cut off."""

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from qsm_bench.report import figures
from qsm_bench.report.figures import Chart
from qsm_bench.statistics.estimates import STATISTICS
from qsm_bench.statistics.ranking import BOUNDS, Ranking
from qsm_bench.statistics.selection import AREA_UNDER_CURVE, FINAL

SETTINGS: tuple[str, ...] = (
    "alpha=10,diffusion_steps=20",
    "actor_learning_rate=0.0003,discount=0.995",
)
SETTINGS += ("hidden_sizes=[512,512,512],learning_rate=0.0003", "alpha=20,n_step=3")
AGENTS = [
    "qsm",
    *(
        f"{agent}[{settings}]"
        for settings in (*SETTINGS, "alpha=5,x=" + 60 * "y", "a=1,b=2")
        for agent in ("qsm", "diffusion_ql", "diffusion_pg", "sac", "td3")
    ),
]
TASKS = ("cartpole-swingup", "package.module:Environment-of-a-very-long-name-indeed-v0", "a", "b")


def curves(agents: list[str], tasks: tuple[str, ...] = TASKS) -> Chart:
    rows = [
        (agent, task, step, step * i, step * i - 1, step * i + 1)
        for i, agent in enumerate(agents)
        for task in tasks
        for step in (1_000, 500_000, 1_000_000)
    ]
    table = pd.DataFrame(rows, columns=["agent", "task", "step", "value", "low", "high"])
    marks = pd.DataFrame([{"task": "a", "step": 1000, "value": 1.0, "low": 0.0, "high": 2.0}])
    return figures.curves(
        table,
        figures.agent_styles(agents),
        x="step",
        x_label="steps",
        y_label="return",
        panel_by="task" if len(tasks) > 1 else None,
        marks=[figures.Marks("published by somebody", marks, "h", "seeds")]
        if len(tasks) > 1
        else (),
    )


def test_a_line_is_dashed_only_where_it_is_from_elsewhere() -> None:
    agents = ["own", "both", "elsewhere"]
    rows = [(a, task, x, x, x, x) for a in agents for task in "st" for x in (1, 2)]
    chart = figures.curves(
        pd.DataFrame(rows, columns=["agent", "task", "step", "value", "low", "high"]),
        figures.agent_styles(agents),
        x="step",
        x_label="steps",
        y_label="return",
        panel_by="task",
        dashed=[("both", "t"), ("elsewhere", "s"), ("elsewhere", "t")],
    )

    def are_dashed(lines: Iterable[Line2D]) -> list[bool]:
        return [line.get_linestyle() == "--" for line in lines]

    first, second = chart.figure.axes
    assert are_dashed(first.lines) == [False, False, True]
    assert are_dashed(second.lines) == [False, True, True]
    assert are_dashed(chart.figure.legends[0].get_lines()) == [False, False, True]
    styles = figures.agent_styles([str(number) for number in range(100)])
    assert figures.DASHED not in [style.line for style in styles.values()]


def profiles(agents: list[str]) -> Chart:
    return curves(agents, ("a",))


def aggregates(agents: list[str]) -> Chart:
    rows = [
        (agent, statistic, when, 0.5, 0.4, 0.6)
        for agent in agents
        for statistic in STATISTICS
        for when in (FINAL, AREA_UNDER_CURVE)
    ]
    columns = ["agent", "statistic", "measured", "value", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    return figures.aggregate_intervals(table, figures.agent_styles(agents))


def ranking(agents: list[str]) -> Chart:
    values = {column: np.linspace(0.9, 0.1, len(agents)) for column in BOUNDS}
    table = pd.DataFrame({"agent": agents, **values})
    groups = tuple(tuple(agents[i : i + 3]) for i in range(len(agents) - 1))
    return figures.ranking(
        Ranking(f"IQM of returns on {TASKS[1]}", table, groups, {}, True),
        figures.agent_styles(agents),
    )


def matrix(agents: list[str]) -> Chart:
    values = np.full((len(agents), len(agents)), 0.25)
    table = pd.DataFrame(values, index=agents, columns=agents)
    return figures.pair_matrix(table, table < 1)


def slices(agents: list[str]) -> Chart:
    rows = [
        (agent, task, action, 100 * action, 0.3)
        for agent in agents
        for task in TASKS[:2]
        for action in (-1.0, 0.0, 1.0)
    ]
    table = pd.DataFrame(rows, columns=["agent", "task", "action", "q", "share"])
    return figures.action_slices(table, figures.agent_styles(agents))


def overlap(one: Bbox, other: Bbox) -> bool:
    """Tell whether two boxes overlap by more than a pixel."""
    both = Bbox.intersection(one, other)
    return both is not None and both.width > 1 and both.height > 1


@pytest.mark.parametrize("count", [2, 16, 30])
@pytest.mark.parametrize("draw", [curves, profiles, aggregates, ranking, matrix, slices])
def test_nothing_overlaps_and_nothing_is_cut_off(
    draw: Callable[[list[str]], Chart], count: int
) -> None:
    chart = draw(AGENTS[:count])
    figure = chart.figure
    figures.lay_out(figure)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    boxes = [panel.get_window_extent() for panel in panels]
    assert all(box.width > 50 and box.height > 40 for box in boxes)
    whole = figure.bbox.padded(1)
    for artist in (*panels, *figure.legends):
        box = artist.get_tightbbox()
        assert box is not None
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, artist
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, artist
    labels = {label for panel in panels for label in named(panel)}
    for legend in figure.legends:
        for box in boxes:
            assert not overlap(legend.get_window_extent(), box)
        for label in labels:
            assert not overlap(legend.get_window_extent(), label.get_window_extent()), label
    for one, other in itertools.combinations(labels, 2):
        assert not overlap(one.get_window_extent(), other.get_window_extent()), (one, other)


def named(panel: Axes) -> list[Text]:
    """Return what a reader must tell apart: titles, axes' names, agents at the ticks."""
    texts = [panel.title, panel.xaxis.label, panel.yaxis.label]
    texts += [t for t in panel.get_yticklabels() if re.search("[a-z]", t.get_text())]
    return [text for text in texts if text.get_text() and text.get_visible()]


def test_a_picture_too_long_to_be_drawn_whole_is_drawn_smaller(tmp_path: Path) -> None:
    chart = matrix(["a"])
    chart.figure.set_size_inches(1, 500)
    figures.save(chart, tmp_path, "long")
    assert (tmp_path / "long.png").stat().st_size


def test_on_a_logarithmic_axis_equal_factors_are_equal_distances() -> None:
    values = {"value": 1.0, "low": 0.5, "high": 1.5}
    table = pd.DataFrame([{"agent": "qsm", "x": 10.0**i, **values} for i in range(-3, 4)])
    chart = figures.curves(
        table, figures.agent_styles(["qsm"]), x="x", x_label="x", y_label="y", log_x=True
    )
    figures.lay_out(chart.figure)
    places = [panel.transData.transform((x, y))[0] for panel, x, y, _ in chart.values]
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0])
    (panel,) = chart.figure.axes
    assert {"0.01", "1", "100"} <= {label.get_text() for label in panel.get_xticklabels()}
