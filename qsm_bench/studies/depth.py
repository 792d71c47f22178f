"""Figure 9: QSM at any number of denoising steps T, and backpropagation through the sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from qsm_bench.protocol import Protocol
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import interval, listed, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.estimates import mean_interval
from qsm_bench.statistics.selection import Comparison, FloatArray, select_runs
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    permutation_test,
    probability_of_improvement,
    trend_test,
)
from qsm_bench.studies.chain import INITIAL, TRAINED, measure_runs
from qsm_bench.studies.parts import Part, decide, part_section
from qsm_bench.studies.study import Budget, Cells, Findings, Outcome, Study
from qsm_bench.studies.update_cost import (
    ACTION,
    ACTOR,
    BATCH,
    OBSERVATION,
    UPDATE,
    measure_memory,
    measure_times,
)
from qsm_bench.suites import SUITES

QSM, QL = TRAINERS = "qsm", "diffusion_ql"
STEPS = 1, 2, 5, 10, 20, 50
USUAL = 5
"""The T of the paper's other experiments: the largest T is compared with it."""
TRAINED_STEPS: Mapping[Budget, Sequence[int]] = {"tiny": (1, USUAL), "quick": (1, USUAL, 20)}
COST_STEPS: Mapping[Budget, Sequence[int]] = {"tiny": (1, USUAL)}
ROUNDS = 8
STEEPER = 2.0
"""Diffusion-QL runs the chain once for the critic's target, as QSM does, and once more for its
actor: that alone is twice the time a step. With the way back, which takes about twice as long as
the way forth, it is about four times."""
FLAT = 0.1
"""Of QSM's actor only the T time codes grow: a row for each, beside a batch of hundreds."""
SMALL = 0.01
"""The same for memory: with 256 rows and 256 hidden units it is about 1/500."""
LINEAR = 0.01
"""How far, as a share, the bytes may lie from a line through those of the least and most steps."""
SMALLEST = 1e-3
"""Where the axis of relative gradients becomes linear, so that it can show 0."""


class Depth(Study):
    """Return, cost and gradients of both trainers, for chains of several lengths."""

    name = "depth"
    title = "QSM trains with any number of denoising steps; backpropagation through them does not"
    claim = (
        "Figure 9: QSM does not backpropagate through the chain, so it learns with any number of "
        "denoising steps T. Backpropagation through the sampler gets slower, and its gradients "
        "vanish or explode as T grows."
    )
    test = (
        f"Four parts. Time: over {ROUNDS} interleaved rounds, a line over T is fitted to the "
        f"seconds of an update. The part holds if in every round diffusion_ql's slope is more than "
        f"{STEEPER:g} times qsm's and the slope of qsm's actor is less than {FLAT:g} of that of "
        f"diffusion_ql's (exact two-sided sign test, p = {2 ** (1 - ROUNDS):.1g}); it "
        "does not hold if that is so in no round. Memory, counted exactly: the part holds if what "
        "diffusion_ql's actor saves for its backward pass is linear in T within "
        f"{LINEAR:.0%}, and qsm's grows by less than "
        f"{SMALL:.0%} as much a step; else it does not hold. Gradients: of each trained "
        "diffusion_ql, the norm at the first step of the chain over that at the last, divided by "
        "what a constant denoiser without a clip gives. The part holds if the distance of this "
        "factor from 1 (of its logarithm from 0) grows with T, by an exact test of rank "
        f"correlation within seeds (Page), two-sided p at most {FALSE_ALARMS:g}; it does not hold "
        f"if it falls by the same test. Returns: the largest T against T = {USUAL}, exact "
        f"two-sided permutation tests at {FALSE_ALARMS:g} each. The part holds if diffusion_ql is "
        "worse and qsm is not worse; it does not hold if qsm is worse or diffusion_ql better. A "
        "part that neither holds nor does not cannot tell. The claim holds if all parts hold, and "
        "does not hold if one of them does not; else the study cannot tell."
    )
    limits = (
        "Both trainers sample the chain to act and for the critic's target, so an update of qsm "
        "gets slower with T, too: only its actor's part does not.",
        "That qsm is not found to be worse at a large T does not show that it is as good: few "
        "seeds find large differences alone.",
        "Costs are those of one thread of a CPU, without compiled code, with the default networks "
        f"on observations and actions of walker-walk's sizes ({OBSERVATION} and {ACTION}) and a "
        f"batch of {BATCH}. Times are measured anew for each report and differ a little.",
        "Gradients are measured at the states of the policy's first steps of an episode, and not "
        "at those of a replay buffer.",
        "The quick budget has one easy task with one action dimension, small networks, and the "
        "smaller step size for diffusion_ql's actor that the project uses on small tasks: with a "
        "larger one it is soon stuck at a bound. Where the action has one dimension, the clip "
        "decides: one clipped step stops a sample's gradient.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 6, "full": 25_000}
    lines = (QSM, QL, INITIAL, TRAINED)

    def cells(self, budget: Budget) -> Sequence[Cells]:
        steps = TRAINED_STEPS.get(budget, STEPS)
        if budget == "full":
            return [Cells("walker-walk", _agents(steps), "walker-walk", Protocol(), seeds=10)]
        small, slow = SUITES["quick"].protocol, "actor_learning_rate=0.0001"
        agents = _agents(steps, slow)
        if budget == "quick":
            return [Cells("cartpole", agents, "cartpole-balance", small, seeds=6)]
        shorter = small.but(steps=300, warmup_steps=100, eval_every=300, eval_episodes=1)
        return [Cells("pendulum", agents, "Pendulum-v1", shorter, seeds=2)]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        (trained,) = results.values()
        cost_steps = COST_STEPS.get(budget, STEPS)
        times = measure_times(TRAINERS, cost_steps, ROUNDS)
        memory = measure_memory(TRAINERS, cost_steps)
        chains, runs = measure_runs(trained)
        comparison = select_runs(trained)
        returns = final_returns(trained, comparison)
        parts = [
            decide_time(times),
            decide_memory(memory),
            decide_gradients(runs),
            decide_returns(returns),
        ]
        sections = [
            part_section(parts),
            _return_section(returns, parts[3], comparison.left_out, drawing),
            _cost_section(times, memory, drawing),
            _gradient_section(chains, runs, parts[2], drawing),
            _clip_section(chains, drawing),
        ]
        return Findings(decide(parts), sections)


def _agents(steps: Sequence[int], of_ql: str = "") -> str:
    """The columns of an experiment; ``of_ql`` are further settings of diffusion_ql."""
    further = {QSM: "", QL: f",{of_ql}" if of_ql else ""}
    return ",".join(
        f"{trainer}[diffusion_steps={t}{further[trainer]}]" for trainer in TRAINERS for t in steps
    )


def final_returns(results: Results, comparison: Comparison) -> pd.DataFrame:
    """The returns of the last evaluation. Columns: agent (the trainer), T, seed, return."""
    cells = {cell["agent"]: cell for cell in results.cells}
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "agent": cells[label]["agent_name"],
                    "T": cells[label]["settings"]["diffusion_steps"],
                    "seed": curve.seeds,
                    "return": curve.returns[:, -1],
                }
            )
            for (label, _), curve in comparison.runs.items()
        ],
        ignore_index=True,
    )


# What decides.


def decide_time(times: pd.DataFrame) -> Part:
    """``times`` has the columns of ``measure_times``."""
    slopes = {
        (measure, trainer): _slopes(times, measure, trainer)
        for measure in (UPDATE, ACTOR)
        for trainer in TRAINERS
    }
    steeper = slopes[UPDATE, QL] / slopes[UPDATE, QSM]
    flat = slopes[ACTOR, QSM] / slopes[ACTOR, QL]
    agreed = (steeper > STEEPER) & (flat < FLAT)
    why = (
        f"With each step an update of {QL} grows {number(float(np.median(steeper)))} times as much "
        f"as one of {QSM} ({number(float(steeper.min()))} to {number(float(steeper.max()))} over "
        f"the rounds), and the actor's part of {QSM} {number(float(np.median(flat)), 2)} times as "
        f"much as that of {QL}."
    )
    outcome: Outcome = "cannot tell" if agreed.any() else "does not hold"
    return Part("Time", "holds" if agreed.all() else outcome, why)


def _slopes(times: pd.DataFrame, measure: str, trainer: str) -> FloatArray:
    """The slope of time over T in each round, [rounds]."""
    part = times[(times["measure"] == measure) & (times["agent"] == trainer)]
    table = part.pivot(index="T", columns="round", values="ratio")
    slope: FloatArray = np.polyfit(table.index.to_numpy(float), table.to_numpy(float), 1)[0]
    return slope


def decide_memory(memory: pd.DataFrame) -> Part:
    """``memory`` has the columns of ``measure_memory``."""
    saved = memory.pivot(index="T", columns="agent", values="saved").astype(float)
    first, last = saved.iloc[0], saved.iloc[-1]
    growth = (last - first) / (saved.index[-1] - saved.index[0])
    line = first[QL] + growth[QL] * (saved.index - saved.index[0])
    linear = bool((abs(saved[QL] / line - 1) <= LINEAR).all())
    why = (
        f"With each step {QL}'s actor saves {number(growth[QL] / 1000)} kB more, "
        f"{'on a line' if linear else 'not on a line'}, and {QSM}'s "
        f"{number(growth[QSM] / 1000)} kB."
    )
    holds = linear and growth[QSM] < SMALL * growth[QL]
    return Part("Memory", "holds" if holds else "does not hold", why)


def decide_gradients(runs: pd.DataFrame) -> Part:
    """``runs`` has the columns of ``measure_runs``; a seed counts if all its factors are known."""
    trained = runs[(runs["agent"] == QL) & (runs["when"] == TRAINED)]
    factors = trained.pivot(index="seed", columns="T", values="factor").dropna()
    if factors.empty:
        return Part("Gradients", "cannot tell", "No seed has a gradient at every T.")
    rise, p = trend_test(distances(factors.to_numpy(float)))
    middle = listed([f"{number(v)} at T = {t}" for t, v in factors.median().items()])
    why = (
        f"The factor, median over seeds, is {middle}; the mean rank correlation of its distance "
        f"from 1 with T is {number(rise)} ({p_value_text(p)})."
    )
    if p > FALSE_ALARMS:
        return Part("Gradients", "cannot tell", why)
    return Part("Gradients", "holds" if rise > 0 else "does not hold", why)


def distances(factors: FloatArray) -> FloatArray:
    """How far factors are from 1, either way: |log10|. A factor of 0 is infinitely far."""
    with np.errstate(divide="ignore"):
        return np.abs(np.log10(factors))


def decide_returns(returns: pd.DataFrame) -> Part:
    """``returns`` has the columns of ``final_returns``."""
    most = int(returns["T"].max())
    found = {trainer: _change(returns[returns["agent"] == trainer], most) for trainer in TRAINERS}
    told = [
        f"{trainer} from {number(change.before)} to {number(change.after)} "
        f"({p_value_text(change.p)})"
        for trainer, change in found.items()
    ]
    why = f"From T = {USUAL} to T = {most} the mean return went with {listed(told)}."
    if found[QSM].worse or found[QL].better:
        return Part("Returns", "does not hold", why)
    return Part("Returns", "holds" if found[QL].worse else "cannot tell", why)


@dataclass(frozen=True)
class Change:
    """A trainer's mean returns at the usual T and at the largest, and the test between them."""

    before: float
    after: float
    better: bool
    worse: bool
    p: float


def _change(returns: pd.DataFrame, most: int) -> Change:
    before, after = (
        returns.loc[returns["T"] == t, "return"].to_numpy(float)[:, np.newaxis]
        for t in (USUAL, most)
    )
    if not (len(before) and len(after)):  # all seeds have diverged
        return Change(np.nan, np.nan, better=False, worse=False, p=1.0)
    p, _ = permutation_test(after, before)
    chance = float(probability_of_improvement(after, before)[0])
    seen = p <= FALSE_ALARMS
    return Change(
        float(before.mean()), float(after.mean()), seen and chance > 0.5, seen and chance < 0.5, p
    )


# What the report shows.


def _return_section(
    returns: pd.DataFrame, part: Part, left_out: Sequence[str], drawing: Drawing
) -> Section:
    table = pd.DataFrame(
        [
            {"agent": trainer, "T": t, **_mean(group["return"]), "seeds": len(group)}
            for (trainer, t), group in returns.groupby(["agent", "T"], sort=False)
        ]
    )
    missing: list[Block] = [Bullets(left_out)] if left_out else []
    cells = _wide(table, lambda row: interval(row["value"], row["low"], row["high"]))
    chart = figures.curves(table, drawing.styles, x="T", x_label="T", y_label="return")
    return Section(
        "Return against T",
        [
            drawing.picture(
                "returns",
                chart,
                table,
                alt=f"Mean return after training against T, a line for each trainer. {part.why}",
                caption="Mean return of the last evaluation and its 95% bootstrap interval over "
                "seeds.",
            ),
            Table("returns-table", "Mean return of the last evaluation [95%].", cells, returns),
            *missing,
        ],
    )


def _mean(values: "pd.Series[Any]") -> dict[str, float]:
    found = mean_interval(values.to_numpy(float))
    return dict(zip(("value", "low", "high"), found, strict=True))


def _wide(table: pd.DataFrame, text: Any) -> pd.DataFrame:
    """The rows of ``table`` as texts: a row for each T, a column for each agent."""
    shown = table.assign(text=[text(row) for row in table.to_dict("records")])
    wide = shown.pivot(index="T", columns="agent", values="text")
    wide = wide[list(dict.fromkeys(table["agent"]))].reset_index()
    return wide.astype(str).rename_axis(columns=None)


def _from_zero(chart: figures.Chart, top: float | None = None) -> figures.Chart:
    """The chart with vertical axes from 0, up to ``top`` if it is given."""
    for panel in chart.figure.axes:
        panel.set_ylim(bottom=0, top=top)
    return chart


def _cost_section(times: pd.DataFrame, memory: pd.DataFrame, drawing: Drawing) -> Section:
    spread = _spread(times, ["measure", "agent", "T"], "ratio")
    saved = memory.assign(value=memory["saved"] / 1e6)
    saved = saved.assign(low=saved["value"], high=saved["value"])
    slowest = spread[spread["measure"] == UPDATE].groupby("agent")["value"].max()
    largest = saved.groupby("agent")["value"].max()
    most = int(memory["T"].max())
    return Section(
        "Cost against T",
        [
            drawing.picture(
                "time",
                _from_zero(
                    figures.curves(
                        spread,
                        drawing.styles,
                        x="T",
                        x_label="T",
                        y_label="time (qsm's update at T = 1 is 1)",
                        panel_by="measure",
                    )
                ),
                spread,
                alt="Time of an update and of its actor's part against T. At T = "
                f"{most} an update takes {number(slowest[QSM])} with qsm and "
                f"{number(slowest[QL])} with diffusion_ql, in units of qsm's at T = 1.",
                caption=f"Time over that of qsm's update at T = 1. Median and range of {ROUNDS} "
                "interleaved rounds.",
            ),
            drawing.picture(
                "memory",
                _from_zero(
                    figures.curves(
                        saved, drawing.styles, x="T", x_label="T", y_label="saved activations (MB)"
                    )
                ),
                saved,
                alt=f"Saved activations against T. At T = {most}: {number(largest[QSM])} MB with "
                f"qsm, {number(largest[QL])} MB with diffusion_ql.",
                caption="What the graph of the actor's loss keeps for the backward pass.",
            ),
            Text(
                "Both trainers sample the chain for the critic's target, without a backward pass: "
                "a forward pass of the denoiser for each step. diffusion_ql samples it again for "
                "its actor and goes back through it, which takes about three forward passes more: "
                "an update should grow about four times as fast with T. The actor of qsm has one "
                "step of the chain whatever T is. Only the codes of the T diffusion times grow."
            ),
            _time_table(spread),
            _memory_table(memory),
        ],
    )


def _spread(table: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """Median (value) and range (low, high) of a column, for each combination of the keys."""
    found = table.groupby(keys, sort=False)[column].agg(["median", "min", "max"])
    found.columns = pd.Index(["value", "low", "high"])
    return found.reset_index()


def _time_table(spread: pd.DataFrame) -> Table:
    named = spread.assign(agent=spread["agent"] + ", " + spread["measure"])
    return Table(
        "times",
        "Time over that of qsm's update at T = 1, median [range of the rounds]. It is measured "
        "anew for each report, and no two reports have the same numbers.",
        _wide(named, lambda row: interval(row["value"], row["low"], row["high"])),
        spread,
    )


def _memory_table(memory: pd.DataFrame) -> Table:
    named = memory.melt(["agent", "T"], ["saved", "peak"], "bytes", "value")
    named = named.assign(agent=named["agent"] + ", " + named["bytes"])
    return Table(
        "bytes",
        "Megabytes, counted exactly. saved: what the actor's loss keeps for its backward pass. "
        "peak: the most that all tensors of an update take at once.",
        _wide(named, lambda row: number(row["value"] / 1e6)),
        memory,
    )


def _gradient_section(
    chains: pd.DataFrame, runs: pd.DataFrame, part: Part, drawing: Drawing
) -> Section:
    along = _spread(chains.dropna(subset=["relative"]), ["T", "when", "t"], "relative")
    along = along.rename(columns={"when": "agent"}).assign(panel=[f"T = {t}" for t in along["T"]])
    return Section(
        "Gradients along the chain",
        [
            drawing.picture(
                "gradients",
                _along_chart(along, drawing),
                along,
                alt="Norm of diffusion_ql's gradient along the chain, relative to that at the "
                f"action, before and after training. {part.why}",
                caption="diffusion_ql: norm of the loss's gradient at each action of the chain "
                "over that at its end, a^0. Median and range over seeds; the lowest part of the "
                "axis is linear, down to 0.",
            ),
            Text(
                "The first step of the chain is a^T, which is noise, the last a^0, which is "
                "executed. The sampler itself scales actions up: with a constant denoiser and no "
                "clip, the norm at a^T is 1 / sqrt(abar_T) = "
                f"{number(float(runs['constant'].iloc[0]))} times that at a^0 for every T. The "
                "factor in the test is the ratio over this number. qsm's loss has no chain: its "
                "gradient passes one call of the denoiser, whatever T is. So the tables show, for "
                "qsm, the norm of the gradient of the actor's parameters, and for diffusion_ql "
                "the same beside the chain's."
            ),
            _ends_table(runs),
            _parameter_table(runs),
        ],
    )


def _along_chart(along: pd.DataFrame, drawing: Drawing) -> figures.Chart:
    """The norms along the chain, from a^T at the left, on one axis that is linear near 0."""
    chart = figures.curves(
        along,
        drawing.styles,
        x="t",
        x_label="diffusion time t",
        y_label="norm of d loss / d a^t\nover that at a^0",
        panel_by="panel",
    )
    highest = float(along["high"].max())
    for panel in chart.figure.axes:
        panel.set_yscale("symlog", linthresh=SMALLEST)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(-0.2 * SMALLEST, 2 * highest)
        panel.locator_params(axis="x", integer=True)
        panel.invert_xaxis()
    return chart


def _ends_table(runs: pd.DataFrame) -> Table:
    measures = {
        "first": "norm at a^T",
        "last": "norm at a^0",
        "ratio": "ratio",
        "factor": "factor",
        "dead": "samples without gradient at a^T",
    }
    data = runs[runs["agent"] == QL]
    rows = [
        {
            "T": str(t),
            "when": when,
            **{title: _range_text(group[name]) for name, title in measures.items()},
        }
        for (t, when), group in data.groupby(["T", "when"], sort=False)
    ]
    return Table(
        "chain-ends",
        "diffusion_ql: the gradient at both ends of the chain, median [range over seeds].",
        pd.DataFrame(rows),
        data,
    )


def _parameter_table(runs: pd.DataFrame) -> Table:
    named = runs.assign(agent=runs["agent"] + ", " + runs["when"])
    rows = pd.DataFrame(
        [
            {"agent": agent, "T": t, "text": _range_text(group["parameters"])}
            for (agent, t), group in named.groupby(["agent", "T"], sort=False)
        ]
    )
    return Table(
        "parameter-gradients",
        "Norm of the gradient of the actor's parameters, median [range over seeds].",
        _wide(rows, lambda row: row["text"]),
        runs[["agent", "T", "when", "seed", "parameters"]],
    )


def _range_text(values: "pd.Series[Any]") -> str:
    return interval(*(float(v) for v in (values.median(), values.min(), values.max())))


def _clip_section(chains: pd.DataFrame, drawing: Drawing) -> Section:
    of_run = chains.groupby(["when", "agent", "T", "seed"], sort=False)["cut"].mean().reset_index()
    spread = _spread(of_run, ["when", "agent", "T"], "cut")
    named = spread.assign(agent=spread["agent"] + ", " + spread["when"])
    ends = "; ".join(
        f"{row['agent']}, T = {row['T']}: {number(row['value'])}"
        for row in named.to_dict("records")
    )
    return Section(
        "Clipped entries",
        [
            drawing.picture(
                "clipped",
                _from_zero(
                    figures.curves(
                        spread,
                        drawing.styles,
                        x="T",
                        x_label="T",
                        y_label="share of clipped entries",
                        panel_by="when",
                    ),
                    top=1.05,
                ),
                spread,
                alt=f"Share of the chain's entries that the clip cuts, against T. {ends}.",
                caption="Share of the entries of a^{T-1}, ..., a^0 that the clip of the sampler "
                "puts on a bound. Median and range over seeds of the mean over the chain.",
            ),
            Text(
                "No gradient passes through a clipped entry: the clip is constant there. With one "
                "action dimension a single clipped step cuts a sample's chain in two. Then nothing "
                "reaches the steps before it."
            ),
            Table(
                "clipped-table",
                "Share of clipped entries over the chain, median [range over seeds].",
                _wide(named, lambda row: interval(row["value"], row["low"], row["high"])),
                chains[["agent", "T", "when", "seed", "t", "cut"]],
            ),
        ],
    )


STUDY = Depth()
