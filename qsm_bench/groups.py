"""Groups of seeds: a job trains one group of a cell's seeds in lockstep."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from numbers import Integral
from zlib import crc32

from qsm_bench.errors import UserError

Groups = tuple[tuple[int, ...], ...]

MOST_SEEDS = 10_000
"""More are a slip of the hand, and a machine would only find out by failing."""

LONGEST_NAME = 60
"""Characters of a group's folder; more seeds than fit are named by a checksum."""


def listed_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds, as Python's own whole numbers.

    Raises UserError for what is no seed, for one that stands twice, and for none or too many.
    """
    listed = list(islice(seeds, MOST_SEEDS + 1))
    if not listed:
        raise UserError("an experiment without seeds trains nothing: give one at least")
    if len(listed) > MOST_SEEDS:
        raise UserError(f"seeds: these are more than {MOST_SEEDS:,}: give fewer")
    for seed in listed:
        if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise UserError(f"seed {seed!r} is not right: give a whole number from 0 to 2^63 - 1")
    for seed, times in Counter(map(int, listed)).items():
        if times > 1:
            raise UserError(f"seed {seed!r} is named twice: name each once")
    return [int(seed) for seed in listed]


def group_seeds(seeds: Iterable[int], per_job: int, earlier: Groups = ()) -> Groups:
    """Put the seeds that are in no ``earlier`` group into groups of at most ``per_job`` seeds.

    The earlier groups come first, as they are: what a job trains never changes.
    """
    known = {seed for group in earlier for seed in group}
    new = [seed for seed in dict.fromkeys(seeds) if seed not in known]
    chunks = (tuple(new[start : start + per_job]) for start in range(0, len(new), per_job))
    return (*earlier, *chunks)


def choose_seeds_per_job(
    seeds: int, cells: int, workers: float, *, device: str, compiled: bool
) -> int:
    """Choose how many of a cell's new seeds share a job.

    On a GPU all of them do: it is there for many seeds at once. On a CPU compiled updates gain
    nothing from sharing (measured: as many updates a second for each seed alone as for 8
    together), so each seed has a job, and no core waits for a long one. Updates that are not
    compiled gain, so they share as far as every worker has a job.
    """
    if device != "cpu":
        return max(1, seeds)
    if compiled:
        return 1
    groups = math.ceil(min(seeds, workers / max(1, cells)))
    return math.ceil(seeds / groups) if groups else 1


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds as a reader sees them: "3", "0-4", "0, 2, 5"."""
    if len(seeds) > 1 and all(after == seed + 1 for seed, after in pairwise(seeds)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def job_name(agent: str, task: str, seeds: Sequence[int] = ()) -> str:
    """A job as a reader sees it: "sac on cheetah-run, seed 3"; a cell without seeds."""
    noun = "seed" if len(seeds) == 1 else "seeds"
    return f"{agent} on {task}" + (f", {noun} {seeds_text(seeds)}" if seeds else "")


def folder_name(seeds: Sequence[int]) -> str:
    """The name of the folder of a group: "0-4", "0,2,5", or with a checksum if it is long."""
    name = seeds_text(seeds).replace(", ", ",")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{seeds[0]}-{seeds[-1]}x{len(seeds)}-{crc32(name.encode()):08x}"
