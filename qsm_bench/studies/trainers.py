"""Figures 6 and 7: QSM, the policy gradient of eq. (9), and Diffusion-QL, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from agents.common.diffusion_agent import DiffusionAgent
from agents.registry import find_agent
from qsm_bench.protocol import Protocol
from qsm_bench.relabeling import relabeled
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Picture, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.runs import return_against_time
from qsm_bench.report.wording import BOOTSTRAP, interval, listed, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.selection import Comparison
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    holm,
    permutation_test,
    probability_of_improvement,
)
from qsm_bench.studies.gradient_noise import CriticsPart, give_critic, measure_noise
from qsm_bench.studies.parts import Part, decide, part_section
from qsm_bench.studies.study import Budget, Cells, Findings, Outcome, Study
from qsm_bench.studies.update_cost import (
    ACTION,
    BATCH,
    CPU,
    OBSERVATION,
    TASK,
    UPDATE,
    build,
    measure_milliseconds,
)
from qsm_bench.studies.vector_field import ALPHA, known_q
from qsm_bench.suites import SUITES

QSM, QL, PG, LITERAL = TRAINERS = (
    "qsm",
    "diffusion_ql",
    "diffusion_pg",
    "diffusion_pg_literal",
)
"""``LITERAL`` is eq. (9) as written; ``PG`` has its variance reduced."""
GRADIENTS, RIVALS = (PG, LITERAL), (QL, PG, LITERAL)
CRITICS_PART = "qsm, critic's part"
"""The part of qsm's gradient that depends on the critic; no test is on it."""
INITIAL, KNOWN = "critic at initialization", "known critic"
REPETITIONS = range(8)
"""The seeds of policies, critics and draws in the measurement of gradient noise."""
DRAWS: Mapping[Budget, int] = {"tiny": 10, "quick": 500, "full": 1_000}
ROUNDS = 8
LOWEST = 1e-3
"""Where the axis of signal-to-noise ratios becomes linear, so that it can show 0 and below."""


class Trainers(Study):
    """Returns, gradient noise and cost of four trainers of one policy."""

    name = "trainers"
    title = "QSM against the policy gradient and against backpropagation through the sampler"
    claim = (
        "Figures 6 and 7: trained by QSM, a diffusion policy gets better returns than by the "
        "policy gradient over the sampler's steps (eq. 9), whose gradients are noisy, and returns "
        "as good as by Diffusion-QL, with cheaper updates."
    )
    test = (
        "Three parts. Signal: the signal-to-noise ratio of the actor's gradient, |E g|^2 over the "
        "trace of its covariance, with the same weights, states and critic. The part holds if that "
        f"of qsm is above those of diffusion_pg and of diffusion_pg_literal in each of "
        f"{len(REPETITIONS)} independent repetitions (exact two-sided sign test, "
        f"p = {2 ** (1 - len(REPETITIONS)):.1g}), with both critics: that at initialization, and a "
        "known one. It does not hold if with one critic it is above that of one of the two in no "
        "repetition. Returns: the final returns of qsm against each of the other three, exact "
        f"two-sided permutation tests over all tasks at {FALSE_ALARMS:g}, with Holm's adjustment "
        "for three. The part holds if qsm is better than diffusion_pg and diffusion_pg_literal, "
        "and not worse than diffusion_ql; it does not hold if qsm is worse than one of the three. "
        f"Time: the milliseconds of an update in {ROUNDS} interleaved rounds. The part holds if "
        "qsm takes less than each of the other three in every round (sign test, "
        f"p = {2 ** (1 - ROUNDS):.1g}); it does not hold if it takes less than one of them in no "
        "round. A part that neither holds nor does not cannot tell. The claim holds if all parts "
        "hold, and does not hold if one of them does not; else the study cannot tell."
    )
    limits = (
        "The three mean gradients are of different losses: qsm's is of a regression on grad_a Q, "
        "those of the others are of the mean Q of the policy's actions. The signal-to-noise ratio "
        "says how well one update knows its own gradient, and nothing on where that leads.",
        "Part of qsm's mean gradient takes away what the new network predicts, whatever the critic "
        "is. The test is on the whole gradient, with which qsm learns; the report shows the part "
        "that depends on the critic, too.",
        "The ratio is that of new policies, at drawn states. It falls as a policy learns, because "
        "its mean gradient vanishes.",
        "That qsm is not found to be worse than diffusion_ql does not show that it is as good: few "
        "seeds find large differences alone.",
        "The policy gradient is that of eq. (9), which is unbiased. That of the authors' code is "
        "another: on Q = a it has the wrong sign. Their figure may rest on it.",
        f"Milliseconds are those of one thread of a CPU, without compiled code, with the default "
        f"networks on walker-walk's sizes ({OBSERVATION} and {ACTION}) and a batch of {BATCH}. "
        "They are measured anew for each report. Seconds of training are those of a machine that "
        "several jobs shared.",
        "The quick budget has two easy tasks, small networks, and the settings that the project "
        "has for small tasks: the actors of diffusion_ql and of both policy gradients have a "
        "smaller step size than that of qsm, with which they do not get stuck at a bound. No "
        "setting was tuned for this study.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 9, "full": 20_000}
    lines = (*TRAINERS, CRITICS_PART)

    def cells(self, budget: Budget) -> Sequence[Cells]:
        if budget == "full":
            tasks = "walker-walk,cheetah-run"
            return [Cells("control", ",".join(TRAINERS), tasks, Protocol(), seeds=10)]
        suite, agents = SUITES["quick"], ",".join(map(small_label, TRAINERS))
        if budget == "quick":
            seeds = len(suite.seeds)
            return [Cells("small", agents, ",".join(suite.tasks), suite.protocol, seeds)]
        shorter = suite.protocol.but(steps=300, warmup_steps=100, eval_every=150, eval_episodes=1)
        return [Cells("pendulum", agents, "Pendulum-v1", shorter, seeds=2)]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        (trained,), (cells,) = results.values(), self.cells(budget)
        names = {cell["agent"]: cell["agent_name"] for cell in trained.cells}
        analysis = Analysis(relabeled(trained, names))
        noise = measure_critics(cells.protocol, DRAWS[budget])
        times = measure_milliseconds(TRAINERS, ROUNDS)
        pairs = compare_returns(analysis.comparison)
        signal, returns, time = decide_signal(noise), decide_returns(pairs), decide_time(times)
        parts = [signal, returns, time]
        sections = [
            part_section(parts),
            _return_section(analysis, cells.protocol, pairs, returns, drawing),
            _noise_section(noise, cells.protocol, DRAWS[budget], signal, drawing),
            _time_section(times, time, drawing),
        ]
        return Findings(decide(parts), sections)


def small_label(trainer: str) -> str:
    """The column of a trainer with the settings that the project gives it on every small task."""
    by_task: Mapping[str, Mapping[str, Any]] = getattr(
        find_agent(trainer).agent, "small_task_settings", {}
    )
    settings = ",".join(f"{name}={value}" for name, value in by_task.get("*", {}).items())
    return f"{trainer}[{settings}]" if settings else trainer


# What is measured.


def known_value(action: Tensor) -> Tensor:
    """A smooth Q, the sum of ``known_q`` over pairs of action dimensions: [S, B, act] -> [S, B]."""
    return known_q(action.unflatten(-1, (-1, 2))).sum(dim=-1)


def measure_critics(protocol: Protocol, draws: int) -> pd.DataFrame:
    """The columns of ``measure_noise``, and critic: ``INITIAL`` or ``KNOWN``.

    Networks and batches have the protocol's sizes. All trainers have the same seeds, and so the
    same weights. With the known critic, alpha is that of the study of the vector field, which fits
    the critic's curvature.
    """
    tables = []
    for critic in (INITIAL, KNOWN):
        agents = _new_agents(protocol.settings, {"alpha": ALPHA} if critic == KNOWN else {})
        for agent in agents.values() if critic == KNOWN else ():
            give_critic(agent, known_value)
        found = measure_noise(agents, OBSERVATION, REPETITIONS, protocol.batch_size, draws)
        tables.append(found.assign(critic=critic))
    return pd.concat(tables, ignore_index=True)


def _new_agents(
    settings: Mapping[str, Any], of_qsm: Mapping[str, Any]
) -> dict[str, DiffusionAgent[Any]]:
    """The trainers, and ``CRITICS_PART``, with these settings; ``of_qsm`` are for qsm alone."""
    qsm = build(QSM, REPETITIONS, **settings, **of_qsm)
    part = CriticsPart(qsm.config, OBSERVATION, ACTION, REPETITIONS, CPU)
    rivals = {name: build(name, REPETITIONS, **settings) for name in RIVALS}
    return {QSM: qsm, CRITICS_PART: part, **rivals}


def compare_returns(comparison: Comparison, rivals: Sequence[str] = RIVALS) -> pd.DataFrame:
    """QSM's final returns against those of each rival, on the tasks on which both have runs.

    Columns: rival, tasks, probability (that a run of qsm is better, ties count half; NaN without a
    task), p, adjusted (Holm, over the rivals).
    """
    rows = []
    for rival in rivals:
        tasks = comparison.shared_tasks(QSM, rival)
        chance, p = np.nan, 1.0
        if tasks:
            x, y = (comparison.final_returns(agent, tasks) for agent in (QSM, rival))
            chance, p = float(probability_of_improvement(x, y)[0]), permutation_test(x, y)[0]
        rows.append({"rival": rival, "tasks": len(tasks), "probability": chance, "p": p})
    table = pd.DataFrame(rows)
    return table.assign(adjusted=holm(table["p"].to_numpy(float)))


# What decides.


def decide_signal(noise: pd.DataFrame) -> Part:
    """``noise`` has the columns of ``measure_critics``."""
    above: dict[tuple[str, str], pd.Series[Any]] = {}
    told = []
    for critic, part in noise.groupby("critic", sort=False):
        ratios = part.pivot(index="seed", columns="agent", values="ratio")
        above |= {(str(critic), rival): ratios[QSM] > ratios[rival] for rival in GRADIENTS}
        middle = [f"{name} {number(ratios[name].median())}" for name in (QSM, *GRADIENTS, QL)]
        told.append(f"with the {critic} {listed(middle)}")
    least = min(int(wins.sum()) for wins in above.values())
    why = (
        f"The signal-to-noise ratio, median over repetitions, is {'; '.join(told)}. That of qsm is "
        f"above that of each policy gradient in at least {least} of {len(REPETITIONS)} repetitions."
    )
    return Part("Signal", _agreed(list(above.values())), why)


def decide_returns(pairs: pd.DataFrame) -> Part:
    """``pairs`` has the columns of ``compare_returns``."""
    rows = pairs.set_index("rival")
    seen = rows["adjusted"] <= FALSE_ALARMS
    better, worse = seen & (rows["probability"] > 0.5), seen & (rows["probability"] < 0.5)
    told = [
        f"{rival} with probability {number(row['probability'])} ({p_value_text(row['adjusted'])})"
        for rival, row in rows.iterrows()
    ]
    why = f"At the end a run of qsm has a better return than one of {listed(told)}; p by Holm."
    if worse.any():
        return Part("Returns", "does not hold", why)
    return Part("Returns", "holds" if better[list(GRADIENTS)].all() else "cannot tell", why)


def decide_time(times: pd.DataFrame) -> Part:
    """``times`` has the columns of ``measure_milliseconds``."""
    updates = times[times["measure"] == UPDATE]
    rounds = updates.pivot(index="round", columns="agent", values="milliseconds")
    faster = [rounds[QSM] < rounds[rival] for rival in RIVALS]
    middle = [f"{number(rounds[name].median())} ms with {name}" for name in TRAINERS]
    least = min(int(wins.sum()) for wins in faster)
    why = (
        f"An update takes, median over rounds, {listed(middle)}. That of qsm takes less than each "
        f"other in at least {least} of {len(rounds)} rounds."
    )
    return Part("Time", _agreed(faster), why)


def _agreed(wins: Sequence["pd.Series[Any]"]) -> Outcome:
    """Whether all of several comparisons are won in all repetitions, or one of them in none."""
    if all(each.all() for each in wins):
        return "holds"
    return "cannot tell" if all(each.any() for each in wins) else "does not hold"


# What the report shows.


def _return_section(
    analysis: Analysis, protocol: Protocol, pairs: pd.DataFrame, part: Part, drawing: Drawing
) -> Section:
    steps = analysis.task_curves
    updates = steps.assign(update=[protocol.updates_by(step) for step in steps["step"]])
    clock = return_against_time(analysis)
    seconds = clock.assign(seconds=60 * clock["minutes"])
    left_out = analysis.comparison.left_out
    missing: list[Block] = [Bullets(left_out)] if left_out else []
    return Section(
        "Returns",
        [
            _return_picture(steps, "step", "steps", part, drawing),
            _return_picture(updates, "update", "updates", part, drawing),
            _return_picture(seconds, "seconds", "seconds", part, drawing),
            Text(
                f"{BOOTSTRAP} All trainers have the same protocol: after {protocol.warmup_steps:,} "
                f"random steps, {protocol.updates_per_step} for each step. So the curves against "
                "steps and against updates are the same but for the warm-up. Seconds are those of "
                "all seeds of a cell, trained together on one thread, evaluations included, while "
                "other jobs ran on the same machine: only large differences mean anything."
            ),
            final_table(analysis),
            pair_table(pairs),
            *missing,
        ],
    )


def _return_picture(
    table: pd.DataFrame, x: str, x_label: str, part: Part, drawing: Drawing
) -> Picture:
    chart = figures.curves(
        table, drawing.styles, x=x, x_label=x_label, y_label="return", panel_by="task"
    )
    return drawing.picture(
        f"returns-{x_label}",
        chart,
        table,
        alt=f"Mean return against {x_label}, a panel for each task. {part.why}",
        caption=f"Mean return over seeds against {x_label}, and its 95% interval.",
    )


def final_table(analysis: Analysis) -> Table:
    """The mean returns of the last evaluation: a row for each task, a column for each agent."""
    last = analysis.task_curves.groupby(["task", "agent"], sort=False).last().reset_index()
    shown = last.assign(
        text=[interval(r["value"], r["low"], r["high"]) for r in last.to_dict("records")]
    )
    cells = shown.pivot(index="task", columns="agent", values="text").fillna("")
    cells = cells[list(dict.fromkeys(shown["agent"]))].reset_index().rename_axis(columns=None)
    return Table("final-returns", "Mean return of the last evaluation [95%].", cells, last)


def pair_table(pairs: pd.DataFrame) -> Table:
    """What ``compare_returns`` has found, a row for each rival."""
    cells = pd.DataFrame(
        {
            "qsm against": row["rival"],
            "tasks": str(row["tasks"]),
            "probability that qsm is better": number(row["probability"]),
            "p": number(row["p"], 2),
            "p, Holm": number(row["adjusted"], 2),
        }
        for row in pairs.to_dict("records")
    )
    return Table("pairs", "The tests of the final returns.", cells, pairs)


def _noise_section(
    noise: pd.DataFrame, protocol: Protocol, draws: int, part: Part, drawing: Drawing
) -> Section:
    drawn = noise.assign(repetition=noise["seed"] + 1, value=noise["ratio"])
    drawn = drawn.assign(low=drawn["value"], high=drawn["value"])
    return Section(
        "Noise of the gradients",
        [
            drawing.picture(
                "signal",
                _signal_chart(drawn, drawing),
                drawn,
                alt="Signal-to-noise ratio of the actor's gradient in each repetition, a panel for "
                f"each critic. {part.why}",
                caption="Signal-to-noise ratio of one update's actor gradient. The lowest part of "
                "the axis is linear, through 0.",
            ),
            Text(
                "Nothing is trained. In a repetition all trainers have one policy, new and with "
                f"the same weights, and one critic. The actor's gradient is drawn {draws:,} times, "
                f"each time with new noise and a new batch of {protocol.batch_size}: normal "
                "observations, and the actions that the policy takes there. All parameters of the "
                "denoiser count. The estimates of |E g|^2, as the mean of products of different "
                "draws, and of the trace of the covariance are unbiased. Where the mean is lost in "
                "the noise, that of |E g|^2, and the ratio with it, can be below 0."
            ),
            Text(
                "The losses have different scales, so only the ratio compares them. The means are "
                "gradients of different objectives. qsm's is of a regression on grad_a Q; the "
                f"critic's part is what is left without |eps_theta|^2 in its loss. {QL} climbs "
                "the mean Q of the sampled actions, and the policy gradients that of the executed "
                "ones, with exploration noise. The known critic is the Q of the study "
                "vector-field, summed over pairs of action dimensions. alpha of qsm is "
                f"{ALPHA:g} there, and at its default with the critic at initialization."
            ),
            _noise_table(noise),
        ],
    )


def _signal_chart(table: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    """The ratios on one axis that is linear near 0."""
    chart = figures.curves(
        table,
        drawing.styles,
        x="repetition",
        x_label="repetition",
        y_label="signal-to-noise ratio",
        panel_by="critic",
    )
    low, high = min(0.0, float(table["value"].min())), float(table["value"].max())
    for panel in chart.figure.axes:
        panel.set_yscale("symlog", linthresh=LOWEST)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(1.5 * low - 0.2 * LOWEST, 2 * high)
    return chart


def _noise_table(noise: pd.DataFrame) -> Table:
    norm = noise.assign(norm=np.sqrt(noise["square"].clip(lower=0)))
    measures = {
        "norm": "norm of the mean",
        "variance": "variance",
        "ratio": "signal-to-noise ratio",
        "sample_variance": "variance of one sample",
        "sample_ratio": "ratio of one sample",
    }
    rows = [
        {
            "agent": agent,
            "critic": critic,
            **{title: _range_text(group[name]) for name, title in measures.items()},
            "samples": str(group["samples"].iloc[0]),
        }
        for (critic, agent), group in norm.groupby(["critic", "agent"], sort=False)
    ]
    return Table(
        "noise",
        "The actor's gradient, median [range over repetitions]. Variance: the trace of the "
        "covariance of one update's gradient. Samples: the actions at which an update asks Q; the "
        "variance of one sample is the variance times that.",
        pd.DataFrame(rows),
        noise,
    )


def _range_text(values: "pd.Series[Any]") -> str:
    return interval(*(float(v) for v in (values.median(), values.min(), values.max())))


def _time_section(times: pd.DataFrame, part: Part, drawing: Drawing) -> Section:
    drawn = times.assign(
        value=times["milliseconds"], low=times["milliseconds"], high=times["milliseconds"]
    )
    chart = figures.curves(
        drawn,
        drawing.styles,
        x="round",
        x_label="round",
        y_label="milliseconds",
        panel_by="measure",
    )
    for panel in chart.figure.axes:
        panel.set_ylim(bottom=0)
    rows = [
        {"agent": agent, **{m: _range_text(g["milliseconds"]) for m, g in of.groupby("measure")}}
        for agent, of in times.groupby("agent", sort=False)
    ]
    return Section(
        "Milliseconds",
        [
            drawing.picture(
                "milliseconds",
                chart,
                drawn,
                alt=f"Milliseconds of an update and of an action in each round. {part.why}",
                caption="Milliseconds of an update, and of acting on one observation in training. "
                "A round times all trainers, one after the other.",
            ),
            Table(
                "milliseconds-table",
                f"Milliseconds, median [range of {ROUNDS} rounds], with the networks, the sizes "
                f"and the batch of {TASK} at the default settings.",
                pd.DataFrame(rows),
                times,
            ),
        ],
    )


STUDY = Trainers()
