"""Figure 5: the actions of QSM and of Diffusion-QL at one state, as a map and in numbers."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qsm_bench.protocol import Protocol
from qsm_bench.relabeling import relabeled
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Picture, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import BOOTSTRAP, interval, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.estimates import mean_interval, task_curves
from qsm_bench.statistics.selection import Comparison, FloatArray, learning_curves, select_runs
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    sign_test,
)
from qsm_bench.studies.embedding import import_umap, neighbor_map, principal_components
from qsm_bench.studies.parts import Part, decide, part_section, tell_more
from qsm_bench.studies.sampled_actions import (
    ALL_MODES,
    AT_BOUND,
    EACH,
    ENTROPY,
    GAIN,
    HIGH,
    MEASURES,
    MODES,
    PULLED,
    SAMPLES,
    UNIFORM,
    Actions,
    Run,
    load_trained,
    look,
    measure,
)
from qsm_bench.studies.study import Budget, Cells, Findings, Study, Verdict
from qsm_bench.studies.trainers import small_label
from qsm_bench.suites import SUITES

QSM, QL = TRAINERS = "qsm", "diffusion_ql"
PAPERS_TASK = "quadruped-walk"
QUICK_TASK = "HalfCheetah-v5"
"""Six action dimensions, a reward at every step, and physics that take little time."""
MAPPED = 300
"""Actions of each trainer on a map."""
DRAWN = MODES, ENTROPY, GAIN, ALL_MODES, AT_BOUND, PULLED
UMAP, PCA = MAPS = "UMAP", "principal components"
LOW_COLOR, HIGH_COLOR = 0.0, 1.0
"""The gains at the ends of the color scale; what is below has the color of the lower end."""


class ActionMap(Study):
    """Modes, entropy and value of both trainers' actions at the same states, and maps of them."""

    name = "action-map"
    title = "QSM's actions at a state are more diverse than Diffusion-QL's"
    claim = (
        f"Figure 5: at a state of {PAPERS_TASK} the actions of a policy trained by QSM are more "
        "diverse than those of one trained by Diffusion-QL: they lie at several places of high Q."
    )
    test = (
        f"Three parts, each on values of the trained policies at {2 * EACH} states, half of them "
        f"from episodes of each trainer, and {SAMPLES} actions at each; a run's value is the mean "
        "over states. The gain of an action is its Q by the run's own critic, with the mean of "
        f"{UNIFORM:,} uniform actions as 0 and the best of all actions that were tried as 1. "
        "Modes: the number of modes of the actions' density that hold 5% of the actions and have "
        f"a mean gain of at least {HIGH:g}, so that corners where the sampler ends by overshoot do "
        "not count unless Q is high there. Entropy: the nearest-neighbor estimate of "
        f"the actions' entropy. Each is compared by an exact two-sided permutation test at "
        f"{FALSE_ALARMS:g}: the part holds if qsm has more than diffusion_ql, and does not hold if "
        f"it has less. Quality: the mean gain of qsm's actions. The part holds if it is at least "
        f"{HIGH:g} in so many seeds that an exact two-sided sign test has p of at most "
        f"{FALSE_ALARMS:g}, and does not hold if it is below in so many. A part that neither holds "
        "nor does not cannot tell. The claim holds if all parts hold, and does not hold if one of "
        "them does not; else the study cannot tell."
    )
    limits = (
        "A map shows that something is there, and proves nothing. UMAP keeps neighbors: distances "
        "between its clusters, their sizes and their density mean nothing, and it may tear one "
        "cloud into several. Principal components are two directions of many. So no part of the "
        "test is about a map.",
        "Each trainer is judged by its own critic, which is learned and which its policy has "
        "climbed. The gain by the other trainer's critic is shown beside it, and no test is on it.",
        "Modes are those of a kernel density whose width is fixed for each number of dimensions, "
        "and need 5% of the actions: a policy that is spread thinly over many dimensions has none. "
        "Then the entropy tells more.",
        "Entropy is that of a density: where actions coincide, as on a corner of the box, the "
        "estimate is at a floor that the resolution sets. It does not count the corners.",
        "How diverse qsm is, and whether it overshoots, depends on alpha. It has the default, and "
        "was not tuned for this study: where most entries are pulled inward, the verdict is one on "
        "that alpha on this task, and the returns show whether the policy learned at all. "
        "diffusion_ql has no such setting: its loss asks for the best action alone.",
        f"The quick budget has no {PAPERS_TASK}: it cannot be learned in minutes. It has "
        f"{QUICK_TASK} with 6 action dimensions in place of 12, early in training, small networks, "
        "and for diffusion_ql the smaller step size of the actor that the project uses on small "
        "tasks.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 4, "full": 8_000}
    lines = TRAINERS

    def check_installed(self) -> None:
        import_umap()

    def cells(self, budget: Budget) -> Sequence[Cells]:
        if budget == "full":
            agents = ",".join(TRAINERS)
            return [Cells("control", agents, PAPERS_TASK, Protocol(steps=1_000_000), seeds=10)]
        suite, agents = SUITES["quick"].protocol, ",".join(map(small_label, TRAINERS))
        if budget == "quick":
            return [Cells("control", agents, QUICK_TASK, suite, seeds=6)]
        shorter = suite.but(steps=300, warmup_steps=100, eval_every=150, eval_episodes=1)
        return [Cells("goals", agents, "four-goals", shorter, seeds=2)]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        (trained,) = results.values()
        names = {cell["agent"]: cell["agent_name"] for cell in trained.cells}
        trained = relabeled(trained, names)
        comparison = select_runs(trained)
        seeds, returns = shared_seeds(comparison), _return_section(trained, comparison, drawing)
        if not seeds:
            return Findings(Verdict("cannot tell", "No seed has runs of both trainers."), [returns])
        found = look(load_trained(trained), TRAINERS, seeds)
        runs = measure(found)
        parts = decide_parts(runs)
        sections = [
            part_section(parts),
            _measure_section(runs, drawing),
            _map_section(found, runs, drawing),
            returns,
        ]
        return Findings(decide(parts), sections)


def shared_seeds(comparison: Comparison) -> list[int]:
    """The seeds of which both trainers have a run to compare."""
    seeds = [{*curve.seeds} for (agent, _), curve in comparison.runs.items() if agent in TRAINERS]
    return sorted(set.intersection(*seeds)) if len(seeds) == len(TRAINERS) else []


# What decides.


def decide_parts(runs: pd.DataFrame) -> list[Part]:
    """The parts of the claim; ``runs`` has the columns of ``sampled_actions.measure``."""
    return [
        decide_more("Modes", runs, MODES),
        decide_more("Entropy", runs, ENTROPY),
        decide_quality(runs),
    ]


def by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean over states of each run. Columns: agent, seed, the MEASURES."""
    return runs.groupby(["agent", "seed"], sort=False)[list(MEASURES)].mean().reset_index()


def decide_more(name: str, runs: pd.DataFrame, measured: str) -> Part:
    """Whether qsm has more of something than diffusion_ql."""
    seeds = by_seed(runs)
    of_qsm, of_ql = (_of_trainer(seeds, t, measured)[:, np.newaxis] for t in TRAINERS)
    outcome, p = tell_more(of_qsm, of_ql)
    why = (
        f"{measured[0].upper()}{measured[1:]}: {_mean_text(seeds, QSM, measured)} with {QSM}, "
        f"{_mean_text(seeds, QL, measured)} with {QL} ({p_value_text(p)})."
    )
    return Part(name, outcome, why)


def decide_quality(runs: pd.DataFrame) -> Part:
    """Whether qsm's actions are nearer to the best that is known than to uniform ones."""
    seeds = by_seed(runs)
    found = _of_trainer(seeds, QSM, GAIN)
    high = int((found >= HIGH).sum())
    p = sign_test(high, len(found))
    why = (
        f"The mean gain of {QSM}'s actions is {_mean_text(seeds, QSM, GAIN)}, and at least "
        f"{HIGH:g} in {high} of {len(found)} seeds ({p_value_text(p)}); that of {QL}'s is "
        f"{_mean_text(seeds, QL, GAIN)}."
    )
    if p > FALSE_ALARMS:
        return Part("Quality", "cannot tell", why)
    return Part("Quality", "holds" if 2 * high > len(found) else "does not hold", why)


def _of_trainer(seeds: pd.DataFrame, trainer: str, measured: str) -> FloatArray:
    return seeds.loc[seeds["agent"] == trainer, measured].to_numpy(float)


def _mean_text(seeds: pd.DataFrame, trainer: str, measured: str) -> str:
    return interval(*mean_interval(_of_trainer(seeds, trainer, measured)))


# What the report shows.


def _measure_section(runs: pd.DataFrame, drawing: Drawing) -> Section:
    seeds = by_seed(runs)
    rows = [
        {"measure": name, **{t: _mean_text(seeds, t, name) for t in TRAINERS}} for name in MEASURES
    ]
    bounds = "; ".join(
        f"{trainer}: {_mean_text(seeds, trainer, AT_BOUND)} of the entries at a bound, "
        f"{_mean_text(seeds, trainer, PULLED)} pulled inward"
        for trainer in TRAINERS
    )
    return Section(
        "Diversity, Q and the bounds",
        [
            drawing.picture(
                "measures",
                _measure_chart(seeds, drawing),
                seeds,
                alt="A panel for each measure, with each trainer's seeds, mean and interval. "
                f"{bounds}.",
                caption="Means over states and seeds with their 95% bootstrap intervals over "
                "seeds; small dots are seeds.",
            ),
            Text(
                "Overshoot looks like several modes: a last step of the sampler that is too long "
                "puts the actions on bounds and corners of the action box. Two things tell it "
                "apart. A mode at high Q has a mean gain of at least "
                f"{HIGH:g}; a corner beyond the maximum of Q has less. An entry at a bound is "
                "pulled inward if the run's critic rises from there into the box: the step went "
                f"too far. Where a bound is the best place, Q rises outward. {bounds}."
            ),
            Table(
                "measures-table",
                f"Means over {2 * EACH} states and over seeds [95%]. Entropy in nats; all else are "
                "numbers and shares. All modes: also those of low Q. Samples in a mode: the rest "
                "is spread too thinly. Gain by the other critic: that of the other trainer's run "
                f"of the same seed. {BOOTSTRAP}",
                pd.DataFrame(rows),
                runs,
            ),
        ],
    )


def _measure_chart(seeds: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    with mpl.rc_context(figures.STYLE):
        chart = figures.Chart(Figure(figsize=(8.6, 3.6), layout="constrained"))
        panels = chart.figure.subplots(2, len(DRAWN) // 2, sharey=True)
        for panel, measured in zip(panels.flat, DRAWN, strict=True):
            for y, trainer in enumerate(TRAINERS):
                style = drawing.styles[trainer]
                of_seeds = _of_trainer(seeds, trainer, measured)
                value, low, high = mean_interval(of_seeds)
                panel.plot(of_seeds, [y + 0.25] * len(of_seeds), ".", color=style.color, alpha=0.5)
                panel.plot([low, high], [y, y], color=style.color, linewidth=3, alpha=0.5)
                panel.plot([value], [y], color=style.color, marker=style.marker, markersize=7)
                text = f"{trainer}, {measured}: {interval(value, low, high)}"
                chart.values.append((panel, value, float(y), text))
            panel.set_title(measured)
            panel.margins(x=0.08)
            if measured in (AT_BOUND, PULLED):
                panel.set_xlim(-0.05, 1.05)
            panel.locator_params(axis="x", nbins=5)
            panel.grid(visible=False, axis="y")
            panel.set_yticks(range(len(TRAINERS)), TRAINERS)
            panel.set_ylim(len(TRAINERS) - 0.5, -0.5)
        return chart


def _map_section(found: Mapping[Run, Actions], runs: pd.DataFrame, drawing: Drawing) -> Section:
    seed = min(seed for _, seed in found)
    pictures = [
        _map_picture(found, runs, seed, state, visitor, drawing)
        for state, visitor in zip((0, EACH), TRAINERS, strict=True)
    ]
    return Section(
        "Maps of actions",
        [
            *pictures,
            Text(
                "Both maps of a state are made from the actions of both trainers together, so that "
                "a place means the same action in both columns. The state and the seed are the "
                "first of each kind, whatever they show. Color is the gain by the trainer's own "
                "critic. Two critics have different scales, and a color for Q itself could not be "
                "compared; the gain can, as far as the critics are right. UMAP keeps neighbors "
                "together: how far its clusters lie apart, and how wide they are, means nothing."
            ),
        ],
    )


def _map_picture(
    found: Mapping[Run, Actions],
    runs: pd.DataFrame,
    seed: int,
    state: int,
    visitor: str,
    drawing: Drawing,
) -> Picture:
    points, shares = map_actions({t: found[t, seed] for t in TRAINERS}, state)
    at_state = runs[(runs["seed"] == seed) & (runs["state"] == state)].to_dict("records")
    here = {row["agent"]: row for row in at_state}
    told = "; ".join(
        f"{trainer}: {number(here[trainer][MODES])} modes at high Q of "
        f"{number(here[trainer][ALL_MODES])}, entropy {number(here[trainer][ENTROPY])}, "
        f"mean gain {number(here[trainer][GAIN])}, {number(here[trainer][AT_BOUND])} of "
        "the entries at a bound"
        for trainer in TRAINERS
    )
    return drawing.picture(
        f"map-{visitor}",
        _map_chart(points),
        points,
        alt=f"Four maps of actions, by UMAP and by principal components, of {QSM} and of {QL}, "
        f"colored by gain. {told}.",
        caption=f"{MAPPED} actions of each trainer at a state that {visitor} has visited (seed "
        f"{seed}); gray: those of the other. A larger mark is several equal actions. A cross "
        "has an entry that the critic pulls inward from a bound. The two principal components have "
        f"{number(100 * shares[0], 2)}% and {number(100 * shares[1], 2)}% of the variance. {told}.",
    )


def map_actions(
    of_trainers: Mapping[str, Actions], state: int
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Both maps of the trainers' actions at a state, fitted to all of them together.

    Returns a row for each map, trainer and different action: map, agent, x, y, gain, pulled
    (whether an entry is pulled inward), count (of equal actions); and the shares of the variance of
    the two principal components.
    """
    samples = [a.samples[state, :MAPPED].double().numpy() for a in of_trainers.values()]
    actions = np.concatenate(samples)
    components, shares = principal_components(actions)
    about = pd.DataFrame(
        {
            "agent": np.repeat(list(of_trainers), [len(part) for part in samples]),
            "gain": np.concatenate([a.gain[state, :MAPPED].numpy() for a in of_trainers.values()]),
            "pulled": np.concatenate(
                [a.pulled[state, :MAPPED].any(dim=-1).numpy() for a in of_trainers.values()]
            ),
        }
    )
    tables = [
        about.assign(map=name, x=places[:, 0], y=places[:, 1])
        for name, places in ((UMAP, neighbor_map(actions)), (PCA, components))
    ]
    columns = ["map", "agent", "x", "y", "gain", "pulled"]
    places = pd.concat(tables).groupby(columns, sort=False).size().reset_index(name="count")
    return places, (float(shares[0]), float(shares[1]))


def _map_chart(points: pd.DataFrame) -> figures.Chart:
    """A row for each kind of map, a column for each trainer; both columns have the same axes."""
    with mpl.rc_context(figures.STYLE):
        chart = figures.Chart(Figure(figsize=(8.6, 7.4), layout="constrained"))
        figure = chart.figure
        panels = figure.subplots(len(MAPS), len(TRAINERS), sharex="row", sharey="row")
        for row, name in zip(panels, MAPS, strict=True):
            here = points[points["map"] == name]
            for panel, trainer in zip(row, TRAINERS, strict=True):
                own = here["agent"] == trainer
                panel.scatter(
                    here.loc[~own, "x"], here.loc[~own, "y"], s=5, color=figures.INK, alpha=0.12
                )
                shown = _draw_actions(panel, here[own])
                panel.set_title(f"{trainer}, {name}")
                panel.grid(visible=False)
                if name == UMAP:
                    panel.set_xticks([])
                    panel.set_yticks([])
        panels[-1][0].set_ylabel("second component")
        for panel in panels[-1]:
            panel.set_xlabel("first component")
        bar = figure.colorbar(shown, ax=panels, shrink=0.6, extend="min")
        bar.set_label("gain by the trainer's own critic")
        handles = [
            Line2D([], [], color=figures.INK, marker=marker, linestyle="none", label=label)
            for marker, label in (("o", "no entry pulled inward"), ("x", "an entry pulled inward"))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return chart


def _draw_actions(panel: Axes, own: pd.DataFrame) -> mpl.collections.PathCollection:
    """A trainer's actions in one panel; returns what the color bar is made of."""
    for pulled, marker in ((True, "x"), (False, "o")):
        part = own[own["pulled"] == pulled]
        shown = panel.scatter(
            part["x"],
            part["y"],
            c=part["gain"],
            s=14 * np.sqrt(part["count"]),
            marker=marker,
            linewidths=0.9 if pulled else 0,
            cmap="viridis",
            vmin=LOW_COLOR,
            vmax=HIGH_COLOR,
        )
    return shown


def _return_section(trained: Results, comparison: Comparison, drawing: Drawing) -> Section:
    left_out = comparison.left_out
    missing: list[Block] = [Bullets(left_out)] if left_out else []
    curves = task_curves(learning_curves(trained))
    ends = curves.groupby("agent", sort=False).last()
    told = "; ".join(
        f"{agent}: {interval(row['value'], row['low'], row['high'])}"
        for agent, row in ends.iterrows()
    )
    return Section(
        "Returns",
        [
            drawing.picture(
                "returns",
                figures.curves(
                    curves,
                    drawing.styles,
                    x="step",
                    x_label="steps",
                    y_label="return",
                    panel_by="task",
                ),
                curves,
                alt=f"Mean return over steps. At the end: {told}.",
                caption=f"Mean return and its 95% bootstrap interval over seeds. At the end: "
                f"{told}. No part of the test is on it.",
            ),
            *missing,
        ],
    )


STUDY = ActionMap()
