"""Which seeds of a job still learn. One may diverge or fail; the others go on bit for bit."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from envs import TaskError
from qsm_bench.manifest import SeedFailure


class SeedStatus:
    """Which seeds of a job have diverged or failed, when and why."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds = seeds
        self.finite = torch.ones(len(seeds), dtype=torch.bool, device=device)
        """[S]: whether all losses, actions and returns of the seed were finite so far.

        It lies on the device, so that an update need not wait for it to be read.
        """
        self.running = np.ones(len(seeds), dtype=bool)
        """[S]: whether no environment of the seed has failed."""
        self.diverged: dict[int, int] = {}
        """The seeds that have diverged, each with the step at which it was seen."""
        self.failed: dict[int, SeedFailure] = {}
        """The seeds one of whose environments has failed."""

    @property
    def learning(self) -> Tensor:
        """Whether a seed has neither diverged nor failed: [S], on the device."""
        return self.finite & torch.from_numpy(self.running).to(self.finite.device)

    def note_diverged(self, step: int) -> None:
        """Write down the seeds that are not finite any more, as seen at ``step``."""
        for row in (~self.finite).nonzero().flatten().tolist():
            if self.running[row]:
                self.diverged.setdefault(self.seeds[row], step)

    def note_failed(self, faults: Mapping[int, str], step: int) -> None:
        """Let the seeds stand still whose environments, by row, have failed at ``step``."""
        for row, reason in faults.items():
            if self.running[row]:
                self.running[row] = False
                self.failed[self.seeds[row]] = SeedFailure(step=step, reason=reason)

    def all_failed(self) -> TaskError | None:
        """Return the error that ends the job if no seed is left; None if one is."""
        if self.running.any():
            return None
        last = max(self.failed.values(), key=lambda failure: failure.step)
        if not last.step:
            return TaskError(last.reason)
        return TaskError(f"{last.reason}; by step {last.step:,} every seed had failed")

    def restore(self, diverged: dict[int, int], failed: dict[int, SeedFailure]) -> None:
        """Go on from what a checkpoint holds."""
        self.diverged, self.failed = diverged, failed
        finite = [seed not in diverged for seed in self.seeds]
        self.finite = torch.tensor(finite, device=self.finite.device)
        self.running = np.array([seed not in failed for seed in self.seeds])
