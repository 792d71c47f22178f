"""The first screen: which agent is better, and which cannot be told apart."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from qsm_bench.counting import count
from qsm_bench.report import figures, staging
from qsm_bench.report.document import Block, Bullets, Picture, Section, Table, Warnings
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.pairs import SETTLE_TITLE
from qsm_bench.report.runs import MISSING_TITLE
from qsm_bench.report.wording import BOOTSTRAP, NONE, interval, listed, number, span
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.ranking import Groups, Ranking, open_groups
from qsm_bench.statistics.selection import AREA_UNDER_CURVE, Comparison, agents_of, failed_jobs
from qsm_bench.statistics.settling import no_estimate
from qsm_bench.statistics.significance import FALSE_ALARMS, names_better

FEW_SEEDS, FEW_TASKS = 5, 3
"""With fewer seeds or tasks than these, the report has a warning."""
MOST_NAMED = 4
"""With more agents or groups than these, a sentence counts them instead of naming them."""

SEE_MISSING = f'see "{MISSING_TITLE}"'
SEE_SETTLING = f'see "{SETTLE_TITLE}"'
NO_STAGE = "no seeds are to come, since the last stage has ended"


def answer(said: Sequence[str], analysis: Analysis, drawing: Drawing) -> Section:
    """What ``sentences`` said, the ranking, and the warnings that belong to it."""
    blocks: list[Block] = [Bullets(said)]
    if by_stage := staging.sentences(analysis):
        blocks.append(Bullets(by_stage))
    warnings = [*_warnings(analysis), *staging.warnings(analysis)]
    after: list[Block] = [Warnings(warnings)] if warnings else []
    if len(analysis.comparison.agents) > 1:
        picture, table = _ranking(analysis.ranking, analysis.comparison, drawing)
        return Section("The answer", [*blocks, picture, *after, table])
    return Section("The answer", [*blocks, *after])


def sentences(analysis: Analysis) -> list[str]:
    """Say who is better than whom, who differs otherwise, and who cannot be told apart.

    Raises UserError if there are no runs at all.
    """
    agents, pairs = analysis.comparison.agents, analysis.pairs
    if not agents:
        return [f"No agent has a run to compare: {SEE_MISSING}."]
    absent = _absent(analysis)
    if len(agents) == 1:
        return [*absent, f"Only {agents[0]} has runs to compare: there are no pairs."]
    if not analysis.comparison.pairs:
        return [*absent, "The agents of a record are not compared with each other."]
    if pairs.empty:
        return [
            *absent,
            "No two agents have runs on the same task: there are no pairs to compare.",
        ]
    if pairs["p"].isna().all():
        return [*absent, "No pair of agents was tested yet: the first stage has not ended."]
    if not pairs["attainable"].any():
        seeds = span([*pairs["seeds_better"], *pairs["seeds_worse"]])
        runs = f"{seeds} seed{'s' * (seeds != '1')} on {_tasks(pairs)}"
        which = "the two agents" if len(agents) == 2 else "any two agents"
        if analysis.comparison.recorded:
            which = "an agent of yours and another one"
        ended = analysis.stages_to_come == []
        return [
            *absent,
            f"So few runs ({runs}) could not have told {which} apart, whatever their returns. "
            + (f"{NO_STAGE.capitalize()}." if ended else f"What would: {SEE_SETTLING}."),
        ]
    better = _better(analysis)
    when = "" if better else f" {_when(analysis.comparison)}"
    said = [better, *_different(pairs), _open(analysis, when), _not_compared(analysis)]
    return [*absent, *(sentence for sentence in said if sentence)]


def _absent(analysis: Analysis) -> list[str]:
    """Name the agents that have no run to compare, and are no curves either."""
    results, there = analysis.results, analysis.comparison.agents
    curves = {curve.name for curve in results.curves_elsewhere}
    absent = [a for a in agents_of(results) if a not in there and a not in curves]
    if not absent:
        return []
    have = "has" if len(absent) == 1 else "have"
    return [f"{_named(absent)} {have} no run to compare: {SEE_MISSING}."]


def _better(analysis: Analysis) -> str:
    """Agents that are better than the same others share a clause."""
    worse: dict[tuple[str, ...], list[str]] = {}
    for agent, others in analysis.ranking.better_than.items():
        if others:
            worse.setdefault(others, []).append(agent)
    if not worse:
        return ""
    rest = len(analysis.ranking.agents) - 1
    clauses = [
        f"{listed(agents)} {'is' if len(agents) == 1 else 'are'} better than "
        + ("all others" if len(others) == rest > 2 else _named(others))
        for others, agents in worse.items()
    ]
    more = ['for the others see "better than" in the table'] * (len(clauses) > MOST_NAMED)
    first, *next_ones = clauses[:MOST_NAMED]
    return "; ".join([f"{first} {_when(analysis.comparison)}", *next_ones, *more]) + "."


def _different(pairs: pd.DataFrame) -> list[str]:
    """A sentence for each verdict whose agent does not have the higher mean return, too."""
    sentences = []
    for pair in pairs[pairs["verdict"].astype(bool) & ~names_better(pairs)].to_dict("records"):
        higher = pair["tasks"] - pair["wins"] - pair["ties"]
        means = (
            f"{pair['worse']} has the higher mean return on {higher} of "
            f"{count(pair['tasks'], 'task')}"
            if higher
            else "their mean returns are equal"
        )
        sentences.append(
            f"{pair['better']} and {pair['worse']} differ, but neither is better: a run of "
            f"{pair['better']} beats one of {pair['worse']} with probability "
            f"{number(pair['probability'])}, and {means}."
        )
    return sentences


def _open(analysis: Analysis, when: str) -> str:
    """Name the agents that cannot be told apart, ``when``, and the seeds that would be needed."""
    needs, most = analysis.settling, analysis.most_seeds
    if needs.empty:
        return ""
    needed = _needed(needs.iloc[0], most) if len(needs) == 1 else _range_needed(needs, most)
    groups = open_groups(analysis.ranking.agents, analysis.pairs)
    own = _own_groups(groups, analysis.comparison.recorded)
    if len(own) > MOST_NAMED or max(map(len, own)) > MOST_NAMED:
        pairs, agents = len(analysis.pairs), len(analysis.comparison.agents)
        apart = (
            f"No two of the {agents} agents can be told apart"
            if len(groups) == 1 and len(groups[0]) == agents
            else f"{len(needs)} of {pairs} pairs of agents cannot be told apart"
        )
        return f"{apart}{when}: {needed}."
    (first, apart_from), *others = own.items()
    also = "".join(f"; nor can {listed(group)}{_from(group, them)}" for group, them in others)
    said = f"{listed(first)} cannot be told apart{_from(first, apart_from)}{when}{also}"
    return f"{said}: {needed}."


def _own_groups(groups: Groups, recorded: Collection[str]) -> dict[tuple[str, ...], list[str]]:
    """The agents of each group that are of no record, and those of a record that are not told apart
    from any of them. Two of a record are in no group together, since no such pair is tested.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        own = tuple(agent for agent in group if agent not in recorded)
        found.setdefault(own, []).extend(agent for agent in group if agent in recorded)
    return found


def _from(own: Sequence[str], recorded: Sequence[str]) -> str:
    """From which agents of a record those of a group cannot be told apart; empty if from none."""
    if not recorded:
        return ""
    theirs = (
        listed(recorded) if len(recorded) <= MOST_NAMED else f"{len(recorded)} agents of the record"
    )
    return f" from {theirs}" if len(own) == 1 else f" from each other, nor from {theirs}"


def _not_compared(analysis: Analysis) -> str:
    """Count the pairs without a common task. What is in no stage's plan is said elsewhere."""
    comparison, stages = analysis.comparison, analysis.stages
    planned = set(comparison.agents if stages is None else stages.agents)
    missing = sum(
        not comparison.shared_tasks(*pair) for pair in comparison.pairs if planned.issuperset(pair)
    )
    if not missing:
        return ""
    have = "has" if missing == 1 else "have"
    return f"{count(missing, 'pair')} of agents {have} no task in common, and cannot be compared."


def _needed(need: "pd.Series[Any]", most: int) -> str:
    """What one pair needs, as a clause; up to ``most`` seeds were tried."""
    growing = [side for side in ("first", "second") if need[f"grows_{side}"]]
    if not growing:
        return "both were measured elsewhere, and get no more seeds here"
    now = span([need[f"seeds_{side}"] for side in growing])
    of = f" of {need[growing[0]]}" if len(growing) == 1 else ""
    if not most:
        return NO_STAGE
    if reason := no_estimate(need):
        return reason
    if pd.isna(need["needed"]):
        return (
            f"even with {most} seeds{of} instead of {now} a difference like the one seen "
            "would be seen less than 4 times in 5"
        )
    return (
        f"with {need['needed']:.0f} seeds{of} instead of {now} a difference like the one seen "
        "would be seen 4 times in 5"
    )


def _range_needed(needs: pd.DataFrame, most: int) -> str:
    """What several pairs need, as a clause; up to ``most`` seeds were tried."""
    sides = ("first", "second")
    growing = needs[needs["grows_first"] | needs["grows_second"]]
    if growing.empty:
        return "all were measured elsewhere, and get no more seeds here"
    if not most:
        return NO_STAGE
    reasons = [no_estimate(row) for row in growing.to_dict("records")]
    if all(reasons):
        return str(reasons[0])
    now = span(
        seeds
        for side in sides
        for seeds in growing.loc[growing[f"grows_{side}"].astype(bool), f"seeds_{side}"]
    )
    agents = [
        (row[side], row[f"grows_{side}"]) for row in needs.to_dict("records") for side in sides
    ]
    own = sorted({agent for agent, grows in agents if grows})
    named = listed(own) if len(own) <= MOST_NAMED else count(len(own), "agent")
    of = "" if all(grows for _, grows in agents) else f" of {named}"
    estimated = growing[[reason is None for reason in reasons]]
    known = estimated["needed"].dropna().astype(int)
    where = " where it can be told" * any(reasons)
    needed = span(known) if len(known) else f"more than {most}"
    if 0 < len(known) < len(estimated):
        needed = f"{known.min()} to more than {most}"
    return (
        f"{needed} seeds{of} instead of {now} would be needed{where} to see differences like these "
        f"4 times in 5, {SEE_SETTLING}"
    )


def _named(agents: Sequence[str]) -> str:
    return listed(agents) if len(agents) <= MOST_NAMED else f"{len(agents)} others"


def _when(comparison: Comparison) -> str:
    last = {int(comparison.steps(task)[-1]) for task in comparison.tasks}
    return f"at {last.pop():,} steps" if len(last) == 1 else "at the end"


def _tasks(pairs: pd.DataFrame) -> str:
    tasks = span(pairs["tasks"])
    return f"{tasks} task{'s' * (tasks != '1')}"


def _ranking(ranked: Ranking, comparison: Comparison, drawing: Drawing) -> tuple[Picture, Table]:
    """The ranking as a figure and as a table."""
    at_end = f"{ranked.measure} at the end"
    cells = pd.DataFrame(
        {
            "agent": row["agent"],
            at_end: interval(row["value"], row["low"], row["high"]),
            AREA_UNDER_CURVE: interval(row["area"], row["area_low"], row["area_high"]),
            "group": row["groups"],
            "better than": row["better_than"] or NONE,
            "seeds x tasks": f"{row['seeds']} x {row['tasks']}",
        }
        for row in ranked.table.to_dict("records")
    )
    if ranked.table["area"].isna().all():
        cells = cells.drop(columns=AREA_UNDER_CURVE)
    joined = [f"{name}: {listed(group)}" for group, name in ranked.named_groups if len(group) > 1]
    apart = "cannot be told apart" + ("" if ranked.all_tested else ", or were not tested")
    alone = "Every two agents are told apart."
    ends = "; ".join(f"{row['agent']} {row[at_end]}" for row in cells.to_dict("records"))
    picture = drawing.picture(
        "ranking",
        figures.ranking(ranked, drawing.styles),
        ranked.table,
        alt=f"The agents, best first, by {at_end}: {ends}. "
        + (f"These {apart}: {'; '.join(joined)}." if joined else alone),
        caption=_about(ranked, comparison, apart if joined else ""),
    )
    table = Table(
        "ranking",
        f"The same as a table. Agents that share a letter {apart}.",
        cells,
        ranked.table,
    )
    return picture, table


def _about(ranked: Ranking, comparison: Comparison, apart: str) -> str:
    """The caption: what the values are, what tells agents apart, and what a line stands for."""
    told = "Who is told apart depends on exact permutation tests"
    if comparison.recorded:
        told += " of pairs with an agent that is not the record's"
    if ranked.measure.startswith("IQM"):
        used, all_tasks = int(ranked.table["tasks"].max()), len(comparison.tasks)
        of = "" if used == all_tasks else f" of {all_tasks}"
        what = (
            f"Interquartile mean over seeds and {count(used, 'task')}{of}: of the last "
            "evaluation, and of the mean over all evaluations (area under the curve). "
            f"{BOOTSTRAP}"
        )
        told += ", not on the intervals"
    else:
        what = (
            "The probability that a run of the agent beats one of another on the same task, "
            "averaged over tasks and other agents."
        )
    if apart:
        what += f" A line at the right joins agents that {apart}; their order may be chance."
    return (
        f"{what} {told}; if all agents are equal, at most {FALSE_ALARMS:.0%} of experiments name "
        "a better one."
    )


def _warnings(analysis: Analysis) -> list[str]:
    comparison, results = analysis.comparison, analysis.results
    warnings = []
    unfinished = [c for c in results.cells if c["status"] in ("pending", "running", "interrupted")]
    if unfinished:
        warnings.append(
            f"This report is partial: {len(unfinished)} of {count(len(results.cells), 'cell')} "
            "have not finished."
        )
    failed = [job for cell in results.cells for job in failed_jobs(cell)]
    if failed:
        warnings.append(f"{count(len(failed), 'job')} failed: {SEE_MISSING}.")
    if results.damaged:
        warnings.append(
            f"{count(len(results.damaged), 'job')} cannot be read and "
            f"{'is' if len(results.damaged) == 1 else 'are'} left out: {SEE_MISSING}."
        )
    diverged = sum(len(cell.get("diverged", {})) for cell in results.cells)
    if diverged:
        warnings.append(
            f"{count(diverged, 'run')} diverged and {'is' if diverged == 1 else 'are'} not in the "
            "statistics: an agent that sometimes diverges is judged here by its other runs only."
        )
    lost = sum(len(cell.get("failed_seeds", {})) for cell in results.cells)
    if lost:
        warnings.append(
            f"{count(lost, 'run')} failed in the environment and {'is' if lost == 1 else 'are'} "
            f"not in the statistics: {SEE_MISSING}."
        )
    fewest: dict[str, int] = {}
    for (agent, _), runs in comparison.runs.items():
        fewest[agent] = min(len(runs.seeds), fewest.get(agent, len(runs.seeds)))
    seeds = min(fewest.values(), default=0)
    few = [agent for agent in comparison.agents if fewest[agent] == seeds]
    of = f" of {listed(few[:MOST_NAMED])}" if 0 < len(few) < len(fewest) else ""
    if seeds == 1:
        warnings.append(f"Only 1 seed{of}: nothing shows how much results depend on the seed.")
    elif 1 < seeds < FEW_SEEDS:
        told = not analysis.pairs.empty and analysis.pairs["attainable"].any()
        only = ", and only large differences can be distinguished from chance" if told else ""
        warnings.append(
            f"Only {count(seeds, 'seed')}{of}: with so few, bootstrap intervals are too narrow"
            f"{only}."
        )
    tasks = len(comparison.tasks)
    if 0 < tasks < FEW_TASKS:
        warnings.append(
            f"Only {count(tasks, 'task')}: the results say nothing about other tasks, and "
            "aggregates over so few tasks add nothing to the results of each task."
        )
    return warnings
