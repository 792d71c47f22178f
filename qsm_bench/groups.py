"""Groups of seeds: a job trains one group of a cell's seeds in lockstep."""

import math
from collections.abc import Iterable, Sequence
from zlib import crc32

Groups = tuple[tuple[int, ...], ...]

LONGEST_NAME = 60
"""Characters of a group's folder; more seeds than fit are named by a checksum."""


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
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def folder_name(seeds: Sequence[int]) -> str:
    """The name of the folder of a group: "0-4", "0,2,5", or with a checksum if it is long."""
    name = seeds_text(seeds).replace(", ", ",")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{seeds[0]}-{seeds[-1]}x{len(seeds)}-{crc32(name.encode()):08x}"
