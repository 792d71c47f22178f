"""Sections on pairs of agents: what would settle the open ones, and all of them in one matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from qsm_bench.counting import count, duration
from qsm_bench.report import figures, staging
from qsm_bench.report.document import Block, Fold, Section, Table, Text
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.wording import BOOTSTRAP, NONE, interval, listed, number
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.settling import no_estimate
from qsm_bench.statistics.significance import FALSE_ALARMS, in_order, names_better

SETTLE_TITLE = "What would settle it"


def settling(analysis: Analysis) -> Section:
    """The number of seeds that each open pair needs, and what they cost."""
    table = analysis.settling
    if table.empty:
        why = "Every pair that was tested has a verdict: there is nothing to settle."
        if analysis.pairs.empty:
            why = "There are no pairs of agents: there is nothing to settle."
        elif analysis.pairs["p"].isna().any():
            why = "No pair was tested yet: what would settle it is known after the first stage."
        return Section(SETTLE_TITLE, [Text(why)])
    most = analysis.most_seeds
    cells = pd.DataFrame(
        {
            "agent": row["first"],
            "other agent": row["second"],
            "a run of the first beats one of the other": interval(
                row["probability"], row["low"], row["high"]
            ),
            "seeds now": _both(row["seeds_first"], row["seeds_second"]),
            "seeds needed": _needed(row, most),
            "added cost here": NONE if np.isnan(row["seconds"]) else duration(row["seconds"]),
        }
        for row in table.to_dict("records")
    )
    return Section(
        SETTLE_TITLE,
        [
            Table(
                "settling",
                "Seeds needed: those of each agent, or of the one that is named, with which the "
                "pair would get a verdict in 4 of 5 experiments, if runs were distributed as those "
                f"at hand: simulated by drawing runs of each task anew. {_tried(analysis)} Cost: "
                "training and evaluation of the added seeds, on one core or device as used here. "
                "Seeds added for one pair serve the agent's other pairs, too.",
                cells,
                table,
            ),
            Text(
                "The difference seen is uncertain itself: with few seeds, the true one may be much "
                "smaller, and then more seeds are needed, or none are enough. Seeds that are added "
                f"because of a result make more than {FALSE_ALARMS:.0%} of experiments name a "
                "better one among equal agents, unless they are those of stages that were declared "
                "before the first run."
            ),
        ],
    )


def _tried(analysis: Analysis) -> str:
    """Which numbers of seeds were tried."""
    if analysis.stages_to_come is None:
        return f"Up to {analysis.most_seeds} seeds were tried."
    if not analysis.stages_to_come:
        return "The last stage has ended, so no seeds are to come."
    counts = listed([str(number) for number, _ in analysis.stages_to_come])
    return f"Tried were the stages to come ({counts} seeds), each at its share of the false alarms."


def _needed(row: "dict[Any, Any]", most: int) -> str:
    growing = [row[side] for side in ("first", "second") if row[f"grows_{side}"]]
    if not growing:
        return "both were measured elsewhere"
    if not most:
        return "none to come"
    if reason := no_estimate(row):
        return reason
    seeds = f"more than {most}" if np.isnan(row["needed"]) else f"{row['needed']:.0f}"
    return f"{seeds} of {growing[0]}" if len(growing) == 1 else seeds


def _both(first: int, second: int) -> str:
    return str(first) if first == second else f"{first} and {second}"


def pairs(analysis: Analysis, drawing: Drawing) -> Section:
    """Every pair, folded away: the probability that a run of one agent beats one of another."""
    if analysis.pairs.empty:
        return Section("Pairs", [Text("There are no pairs of agents.")])
    agents = analysis.ranking.agents
    matrix, verdicts = _matrices(analysis.pairs, agents)
    found = int(analysis.pairs["verdict"].sum())
    table = in_order(analysis.pairs, agents)
    blocks: list[Block] = [
        drawing.picture(
            "improvement-matrix",
            figures.pair_matrix(matrix, verdicts),
            matrix.rename_axis("agent").reset_index(),
            alt="Matrix of the probability that a run of the row's agent beats one of the "
            "column's. "
            + "; ".join(
                f"{row['first']} against {row['second']} {number(row['probability'])}"
                + ", a verdict" * bool(row["verdict"])
                for row in table.to_dict("records")
            )
            + ".",
            caption="Probability that a run of the row's agent beats a run of the column's on the "
            "same task, averaged over tasks; 0.5 is no difference. Bold with an asterisk: a "
            "verdict.",
        ),
        Table(
            "pairs",
            f"{_which(analysis)} {BOOTSTRAP} p: exact permutation test of the hypothesis that the "
            "two agents are equal, with Holm's adjustment over these pairs. Verdicts depend on p "
            f"only. If all agents are equal, at most {FALSE_ALARMS:.0%} of experiments name a "
            "better one."
            + (
                " Needed: the probabilities that would have been enough for a verdict with so "
                "many runs."
                if table["detectable"].notna().any()
                else ""
            )
            + staging.caption(analysis),
            _pair_cells(table),
            table,
        ),
    ]
    title = f"{count(len(table), 'pair')} of agents, {count(found, 'verdict')}"
    return Section("Pairs", [Fold(title, blocks)])


def _which(analysis: Analysis) -> str:
    """Which pairs there are."""
    if analysis.comparison.recorded:
        return "Every pair but those of two agents of the record."
    return "Every pair."


def _pair_cells(table: pd.DataFrame) -> pd.DataFrame:
    cells = pd.DataFrame(
        {
            "agent": row["first"],
            "other agent": row["second"],
            "a run of the first beats one of the other": interval(
                row["probability"], row["low"], row["high"]
            ),
            "higher mean of the first on": f"{row['wins']} of {row['tasks']}",
            "p": number(row["p"], 2),
            "needed": NONE
            if np.isnan(row["detectable"])
            else f"{number(1 - row['detectable'])} or {number(row['detectable'])}",
            "verdict": verdict,
            **staging.stage_cell(row),
        }
        for row, verdict in zip(table.to_dict("records"), _verdicts(table), strict=True)
    )
    return cells if table["detectable"].notna().any() else cells.drop(columns="needed")


def _verdicts(table: pd.DataFrame) -> list[str]:
    """The verdict on each pair. That no outcome could have led to one is said if one could have
    for another pair.
    """
    some = table["attainable"].any()
    return [
        f"{row['first']} is better"
        if better
        else "they differ"
        if row["verdict"]
        else "cannot tell"
        if row["attainable"] or not some
        else "cannot tell: so few runs could not have led to a verdict"
        for row, better in zip(table.to_dict("records"), names_better(table), strict=True)
    ]


def _matrices(pairs: pd.DataFrame, agents: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The probability that the row's agent beats the column's, and whether there is a verdict.

    The probability is NaN where it is not known.
    """
    matrix = pd.DataFrame(np.nan, index=list(agents), columns=list(agents))
    verdicts = pd.DataFrame(False, index=list(agents), columns=list(agents))
    for pair in pairs.to_dict("records"):
        better, worse = pair["better"], pair["worse"]
        matrix.loc[better, worse] = pair["probability"]
        matrix.loc[worse, better] = 1 - pair["probability"]
        verdicts.loc[better, worse] = verdicts.loc[worse, better] = pair["verdict"]
    return matrix, verdicts
