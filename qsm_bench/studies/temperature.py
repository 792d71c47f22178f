"""How large alpha may be: overshoot, and the temperature that makes trainers comparable."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd

from qsm_bench.protocol import Protocol
from qsm_bench.report import figures
from qsm_bench.report.document import Block, Bullets, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.temperature import EXPLAINED, temperatures
from qsm_bench.report.wording import interval, listed, number, p_value_text
from qsm_bench.results import Results
from qsm_bench.statistics.estimates import mean_interval
from qsm_bench.statistics.selection import FloatArray, select_runs
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    permutation_test,
    probability_of_improvement,
    trend_test,
)
from qsm_bench.studies.overshoot import Steps, linear_quadratic_k, normal, share_at_bounds
from qsm_bench.studies.parts import Part, decide
from qsm_bench.studies.study import Budget, Cells, Findings, Outcome, Study

QSM, NORMALIZED = TRAINERS = "qsm", "qsm_normalized"
KNOWN, CONTROL = "linear-quadratic", "walker-walk"
ALPHAS = 1.0, 3.0, 8.0, 20.0, 50.0, 200.0, 1000.0
FEW_ALPHAS = 3.0, 8.0, 50.0
TEMPERATURES = 0.05, 0.15, 0.5, 1.5
STEPS = 5
"""The number T of denoising steps of the trained policies, the default."""
LENGTHS = 1, 2, STEPS, 10, 20, 50
DISCOUNT = 0.9
"""An episode of linear-quadratic has 50 steps: with this discount, the return that follows the
first 21 of them is known but for 5 %, so that the critic's bias can be observed."""
BELOW, ABOVE = 1.0, 5.0
"""The alpha k between which overshoot is said to begin."""
WIDE = 0.25
"""Below this alpha k the policy of an exact score is so wide that the clip decides: even with no
score at all, more than half of its samples are at a bound."""
LEVEL = 0.5
MAXIMA = 0.0, 0.3, 0.6
"""Where Q of the closed form has its maximum: shares of samples are means over these."""
GRID = np.geomspace(0.05, 100, 45)
EXACT = "exact score"
RETURN, SHARE, BIAS = "return", "share of action entries at a bound", "critic bias"
MEASURES = RETURN, SHARE, BIAS


class Temperature(Study):
    """Alpha over three decades: return, bounds and critic bias, and the temperature it means."""

    name = "temperature"
    title = "Alpha has to fit the curvature of Q: too large a one overshoots"
    claim = (
        "Equations 10 and 19: alpha is an inverse temperature, and a large one should bring the "
        "policy near the best action. But the sampler takes few, large steps. With an exact score "
        "on Q = -k (a - m)^2 its last step goes beyond the maximum, and with alpha k above 1 to 5 "
        "the samples end at the bounds, so that the return has its best alpha in between."
    )
    test = (
        f"Two parts, of qsm. Bounds, on {KNOWN}, where k is known in closed form: the share of "
        "action entries at a bound after training, at the alphas with an alpha k of at least "
        f"{WIDE:g}. The part holds if the share rises with alpha, by an exact test of rank "
        f"correlation within seeds (Page), two-sided p at most {FALSE_ALARMS:g}, and if in the "
        f"mean over seeds it is below {LEVEL:g} at every alpha k up to {BELOW:g}, and {LEVEL:g} or "
        f"more at every alpha k from {ABOVE:g} on. It does not hold if the share falls by the same "
        f"test, or if at one of these alphas it is on the other side of {LEVEL:g} in every seed. "
        "Return: of the alphas between the smallest and the largest, the one with the best mean "
        "return after training is compared with these two, by exact two-sided permutation tests, "
        f"each at {FALSE_ALARMS:g} over the number of alphas that it was chosen from. The part "
        "holds if it is better than both on every task; it does not hold if one of the two is "
        "better on a task. A part that neither holds nor does not cannot tell. The claim holds if "
        "both parts hold, and does not hold if one of them does not; else the study cannot tell."
    )
    limits = (
        "The closed form has one action dimension, a parabola and an exact score. A learned "
        "denoiser is not exact, and a learned critic is a parabola only near its maximum.",
        f"k is that of the best controller's Q on {KNOWN} with discount {DISCOUNT:g}; the critic "
        "learns the Q of its own policy. The table shows the k of the learned critics beside it.",
        "The effective temperature says what the loss asks for, not how far samples spread: with "
        "few denoising steps that is another matter, as the table of the closed form shows.",
        f"The quick budget has {KNOWN} alone, with small networks. On {CONTROL}, k is not known: "
        "there the study shows where the best alpha lies, and draws no boundary.",
        f"{NORMALIZED} is shown, and no part of the test is about it.",
        "A run that has diverged is left out and named; an alpha of which all runs have diverged "
        "is not in the test.",
    )
    minutes: ClassVar[Mapping[Budget, float]] = {"tiny": 0.5, "quick": 5, "full": 15_000}
    lines = (QSM, NORMALIZED, EXACT, *(f"T = {t}" for t in LENGTHS))

    def cells(self, budget: Budget) -> Sequence[Cells]:
        small = {"hidden_sizes": [64, 64], "learning_rate": 1e-3, "discount": DISCOUNT}
        quick = Protocol(
            steps=3_000,
            warmup_steps=500,
            batch_size=64,
            eval_every=500,
            eval_episodes=10,
            settings=small,
        )
        if budget == "tiny":
            shorter = quick.but(steps=300, warmup_steps=100, eval_every=300, eval_episodes=2)
            return [Cells(KNOWN, _agents(FEW_ALPHAS, TEMPERATURES[:1]), KNOWN, shorter, seeds=2)]
        agents = _agents(ALPHAS, TEMPERATURES)
        if budget == "quick":
            return [Cells(KNOWN, agents, KNOWN, quick, seeds=6)]
        longer = quick.but(steps=10_000, batch_size=256, eval_every=1_000, eval_episodes=20)
        return [
            Cells(KNOWN, agents, KNOWN, longer, seeds=10),
            Cells(CONTROL, agents, CONTROL, Protocol(), seeds=10),
        ]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        k = linear_quadratic_k(DISCOUNT)
        runs = {task: runs_of(part) for task, part in results.items()}
        ideal = exact_shares()
        parts = [decide_bounds(runs[KNOWN], k), decide_returns(runs)]
        data = pd.DataFrame(
            [{"part": p.name, "verdict": p.outcome, "figures": p.why} for p in parts]
        )
        sections = [
            Section("The parts of the claim", [Table("parts", "The two parts.", data, data)]),
            _closed_form_section(ideal, k, drawing),
        ]
        for task, part in results.items():
            missing = select_runs(part).left_out
            sections.append(_task_section(task, runs[task], ideal, k, missing, drawing))
        return Findings(decide(parts), sections)


def _agents(alphas: Sequence[float], scales: Sequence[float]) -> str:
    """The columns of an experiment."""
    columns = [f"{QSM}[alpha={alpha:g}]" for alpha in alphas]
    return ",".join([*columns, *(f"{NORMALIZED}[temperature={t:g}]" for t in scales)])


# What was found.


def runs_of(results: Results) -> pd.DataFrame:
    """What each run came to. Columns: agent (the trainer), setting, tau, seed, the MEASURES, k.

    ``setting`` is alpha, or the temperature of qsm_normalized; ``tau`` is the effective
    temperature, the mean over seeds. All is as of the last evaluation.
    """
    cells = {cell["agent"]: cell for cell in results.cells}
    seen = _last(results.diagnostics)
    shape = curvatures(results.slices)
    tables = []
    for (label, _), curve in select_runs(results).runs.items():
        cell = cells[label]
        name = "alpha" if cell["agent_name"] == QSM else "temperature"
        rows = pd.DataFrame({"seed": curve.seeds, RETURN: curve.returns[:, -1]})
        rows = rows.merge(seen.loc[[label]], on="seed").merge(shape.loc[[label]], on="seed")
        tau = temperatures(results, cell)["temperature"].iloc[-1]
        tables.append(
            rows.assign(agent=cell["agent_name"], setting=cell["settings"][name], tau=tau)
        )
    return pd.concat(tables, ignore_index=True)


def _last(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run, by the agent's label. Columns: seed, SHARE, BIAS."""
    last = diagnostics.sort_values("step").groupby(["agent", "seed"]).tail(1).set_index("agent")
    bias = pd.to_numeric(last["critic_bias"], errors="coerce")
    return pd.DataFrame({"seed": last["seed"], SHARE: last["clipped_share"], BIAS: bias})


def curvatures(slices: pd.DataFrame) -> pd.DataFrame:
    """k of the learned critics along the first action dimension. Columns: seed, k; by the label.

    A parabola is fitted to the critic over the whole action axis, at each state: k is the mean over
    states.
    """
    fits = [
        (label, seed, -np.polyfit(part["action"], part["q"], 2)[0])
        for (label, seed, _), part in slices.groupby(["agent", "seed", "state"])
    ]
    table = pd.DataFrame(fits, columns=["agent", "seed", "k"])
    return table.groupby(["agent", "seed"])["k"].mean().reset_index("seed")


def exact_shares() -> pd.DataFrame:
    """The share of samples at a bound with an exact score. Columns: T, product, value.

    ``product`` is alpha k; the shares are means over the MAXIMA.
    """
    return pd.DataFrame(
        [
            {"T": t, "product": product, "value": exact_share(float(product), t)}
            for t in LENGTHS
            for product in GRID
        ]
    )


def exact_share(product: float, steps: int) -> float:
    """The share of samples at a bound with an exact score, the mean over the MAXIMA."""
    return float(np.mean([share_at_bounds(product, maximum, steps) for maximum in MAXIMA]))


# What decides.


def decide_bounds(runs: pd.DataFrame, k: float) -> Part:
    """``runs`` has the columns of ``runs_of``. A seed counts if it has a run at every alpha."""
    of_qsm = runs[(runs["agent"] == QSM) & (k * runs["setting"] >= WIDE)]
    shares = of_qsm.pivot(index="seed", columns="setting", values=SHARE).dropna()
    if shares.empty:
        return Part("Bounds", "cannot tell", "No seed has a run at every alpha.")
    rise, p = trend_test(shares.to_numpy(float))
    # Positive on the side where the share should be; between the two boundaries any is right.
    product = k * shares.columns.to_numpy(float)
    side = np.where(product <= BELOW, -1.0, np.where(product >= ABOVE, 1.0, 0.0))
    means = zip(shares.mean(), product, strict=True)
    told = [f"{number(mean)} at alpha k = {number(at)}" for mean, at in means]
    why = (
        f"The mean share is {listed(told)}; the mean rank correlation with alpha is "
        f"{number(rise)} ({p_value_text(p)})."
    )
    seen = p <= FALSE_ALARMS
    if (seen and rise < 0) or _wrong(shares.to_numpy(float), side).all(axis=0).any():
        return Part("Bounds", "does not hold", why)
    right = not _wrong(shares.mean().to_numpy(float)[np.newaxis], side).any()
    return Part("Bounds", "holds" if seen and right else "cannot tell", why)


def _wrong(shares: FloatArray, side: FloatArray) -> Any:
    """Where shares [rows, alphas] lie on the other side of LEVEL; a side of 0 is never wrong."""
    return ((side < 0) & (shares >= LEVEL)) | ((side > 0) & (shares < LEVEL))


def decide_returns(runs: Mapping[str, pd.DataFrame]) -> Part:
    """``runs`` are those of each task, with the columns of ``runs_of``."""
    found = [_inner_best(task, table[table["agent"] == QSM]) for task, table in runs.items()]
    outcomes, told = {outcome for outcome, _ in found}, " ".join(why for _, why in found)
    if "does not hold" in outcomes:
        return Part("Return", "does not hold", told)
    return Part("Return", "holds" if outcomes == {"holds"} else "cannot tell", told)


def _inner_best(task: str, runs: pd.DataFrame) -> tuple[Outcome, str]:
    """Whether an alpha in between is better than the smallest and the largest."""
    groups = {
        float(str(alpha)): group[RETURN].to_numpy(float)[:, np.newaxis]
        for alpha, group in runs.groupby("setting")
    }
    if len(groups) < 3:
        return "cannot tell", f"On {task} there are too few alphas with runs."
    smallest, *inner, largest = groups
    best = max(inner, key=lambda alpha: float(groups[alpha].mean()))
    level = FALSE_ALARMS / len(inner)
    signs, told = [], []
    for end in (smallest, largest):
        p, _ = permutation_test(groups[best], groups[end])
        chance = float(probability_of_improvement(groups[best], groups[end])[0])
        signs.append(np.sign(chance - 0.5) if p <= level else 0.0)
        told.append(f"{number(float(groups[end].mean()))} at alpha = {end:g} ({p_value_text(p)})")
    why = (
        f"On {task} the best mean return in between is {number(float(groups[best].mean()))}, at "
        f"alpha = {best:g}; it is {listed(told)}."
    )
    if -1.0 in signs:
        return "does not hold", why
    return ("holds" if signs == [1.0, 1.0] else "cannot tell"), why


# What the report shows.


def _shaded(chart: figures.Chart, low: float, high: float) -> figures.Chart:
    """The chart with a band from ``low`` to ``high`` of the horizontal axis in every panel."""
    with mpl.rc_context(figures.STYLE):
        for panel in chart.figure.axes:
            panel.axvspan(low, high, color=figures.INK, alpha=0.1, linewidth=0)
    return chart


def _closed_form_section(ideal: pd.DataFrame, k: float, drawing: Drawing) -> Section:
    drawn = ideal.assign(agent=[f"T = {t}" for t in ideal["T"]])
    drawn = drawn.assign(low=drawn["value"], high=drawn["value"])
    lengths = _lengths(ideal)
    usual = lengths[lengths["T"] == STEPS].iloc[0]
    chart = figures.curves(
        drawn,
        drawing.styles,
        x="product",
        x_label="alpha k",
        y_label="share of samples at a bound",
        log_x=True,
    )
    said = (
        f"At T = {STEPS} the last step lands on the maximum at alpha k = "
        f"{number(usual['lands'])} and leads away from it from {number(usual['leads away'])} on; "
        f"half of the samples are at a bound from {number(usual['half at a bound'])} on, and all "
        f"of them from {number(usual['all at a bound'])} on."
    )
    return Section(
        "Overshoot in closed form",
        [
            Text(
                "Q = -k (a - m)^2 has the curvature 2 k. With an exact score each step of the "
                "sampler is affine: it scales the distance from m by f_t = (1 - 2 alpha k beta_t / "
                "sqrt(1 - abar_t)) / sqrt(alpha_t). The last step has no noise. It lands where "
                "f_1 = 0, overshoots with a larger alpha, and leads away from the maximum where "
                f"f_1 is below -1. {said} With more steps the boundary moves up, almost in "
                f"proportion to T: that alpha k = {BELOW:g} to {ABOVE:g} is the boundary is a "
                f"statement on T = {STEPS}. A very small alpha also fills the bounds when T is "
                "small: the sampler scales actions up, and nothing holds them back. With so few "
                "steps the samples have another temperature than the score: a higher one at a "
                "small alpha k, and a lower one near the alpha k at which the last step lands."
            ),
            drawing.picture(
                "exact",
                _shaded(chart, BELOW, ABOVE),
                drawn,
                alt=f"Share of samples at a bound against alpha k, a line for each T. {said}",
                caption="Share of samples at a bound with an exact score and the sampler's clip, "
                f"mean over m = {listed([f'{m:g}' for m in MAXIMA])}. Shaded: alpha k from "
                f"{BELOW:g} to {ABOVE:g}.",
            ),
            _length_table(lengths),
            _spread_table(k),
        ],
    )


def _lengths(ideal: pd.DataFrame) -> pd.DataFrame:
    """The alpha k that matter: T, lands, leads away, half at a bound, all at a bound."""
    rows = []
    for t, part in ideal.groupby("T"):
        steps = Steps.of(int(str(t)))
        beyond = part[part["product"] >= steps.exact]
        rows.append(
            {
                "T": t,
                "lands": steps.exact,
                "leads away": steps.growing,
                **{
                    f"{name} at a bound": beyond.loc[beyond["value"] >= share, "product"].min()
                    for name, share in (("half", 0.5), ("all", 0.999))
                },
            }
        )
    return pd.DataFrame(rows)


def _length_table(lengths: pd.DataFrame) -> Table:
    cells = lengths.drop(columns="T").map(number)
    cells.insert(0, "T", lengths["T"].astype(str))
    return Table(
        "boundaries",
        "The alpha k at which the last step lands on the maximum, from which it leads away from "
        "it, and from which half and all of the samples are at a bound (to the points of the "
        "figure).",
        cells,
        lengths,
    )


def _spread_table(k: float) -> Table:
    """What temperature the samples of an exact score have, beside the one that is meant."""
    meant = float(np.sqrt(1 - Steps.of(STEPS).alpha[0]))
    rows = []
    for alpha in ALPHAS:
        mean, variance = normal(k * alpha, 0.3, STEPS)
        rows.append(
            {
                "alpha": alpha,
                "alpha k": k * alpha,
                "f_1": Steps.of(STEPS).factors(k * alpha)[0],
                "mean for m = 0.3": mean,
                "standard deviation": float(np.sqrt(variance)),
                "temperature of the samples": 2 * k * variance,
                "effective temperature": meant / alpha,
                "1 / alpha": 1 / alpha,
                "share at a bound with the clip": exact_share(k * alpha, STEPS),
            }
        )
    data = pd.DataFrame(rows)
    return Table(
        "spread",
        f"An exact score at T = {STEPS}, with the k of {KNOWN} ({number(k)}). Mean and standard "
        "deviation are those of a^0 without the clip. The temperature of the samples is 2 k times "
        "their variance: exp(Q / tau) has the variance tau / (2 k). 1 / alpha is that of eq. 19.",
        data.map(lambda value: number(value) if value < 1e4 else f"{value:.0e}"),
        data,
    )


def _task_section(
    task: str,
    runs: pd.DataFrame,
    ideal: pd.DataFrame,
    k: float,
    missing: Sequence[str],
    drawing: Drawing,
) -> Section:
    by_setting, by_tau = spread(runs, "setting"), spread(runs, "tau")
    of_qsm = by_setting[by_setting["agent"] == QSM]
    known = task == KNOWN
    drawn = pd.concat([of_qsm, _exact_line(ideal, of_qsm, k)]) if known else of_qsm
    over_alpha = figures.curves(
        drawn,
        drawing.styles,
        x="setting",
        x_label="alpha",
        y_label="",
        panel_by="measure",
        log_x=True,
    )
    over_tau = figures.curves(
        by_tau,
        drawing.styles,
        x="tau",
        x_label="effective temperature (units of reward)",
        y_label="",
        panel_by="measure",
        log_x=True,
    )
    boundary = (
        f" Shaded: alpha k from {BELOW:g} to {ABOVE:g} for k = {number(k)}. The exact score has "
        "the bounds of the closed form."
        if known
        else ""
    )
    blocks: list[Block] = [
        drawing.picture(
            f"alpha-{task}",
            _shaded(over_alpha, BELOW / k, ABOVE / k) if known else over_alpha,
            drawn,
            alt=f"Return, share of action entries at a bound and critic bias of qsm on {task} "
            f"against alpha. {_ends(of_qsm, 'setting', 'alpha')}",
            caption=f"qsm on {task}: mean at the last evaluation and its 95% bootstrap interval "
            f"over seeds.{boundary}",
        ),
        drawing.picture(
            f"tau-{task}",
            over_tau,
            by_tau,
            alt=f"The same against the effective temperature, a line for {QSM} and one for "
            f"{NORMALIZED}. {_ends(by_tau, 'tau', 'temperature')}",
            caption=f"{QSM} and {NORMALIZED} on {task}, against the effective temperature.",
        ),
        Text(EXPLAINED),
        _run_table(task, runs),
        *([Bullets(missing)] if missing else []),
    ]
    return Section(f"Alpha and temperature on {task}", blocks)


def spread(runs: pd.DataFrame, x: str) -> pd.DataFrame:
    """Means over seeds. Columns: agent, measure, ``x``, value, low, high, in the order of ``x``.

    A measure that no run of a group has is left out there.
    """
    rows = [
        {"agent": agent, "measure": measure, x: at, **_mean(group[measure].dropna())}
        for measure in MEASURES
        for (agent, at), group in runs.groupby(["agent", x])
        if group[measure].notna().any()
    ]
    return pd.DataFrame(rows)


def _mean(values: "pd.Series[Any]") -> dict[str, float]:
    found = mean_interval(values.to_numpy(float))
    return dict(zip(("value", "low", "high"), found, strict=True))


def _exact_line(ideal: pd.DataFrame, of_qsm: pd.DataFrame, k: float) -> pd.DataFrame:
    """The closed form's share at the bounds, over the range of the trained alphas."""
    line = ideal[ideal["T"] == STEPS].assign(agent=EXACT, measure=SHARE)
    line = line.assign(setting=line["product"] / k, low=line["value"], high=line["value"])
    return line[line["setting"].between(of_qsm["setting"].min(), of_qsm["setting"].max())][
        list(of_qsm.columns)
    ]


def _ends(table: pd.DataFrame, x: str, name: str) -> str:
    """The values as a sentence, for a reader who cannot see the figure."""
    return " ".join(
        f"{agent}, {measure}: "
        + "; ".join(
            f"{number(row['value'])} at {name} {number(row[x])}" for row in part.to_dict("records")
        )
        + "."
        for (agent, measure), part in table.groupby(["agent", "measure"], sort=False)
    )


def _run_table(task: str, runs: pd.DataFrame) -> Table:
    rows = []
    for (agent, setting), group in runs.groupby(["agent", "setting"]):
        name = "alpha" if agent == QSM else "temperature"
        rows.append(
            {
                "agent": f"{agent}, {name} = {setting:g}",
                "effective temperature": number(float(group["tau"].iloc[0])),
                **{measure: _mean_text(group[measure].dropna()) for measure in MEASURES},
                "k of the critic": _mean_text(group["k"]),
                "seeds": str(len(group)),
            }
        )
    return Table(
        f"runs-{task}",
        f"{task}: means at the last evaluation [95%]. The k of the critic is that of a parabola "
        "fitted to it along the first action dimension.",
        pd.DataFrame(rows),
        runs,
    )


def _mean_text(values: "pd.Series[Any]") -> str:
    found = _mean(values) if len(values) else dict.fromkeys(("value", "low", "high"), np.nan)
    return interval(found["value"], found["low"], found["high"])


STUDY = Temperature()
