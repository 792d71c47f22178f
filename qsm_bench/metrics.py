"""The metrics that a trainer reports: their names, and their means between two rows of a table."""

from typing import Any

import torch
from torch import Tensor

KEYS = ("agent", "task", "seed", "step", "wall_clock", "training_return", "critic_bias")
"""Columns that say whose a row is, or that the harness fills itself."""
LONGEST = 100
"""The most characters of a name."""
FORMULA = "=+-@"
"""What a spreadsheet takes for a formula if a cell begins with it."""


class Means:
    """Averages each metric over the updates that gave it, for every seed.

    A metric is a row's only if an update since the row before gave it. What is not finite is
    averaged like any other value: one NaN among the updates makes the mean NaN, and it is written.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.updates: dict[str, int] = {}
        """How many updates gave each metric."""

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Count in what one update reported, [S] each."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.updates[name] = self.updates.get(name, 0) + 1

    def take(self) -> dict[str, list[float]]:
        """Return the means, of each seed, in the order of their first values; then begin anew."""
        means = {name: (s / self.updates[name]).tolist() for name, s in self.sums.items()}
        self.sums, self.updates = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` goes on from."""
        return {"sums": self.sums, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a saved state. Raises an error if that is none."""
        if state["sums"].keys() != state["updates"].keys() or not all(
            fault_of(name) is None and type(count) is int and count > 0
            for name, count in state["updates"].items()
        ):
            raise ValueError("metrics have sums and numbers of updates, each by name")
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.updates = dict(state["updates"])


def fault_of(name: object) -> str | None:
    """Say why a metric cannot have that name, the header of a column; None if it can."""
    if not isinstance(name, str):
        return "its name must be a string"
    if name in KEYS:
        return "that is a column that qsm_bench fills itself; give it another name"
    if not name or len(name) > LONGEST or not name.isprintable() or name != name.strip():
        return f"a name is 1 to {LONGEST} printable characters, without spaces around it"
    if name[0] in FORMULA:
        return f"a spreadsheet takes what begins with {name[0]!r} for a formula"
    return None
