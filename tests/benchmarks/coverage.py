"""Measure whether the statistics keep their promises, on simulated scores with known truth.

    python tests/benchmarks/coverage.py

rewrites the tables of docs/statistics.md. Scores are drawn for six tasks that differ in their mean
and spread. In the world "even" they are normal. In "failing", each run fails on each task with
probability 0.2, and then has a score near zero.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qsm_bench.statistics import estimates
from qsm_bench.statistics.estimates import CONFIDENCE, STATISTICS, aggregate, bootstrap
from qsm_bench.statistics.selection import FloatArray
from qsm_bench.statistics.significance import (
    FALSE_ALARMS,
    detectable_improvement,
    holm,
    permutation_test,
    probability_of_improvement,
)

SEEDS = (3, 5, 10)
MEANS = np.linspace(0.3, 0.8, 6)
SPREADS = np.linspace(0.15, 0.05, 6)
WORLDS = {"even": 0.0, "failing": 0.2}
"""The worlds, each with the probability that a run fails on a task."""
SHIFT = 0.75
"""How many spreads one agent is better than the other, where improvement is estimated."""
DOCUMENT = Path("docs/statistics.md")
BEGIN, END = "<!-- tests/benchmarks/coverage.py -->\n", "<!-- end -->\n"

Draw = Callable[[np.random.Generator, int], FloatArray]


def draw(
    rng: np.random.Generator, seeds: int, *, fails: float, shift: float = 0.0, spread: float = 1.0
) -> FloatArray:
    """Draw scores [seeds, 6] of an agent: ``shift`` spreads better, ``spread`` times as noisy."""
    noise = rng.normal(size=(seeds, len(MEANS)))
    scores: FloatArray = MEANS + SPREADS * (shift + spread * noise)
    failed = rng.random(scores.shape) < fails
    return np.where(failed, 0.02 * np.abs(noise), scores)


def interval_coverage(world: str, seeds: int, simulations: int) -> list[float]:
    """Return the share of intervals that contain the truth, for each aggregate and improvement."""
    fails = WORLDS[world]
    rng = np.random.default_rng([seeds, *world.encode()])
    many = draw(rng, 500_000, fails=fails)
    better = draw(rng, 500_000, fails=fails, shift=SHIFT)
    truth = aggregate(many)
    improvement = np.mean(np.sign(better - many)) / 2 + 0.5
    held = np.zeros(len(STATISTICS) + 1)
    for _ in range(simulations):
        scores = draw(rng, seeds, fails=fails)
        _, low, high = bootstrap(aggregate, scores)
        held[:-1] += (low <= truth) & (truth <= high)
        other = draw(rng, seeds, fails=fails, shift=SHIFT)
        _, low, high = bootstrap(probability_of_improvement, other, scores)
        held[-1] += (low <= improvement)[0] and (improvement <= high)[0]
    return list(held / simulations)


def interval_false_alarms(world: str, seeds: int, simulations: int) -> float:
    """Return how often the interval of two equal agents' improvement leaves out 0.5."""
    rng = np.random.default_rng([seeds, 1, *world.encode()])
    alarms = 0
    for _ in range(simulations):
        runs = [draw(rng, seeds, fails=WORLDS[world]) for _ in range(2)]
        _, low, high = bootstrap(probability_of_improvement, *runs)
        alarms += not low[0] <= 0.5 <= high[0]
    return alarms / simulations


def verdicts(agents: Sequence[Draw], seeds: int, simulations: int) -> float:
    """Return the share of experiments in which any pair of the agents gets a verdict."""
    rng = np.random.default_rng([seeds, len(agents)])
    alarms = 0
    for _ in range(simulations):
        runs = [agent(rng, seeds) for agent in agents]
        p = [permutation_test(x, y)[0] for x, y in combinations(runs, 2)]
        alarms += bool((holm(np.array(p)) <= FALSE_ALARMS).any())
    return alarms / simulations


def seen_improvement(world: str, seeds: int, simulations: int) -> float:
    """Return the true probability of improvement that gets a verdict in 4 of 5 experiments."""
    fails = WORLDS[world]
    low, high = 0.0, 6.0
    for _ in range(8):
        shift = (low + high) / 2
        pair = partial(draw, fails=fails), partial(draw, fails=fails, shift=shift)
        low, high = (shift, high) if verdicts(pair, seeds, simulations) < 0.8 else (low, shift)
    rng = np.random.default_rng(0)
    better = draw(rng, 500_000, fails=fails, shift=high)
    return float(np.mean(np.sign(better - draw(rng, 500_000, fails=fails))) / 2 + 0.5)


def tables(simulations: int) -> Iterator[str]:
    """Return the lines of the document."""
    cases = [(world, seeds) for world in WORLDS for seeds in SEEDS]
    worlds, seeds_of = zip(*cases, strict=True)
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        covered = pool.map(interval_coverage, worlds, seeds_of, [simulations] * len(cases))
        naive = pool.map(interval_false_alarms, worlds, seeds_of, [simulations] * len(cases))
        tests = {
            kind: pool.map(verdicts, agents, seeds_of, [4 * simulations] * len(cases))
            for kind, agents in {
                "2 equal agents": [[partial(draw, fails=WORLDS[w])] * 2 for w in worlds],
                "5 equal agents": [[partial(draw, fails=WORLDS[w])] * 5 for w in worlds],
                "2, one 3 times as noisy": [
                    [partial(draw, fails=WORLDS[w], spread=s) for s in (1.0, 3.0)] for w in worlds
                ],
            }.items()
        }
        seen = pool.map(seen_improvement, worlds, seeds_of, [simulations] * len(cases))
        yield (
            f"Coverage of the {CONFIDENCE:.0%} stratified bootstrap intervals, {len(MEANS)} tasks, "
            f"{simulations:,} simulated experiments each with {estimates.REPLICATIONS:,} "
            "replications:"
        )
        yield from table(
            ["world", "seeds", *STATISTICS, "probability of improvement"],
            [[w, s, *map(percent, c)] for (w, s), c in zip(cases, covered, strict=True)],
        )
        yield (
            f"How often equal agents get a verdict ({4 * simulations:,} experiments each; at most "
            f"{FALSE_ALARMS:.0%} is promised), and how often they would get one from the interval "
            f"of the probability of improvement ({simulations:,}):"
        )
        yield from table(
            ["world", "seeds", *tests, "2 equal agents, by the interval"],
            [
                [w, s, *(percent(rate) for rate in rates)]
                for (w, s), *rates in zip(cases, *tests.values(), naive, strict=True)
            ],
        )
        yield (
            "The smallest probability of improvement that can lead to a verdict, between 2 agents "
            "and between any of 5, and the true probability with which 2 agents get a verdict in "
            "4 of 5 experiments:"
        )
        yield from table(
            ["world", "seeds", "smallest, of 2", "smallest, of 5", "verdict in 4 of 5, of 2"],
            [
                [w, s, *(f"{smallest(s, pairs):.2f}" for pairs in (1, 10)), f"{value:.2f}"]
                for (w, s), value in zip(cases, seen, strict=True)
            ],
        )


def smallest(seeds: int, pairs: int) -> float:
    """Return the smallest observed improvement with a verdict, if no other pair has one."""
    return detectable_improvement(seeds, seeds, len(MEANS), FALSE_ALARMS / pairs)


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.1f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Write a Markdown table between empty lines."""
    yield ""
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def main(
    simulations: Annotated[int, typer.Option(help="Simulated experiments of each case.")] = 500,
    replications: Annotated[
        int, typer.Option(help="Bootstrap replications of each.")
    ] = estimates.REPLICATIONS,
) -> None:
    """Rewrite the tables of docs/statistics.md."""
    estimates.REPLICATIONS = replications
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(tables(simulations))
    DOCUMENT.write_text(f"{before}{BEGIN}{lines}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
