"""What a report says of an experiment in stages, and of one that was given more seeds later."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from qsm_bench.counting import count
from qsm_bench.report.wording import listed
from qsm_bench.results import Results
from qsm_bench.stages import DECLARED_LATE, FALSE_ALARMS, Stages
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.stages import agents_in, next_stage, verdict_texts


def sentences(analysis: Analysis) -> list[str]:
    """The plan, what was decided at each stage, and which agents stopped when.

    Empty for an experiment without stages.
    """
    stages = analysis.stages
    if stages is None:
        return []
    return [
        _plan(analysis.results, stages),
        *_decisions(analysis, stages),
        *_stopped(analysis, stages),
        *not_ended(analysis),
        *_not_planned(analysis, stages),
        *_removed(analysis.results, stages),
    ]


def warnings(analysis: Analysis) -> list[str]:
    """Why verdicts or estimates can mislead: what was added, or pairs that ended early."""
    return [*_added(analysis.results), *_early(analysis)]


def stage_cell(pair: Mapping[Any, Any]) -> dict[str, str]:
    """The column of a table of pairs that says at how many seeds a verdict fell."""
    if "stage" not in pair:
        return {}
    return {"stage": f"{pair['stage']:.0f} seeds" if pair["verdict"] else "open"}


def caption(analysis: Analysis) -> str:
    """What the caption of a table of pairs adds for stages; empty without them."""
    if analysis.stages is None:
        return ""
    return (
        " Each pair is shown as at its last test: p is adjusted for the pairs that were open "
        f"there, and multiplied by {FALSE_ALARMS:.0%} / the stage's share."
    )


def _plan(results: Results, stages: Stages) -> str:
    shares = listed([f"{100 * share:.3g}%" for share in stages.shares])
    when = (
        "written when there were runs already, so nothing shows that they were declared before"
        if results.experiment.get(DECLARED_LATE)
        else "declared before the first run"
    )
    return (
        f"Stages were {when}: {listed([*map(str, stages.counts)])} seeds, "
        f"tested at {shares}, together {FALSE_ALARMS:.0%}. Only agents in a pair without a verdict "
        "went on to the next stage."
    )


def _decisions(analysis: Analysis, stages: Stages) -> list[str]:
    pairs = analysis.pairs
    found = []
    for look in analysis.looks:
        seeds = stages.counts[look.number]
        rows = pairs[pairs["stage"] == seeds]
        decided = verdict_texts(rows)
        found.append(
            f"Stage {look.number + 1}, {count(seeds, 'seed')}: "
            f"{'; '.join(decided) or 'no verdict'}. {_open(len(look.open))}."
        )
    return found


def _open(pairs: int) -> str:
    return {0: "No pair is open", 1: "1 pair is open"}.get(pairs, f"{pairs:,} pairs are open")


def _stopped(analysis: Analysis, stages: Stages) -> list[str]:
    """Which agents stopped before the last stage, since no pair of theirs was open."""
    going, found = agents_in(list(combinations(stages.agents, 2))), []
    for look in analysis.looks[: len(stages.seeds) - 1]:
        ended = [agent for agent in going if agent not in look.open_agents]
        if ended:
            seeds = count(stages.counts[look.number], "seed")
            them = "it" if len(ended) == 1 else "them"
            found.append(f"{listed(ended)} stopped after {seeds}: no pair with {them} was open.")
        going = look.open_agents
    return found


def not_ended(analysis: Analysis) -> list[str]:
    """Which stage is the next to be tested, if there is one."""
    stages = analysis.stages
    number = next_stage(analysis.looks, stages) if stages else None
    if stages is None or number is None:
        return []
    seeds = count(stages.counts[number], "seed")
    until = "its seeds are used, and it is tested,"
    if number == 0:
        until = "what is shown of its seeds is for a look, and it is tested,"
    return [f"Stage {number + 1}, {seeds}, has not ended: {until} when all its jobs have finished."]


def _not_planned(analysis: Analysis, stages: Stages) -> list[str]:
    """The imported curves that would otherwise be compared."""
    others = [agent for agent in analysis.comparison.agents if agent not in stages.agents]
    return [f"{listed(others)}: not in the plan, so in no pair."] if others else []


def _removed(results: Results, stages: Stages) -> list[str]:
    agents = [agent for agent in stages.agents if agent not in results.experiment["agents"]]
    tasks = [task for task in stages.tasks if task not in results.experiment["tasks"]]
    return [
        f"Planned and removed since: {listed(gone)}. {what}"
        for gone, what in (
            (agents, "Pairs with them are open and not tested."),
            (tasks, "No stage ends without their runs."),
        )
        if gone
    ]


def _added(results: Results) -> list[str]:
    seeds = results.experiment.get("seeds_asked")
    own = [cell for cell in results.cells if cell["agent"] not in results.elsewhere]
    lengths = sorted({steps for cell in own for steps in cell.get("lengths", ())})
    added = []
    if seeds:
        turns = ", then ".join(f"{number:,}" for number in seeds)
        added.append(f"Seeds were added after the first {seeds[0]:,} ({turns})")
    if lengths:
        added.append(f"Runs were given more steps after {listed([f'{n:,}' for n in lengths])}")
    return [
        f"{what}, and no stages were declared: if that was because of what a report said, a "
        f"verdict among equal agents is more likely than {FALSE_ALARMS:.0%}."
        for what in added
    ]


def _early(analysis: Analysis) -> list[str]:
    stages = analysis.stages
    if stages is None or not (analysis.pairs["stage"] < stages.counts[-1]).any():
        return []
    return [
        "Some pairs were decided before the last stage: their probabilities of improvement, and "
        "the scores of agents that stopped, are on average further apart than the agents are. The "
        "verdicts allow for it."
    ]
