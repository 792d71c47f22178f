"""What later work says of Q-score matching: each objection a column, against plain qsm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from agents.common.diffusion import Schedule
from agents.qsm import QSMConfig
from qsm_bench.protocol import Protocol
from qsm_bench.relabeling import relabeled
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import BOOTSTRAP, interval, listed, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.significance import FALSE_ALARMS
from qsm_bench.studies.noised_score import (
    CRITICS,
    DRAWN,
    EXACT,
    MAXIMUM,
    POINTS,
    QSM,
    ROOT,
    TARGETS,
    draw,
    make_target,
    measure_distances,
    midpoints,
    prediction_errors,
    predictions,
    shares,
    temperature_ratio,
)
from qsm_bench.studies.parts import Part, decide, part_section
from qsm_bench.studies.study import Budget, Cells, Findings, Outcome, Study
from qsm_bench.studies.trainers import compare_returns, final_table, pair_table
from qsm_bench.suites import SUITES

MIN, ONE, WIDE, N_STEP = "min of critics", "one wide critic", "wide critics", "3-step returns"
DRAWS = 16
"""The number K of clean actions of which the trained column estimates the score."""
SAMPLED = f"score of {DRAWS} draws"
VARIANTS = ROOT, MIN, ONE, WIDE, N_STEP, SAMPLED
"""The trained columns beside plain qsm, in their order."""
STEPS = 5
"""The number T of denoising steps of the paper, and of the trained policies."""
FINE = 50
"""With so many steps, the sampler follows an exact score closely."""
TESTED = STEPS, FINE
LENGTHS = 2, STEPS, 10, 20, FINE
TAU = 1.0
"""The temperature of the test: the laws are neither nearly uniform nor nearly one point."""
TAUS = 0.1, 0.2, 0.5, TAU, 2.0, 5.0, 10.0
REPETITIONS = 8
SAMPLES: Mapping[Budget, int] = {"tiny": 200, "quick": 2_000, "full": 10_000}
TIMES = 1, 3, STEPS
"""The diffusion times at which targets are drawn."""
BINS = 40
OTHER_CRITICS = "qsm_bench.studies.other_critics:QSMWithOtherCritics"


@dataclass(frozen=True)
class Objection:
    """One thing that is said of QSM."""

    name: str
    who: str
    says: str
    tried: str


OBJECTIONS = (
    Objection(
        "Intermediate score",
        "MaxEntDP (arXiv 2502.11612), SDAC (arXiv 2502.00361), iDEM and DQS (arXiv 2410.01312)",
        "grad_a Q at a noised action is not the score of the noised policy exp(Q / tau); that is "
        "an average over the clean actions that it may come from.",
        "Both: on known critics, the exact score and the law of the sampler's actions; and the "
        f"column {SAMPLED}, which is sdac with so many draws at qsm's temperature at t = 1. From "
        "its definition that score has the root, too, and as in sdac it is of the smaller critic.",
    ),
    Objection(
        "Missing root",
        "what iDEM becomes with one draw, at a^t itself; qsm_normalized has the factor, too",
        "The target of eq. 10 lacks the factor sqrt(1 - abar_t) between a score and a noise "
        "prediction, so that each diffusion time has a temperature of its own.",
        f"Both: the law on known critics, and the column {ROOT}. alpha is chosen so that the "
        "temperature at t = 1 is that of plain qsm: the factor alone is tried.",
    ),
    Objection(
        "Smaller critic",
        "Diffusion-QL, QVPO, SDAC and MaxEntDP, whose actors have the smaller of the twin critics",
        "The mean of the twin critics overestimates more than the smaller of the two. (With errors "
        "that are independent, the gradient of the mean has half the variance.)",
        f"The column {MIN}: gradient_of=min. The critic's target has the smaller value in both.",
    ),
    Objection(
        "Critic's width",
        "the authors' own code, which has 512 where the text has 256; in its baseline SAC, all "
        "networks have half of QSM's width",
        "What QSM earns may be owed to the width of a critic: one of width 512 may do as well as "
        "twins of 256, or twins of 512 better.",
        f"Two columns, with the same actor: {ONE}, a single critic of twice the width, and {WIDE}, "
        "twins of twice the width.",
    ),
    Objection(
        "n-step returns",
        "the paper's own text, against the authors' code, which has one step",
        "The text has N-step returns, with N not stated, which spread rewards faster.",
        f"The column {N_STEP}: n_step=3, against 1.",
    ),
)


class Objections(Study):
    """The objections to QSM, by computation on known critics and by training."""

    name = "objections"
    title = "What later work says of Q-score matching, one objection at a time"
    claim = (
        "Later work, and the paper's own text against its code: QSM as published loses something "
        "by each of five choices. It takes the gradient of Q at a noised action for the score "
        "there, without the factor sqrt(1 - abar_t); it has the mean of the twin critics, critics "
        "of one certain width, and one-step returns."
    )
    test = (
        "Eight parts. A part that holds confirms an objection. Two are computed on three known "
        f"critics at the temperature {TAU:g} that QSM has at t = 1, with the policy's own sampler: "
        "how far the actions are from exp(Q / tau), by the Wasserstein distance, in "
        f"{REPETITIONS} independent repetitions. Intermediate score (computed) compares the exact "
        "score of the noised density with QSM's target, Missing root (computed) QSM's target with "
        "its factor and without. Such a part holds if the corrected target is nearer on every "
        f"critic, with T = {listed([str(t) for t in TESTED])}, in each repetition (exact two-sided "
        f"sign test, p = {2 ** (1 - REPETITIONS):.1g}); it does not hold if in one of these cases "
        "it is farther in each. Six are trained, a column each: the final returns of the variant "
        "against those of plain qsm, exact two-sided permutation tests at "
        f"{FALSE_ALARMS:g} with Holm's adjustment for six. Such a part holds if the variant is "
        "better, and does not hold if it is worse. A part that neither holds nor does not cannot "
        "tell. The claim holds if all parts hold, and does not hold if one of them does not; else "
        "the study cannot tell."
    )
    changed = (
        "In the first test a computed part did not hold if the corrected target was nearer in no "
        "repetition of one case. That counts a tie, too: on the slope with T = 5 all actions are "
        "at the bound, with the root and without. Now it has to be farther. The first run, at the "
        "tiny budget, had said of the intermediate score that it cannot tell, and of the missing "
        "root that it does not hold. The changed test says the same of its numbers. "
        f"Later, when there was a trainer for it, the column {SAMPLED} was added as the eighth "
        "part. A quick run had then been seen, which said of the other seven what this one says, "
        "with an adjustment for five."
    )
    limits = (
        "That a variant is not found to be better does not show that it is as good: few seeds find "
        "large differences alone. So a part that cannot tell is no acquittal of QSM.",
        "That the law of the actions is nearer to exp(Q / tau) does not mean a better return. Of "
        "eq. 10 the paper says that it turns the score towards grad_a Q, not that samples have "
        "this law; it is eq. 19 that names it.",
        f"The column {SAMPLED} differs from plain qsm in three things at once: the score, the root "
        "and the smaller critic. The known critics have one action dimension, and the ideal "
        "denoisers no error.",
        "The sampler is the paper's, with a clip at each step and no noise in the last. With "
        f"T = {STEPS} it follows no score closely, not even the exact one; and where exp(Q / tau) "
        "reaches a bound, the clip keeps noised actions in the box at any T, which those of an "
        "exact law would leave.",
        "On two equal modes the distance depends on how many actions fall to each by chance; with "
        "few actions that hides small differences between targets.",
        "The width of 512 is read in two ways, as one critic and as twins. In the quick budget, "
        "where networks have 64 units, twice the width is 128. A critic of twice the width has "
        "about twice the weights of the twins that it replaces. The critic's target of one critic "
        "has no smaller value to choose.",
        "n is 3 because the text names none. With replayed transitions, n-step returns are those "
        "of older policies, and are not corrected for it.",
        "The quick budget has one easy task with one action dimension, small networks and "
        "alpha = 50, which was not tuned: with another alpha an objection may weigh more or less.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 8, "full": 40_000}

    def cells(self, budget: Budget) -> Sequence[Cells]:
        if budget == "full":
            tasks, default = "walker-walk,cheetah-run", QSMConfig.hidden_sizes
            return [Cells("control", _agents(default), tasks, Protocol(), seeds=10)]
        suite = SUITES["quick"].protocol
        small = suite.but(settings={**suite.settings, "n_step": 1})
        agents = _agents(small.settings["hidden_sizes"])
        if budget == "quick":
            return [Cells("cartpole", agents, "cartpole-balance", small, seeds=8)]
        shorter = small.but(steps=200, warmup_steps=100, eval_every=200, eval_episodes=1)
        return [Cells("pendulum", agents, "Pendulum-v1", shorter, seeds=2)]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        (trained,) = results.values()
        drawing = replace(drawing, styles=_styles())
        labels = dict(zip(trained.experiment["agents"], (QSM, *VARIANTS), strict=True))
        analysis = Analysis(relabeled(trained, labels))
        pairs = compare_returns(analysis.comparison, VARIANTS)
        lengths, taus = (TESTED, (TAU,)) if budget == "tiny" else (LENGTHS, TAUS)
        over_steps = measure_distances((TAU,), lengths, REPETITIONS, SAMPLES[budget])
        over_taus = measure_distances(taus, (STEPS,), REPETITIONS, SAMPLES[budget])
        score = decide_law("Intermediate score (computed)", over_steps, EXACT)
        root = decide_law("Missing root (computed)", over_steps, ROOT)
        trained_parts = decide_returns(pairs)
        sections = [
            part_section([score, root, *trained_parts]),
            _objection_section(),
            _target_section(drawing),
            _law_section(over_steps, over_taus, SAMPLES[budget], [score, root], drawing),
            _return_section(analysis, pairs, trained_parts, drawing),
        ]
        return Findings(decide([score, root, *trained_parts]), sections)


def alpha_with_root(alpha: float, steps: int) -> float:
    """The alpha with which target_scale=noised has QSM's temperature at t = 1."""
    return alpha / float((1 - Schedule(steps, torch.device("cpu")).abar[1]).sqrt())


def _agents(hidden_sizes: Sequence[int]) -> str:
    """The columns of an experiment, plain qsm first, then the VARIANTS."""
    alpha = alpha_with_root(QSMConfig.alpha, STEPS)
    tau = 1 / alpha  # of plain qsm at t = 1, too
    twice = ",".join(str(2 * width) for width in hidden_sizes)
    columns = {
        QSM: "qsm",
        ROOT: f"qsm[target_scale=noised,alpha={alpha:.6g}]",
        MIN: "qsm[gradient_of=min]",
        ONE: f"{OTHER_CRITICS}[critics=1,critic_hidden_sizes=[{twice}]]",
        WIDE: f"{OTHER_CRITICS}[critics=2,critic_hidden_sizes=[{twice}]]",
        N_STEP: "qsm[n_step=3]",
        SAMPLED: f"sdac[samples={DRAWS},temperature={tau:.6g}]",
    }
    return ",".join(columns[name] for name in (QSM, *VARIANTS))


def _styles() -> dict[str, figures.AgentStyle]:
    """Styles by the names that figures show; no figure has both computed and trained ones."""
    return figures.agent_styles([*TARGETS, DRAWN]) | figures.agent_styles([QSM, *VARIANTS])


# What decides.


def decide_law(name: str, distances: pd.DataFrame, corrected: str) -> Part:
    """``distances`` has the columns of ``measure_distances``; only T in TESTED count."""
    nearer, farther, told = [], [], []
    for (critic, steps), group in distances.groupby(["critic", "T"], sort=False):
        if steps not in TESTED:
            continue
        found = group.pivot(index="repetition", columns="agent", values="distance")
        nearer.append(found[corrected] < found[QSM])
        farther.append(found[corrected] > found[QSM])
        told.append(
            f"{critic}, T = {steps}: {number(found[corrected].median())} against "
            f"{number(found[QSM].median())} of qsm (nearer in {nearer[-1].sum()} and "
            f"farther in {farther[-1].sum()} of {len(found)})"
        )
    why = f"Distance from exp(Q / tau) {_with(corrected)}, median: {'; '.join(told)}."
    refuted: Outcome = "does not hold" if any(each.all() for each in farther) else "cannot tell"
    return Part(name, "holds" if all(each.all() for each in nearer) else refuted, why)


def decide_returns(pairs: pd.DataFrame) -> list[Part]:
    """A part for each variant; ``pairs`` has the columns of ``compare_returns``."""
    names = {
        ROOT: "Missing root (trained)",
        MIN: "Smaller critic",
        ONE: "One wide critic",
        WIDE: "Wide critics",
        N_STEP: "n-step returns",
        SAMPLED: "Intermediate score (trained)",
    }
    parts: list[Part] = []
    for row in pairs.to_dict("records"):
        chance, seen = 1 - row["probability"], row["adjusted"] <= FALSE_ALARMS
        why = (
            f"At the end a run {_with(row['rival'])} has a better return than one of plain qsm "
            f"with probability {number(chance)} ({p_value_text(row['adjusted'])} by Holm)."
        )
        worse: Outcome = "does not hold" if seen and chance < 0.5 else "cannot tell"
        outcome: Outcome = "holds" if seen and chance > 0.5 else worse
        parts.append(Part(names[row["rival"]], outcome, why))
    return parts


def _with(name: str) -> str:
    """A target or a variant in a sentence."""
    definite = name in (EXACT, MIN, SAMPLED)
    return name if name == ROOT else f"with the {name}" if definite else f"with {name}"


# What the report shows.


def _objection_section() -> Section:
    data = pd.DataFrame(
        [
            {
                "objection": each.name,
                "who says it": each.who,
                "what it says": each.says,
                "how it is tried": each.tried,
            }
            for each in OBJECTIONS
        ]
    )
    return Section("The objections", [Table("objections", "One by one.", data, data)])


def _target_section(drawing: Drawing) -> Section:
    """What the three targets ask for, without any sampler."""
    targets = pd.concat([predictions(critic, TAU, STEPS, TIMES) for critic in CRITICS])
    targets = targets.assign(low=targets["value"], high=targets["value"])
    targets["panel"] = [
        f"{critic}, t = {t}" for critic, t in zip(targets["critic"], targets["t"], strict=True)
    ]
    errors = pd.concat([prediction_errors(critic, TAU, STEPS) for critic in CRITICS])
    last = errors[errors["t"] == STEPS].set_index(["critic", "agent"])["error"]
    said = "; ".join(
        f"{critic}: {number(last[critic, QSM])} for qsm and {number(last[critic, ROOT])} {ROOT}"
        for critic in CRITICS
    )
    chart = figures.curves(
        targets,
        drawing.styles,
        x="action",
        x_label="noised action a^t",
        y_label="noise to predict",
        panel_by="panel",
    )
    for panel in chart.figure.axes:
        panel.set_ylim(-6, 6)
    return Section(
        "What the denoiser is to predict",
        [
            Text(
                f"Three known critics of one action: a parabola, Q = -5 (a - {MAXIMUM:g})^2; a "
                "slope, Q = 5 a; and two equal modes at -0.5 and 0.5. A policy exp(Q / tau) on the "
                "action box, noised to t, has a score that is known by quadrature over clean "
                f"actions ({POINTS} points). The exact score's noise prediction is "
                "-sqrt(1 - abar_t) times it. qsm is eq. 10 with alpha = sqrt(1 - abar_1) / tau, so "
                f"that its temperature at t = 1 is tau = {TAU:g}. {ROOT.capitalize()}, the factor "
                "sqrt(1 - abar_t) is in its place: that is qsm at t = 1, and the same temperature "
                "at every t. Neither knows the action box."
            ),
            drawing.picture(
                "targets",
                chart,
                targets,
                alt="The noise to predict against the noised action, for three critics and three "
                f"diffusion times. Relative distance from the exact score at t = {STEPS}: {said}.",
                caption=f"What three targets ask the denoiser to predict, T = {STEPS}, tau = "
                f"{TAU:g}. At t = 1 the root changes nothing.",
            ),
            _error_table(errors),
            _temperature_table(),
        ],
    )


def _error_table(errors: pd.DataFrame) -> Table:
    shown = errors.assign(
        target=[f"{c}, {a}" for c, a in zip(errors["critic"], errors["agent"], strict=True)],
        time=[f"t = {t}" for t in errors["t"]],
        text=[number(value) for value in errors["error"]],
    )
    cells = shown.pivot(index="target", columns="time", values="text")
    cells = cells.loc[list(dict.fromkeys(shown["target"]))].reset_index()
    return Table(
        "errors",
        "How far a target is from that of the exact score where the noised actions of exp(Q / tau) "
        "are: root mean square of the difference over that of the exact one.",
        cells.rename_axis(columns=None),
        errors,
    )


def _temperature_table() -> Table:
    data = pd.DataFrame([{"T": steps, "ratio": temperature_ratio(steps)} for steps in LENGTHS])
    cells = pd.DataFrame(
        {
            "T": data["T"].astype(str),
            "temperature at t = T over that at t = 1": data["ratio"].map(number),
        }
    )
    return Table(
        "temperature-ratio",
        "What the missing root means: qsm's temperature sqrt(1 - abar_t) / alpha grows with t. "
        "With the root the ratio is 1.",
        cells,
        data,
    )


def _law_section(
    over_steps: pd.DataFrame,
    over_taus: pd.DataFrame,
    samples: int,
    parts: Sequence[Part],
    drawing: Drawing,
) -> Section:
    laws = _laws(samples)
    steps, taus = _spread(over_steps, "T"), _spread(over_taus, "tau")
    why = " ".join(part.why for part in parts)
    pictures = [
        drawing.picture(
            f"distance-{name}",
            _distance_chart(table, x, label, drawing),
            table,
            alt=f"Wasserstein distance of the sampler's actions from exp(Q / tau) against {label}, "
            f"a panel for each critic. {why}",
            caption=f"Distance of the sampler's actions from exp(Q / tau) at {fixed}. Median and "
            f"range of {REPETITIONS} repetitions of {samples:,} actions. {DRAWN.capitalize()}: as "
            "many samples of exp(Q / tau) itself.",
        )
        for name, table, x, label, fixed in (
            ("steps", steps, "T", "T", f"tau = {TAU:g}"),
            ("tau", taus, "tau", "temperature tau", f"T = {STEPS}"),
        )
    ]
    return Section(
        "The law of the actions",
        [
            Text(
                "A denoiser that predicts a target exactly is run through the policy's own "
                "sampler, clip included. All targets have the same noise."
            ),
            drawing.picture(
                "laws",
                _law_chart(laws, drawing),
                laws,
                alt="Density of the sampler's actions with three targets, and exp(Q / tau), "
                f"for three critics with T = {listed([str(t) for t in TESTED])}. {why}",
                caption=f"Density of the sampler's actions in {BINS} bins, tau = {TAU:g}. "
                f"{DRAWN.capitalize()}: exp(Q / tau) itself. What is clipped to a bound is in the "
                "outermost bin; the axis ends below some of these.",
            ),
            *pictures,
            _distance_table(over_steps),
        ],
    )


def _distance_chart(table: pd.DataFrame, x: str, label: str, drawing: Drawing) -> figures.Chart:
    """The distances over the values of ``x``, each of which has a tick."""
    chart = figures.curves(
        table,
        drawing.styles,
        x=x,
        x_label=label,
        y_label="Wasserstein distance",
        panel_by="critic",
        log_x=True,
    )
    for panel in chart.figure.axes:
        panel.set_xticks(sorted(set(table[x])))
        panel.set_xticks([], minor=True)
        panel.set_ylim(bottom=0)
    return chart


def _laws(samples: int) -> pd.DataFrame:
    """Densities in bins. Columns: critic, T, agent, action, value, low, high, panel."""
    edges = np.linspace(-1, 1, BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, 2 / BINS
    rows = []
    for steps in TESTED:
        for critic in CRITICS:
            found = {
                name: np.histogram(
                    draw(make_target(name, critic, TAU, steps), REPETITIONS, samples), edges
                )[0]
                for name in TARGETS
            }
            wanted = np.histogram(midpoints(), edges, weights=shares(critic, TAU))[0]
            for agent, counts in {**found, DRAWN: wanted}.items():
                part = pd.DataFrame({"action": middle, "value": counts / counts.sum() / width})
                rows.append(part.assign(critic=critic, T=steps, agent=agent))
    table = pd.concat(rows, ignore_index=True)
    panels = [f"{c}, T = {t}" for c, t in zip(table["critic"], table["T"], strict=True)]
    return table.assign(low=table["value"], high=table["value"], panel=panels)


def _law_chart(laws: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    chart = figures.curves(
        laws,
        drawing.styles,
        x="action",
        x_label="action",
        y_label="density",
        panel_by="panel",
    )
    # What is clipped to a bound would make all else flat.
    shown = laws[(laws["action"].abs() < 1 - 2 / BINS) | (laws["agent"] == DRAWN)]
    tops = shown.groupby("panel", sort=False)["value"].max()
    for panel, top in zip(chart.figure.axes, tops, strict=True):
        panel.set_ylim(0, 1.1 * top)
    return chart


def _spread(distances: pd.DataFrame, x: str) -> pd.DataFrame:
    """Median (value) and range (low, high) over repetitions."""
    found = distances.groupby(["critic", "agent", x], sort=False)["distance"]
    table = found.agg(["median", "min", "max"])
    table.columns = pd.Index(["value", "low", "high"])
    return table.reset_index()


def _distance_table(over_steps: pd.DataFrame) -> Table:
    spread = _spread(over_steps, "T")
    shown = spread.assign(
        text=[interval(r["value"], r["low"], r["high"]) for r in spread.to_dict("records")],
        place=[f"{c}, T = {t}" for c, t in zip(spread["critic"], spread["T"], strict=True)],
    )
    cells = shown.pivot(index="place", columns="agent", values="text")
    cells = cells.loc[list(dict.fromkeys(shown["place"])), [*TARGETS, DRAWN]].reset_index()
    return Table(
        "distances",
        f"Wasserstein distance from exp(Q / tau) at tau = {TAU:g}, median [range of "
        f"{REPETITIONS} repetitions], in units of the action.",
        cells.rename_axis(columns=None),
        over_steps,
    )


def _return_section(
    analysis: Analysis, pairs: pd.DataFrame, parts: Sequence[Part], drawing: Drawing
) -> Section:
    left_out = analysis.comparison.left_out
    missing: list[Block] = [Bullets(left_out)] if left_out else []
    curves = analysis.task_curves
    chart = figures.curves(
        curves, drawing.styles, x="step", x_label="steps", y_label="return", panel_by="task"
    )
    return Section(
        "Returns",
        [
            drawing.picture(
                "returns",
                chart,
                curves,
                alt="Mean return against steps, a line for plain qsm and for each variant. "
                + " ".join(part.why for part in parts),
                caption="Mean return over seeds against steps, and its 95% interval.",
            ),
            Text(
                f"{BOOTSTRAP} All columns have the same protocol and seeds; each differs from "
                f"plain qsm in one thing alone, but for the {SAMPLED}. Plain qsm has one-step "
                "returns here, as by default: the suite quick, whose protocol this is otherwise, "
                "has 3-step returns."
            ),
            final_table(analysis),
            pair_table(pairs),
            *missing,
        ],
    )


STUDY = Objections()
