"""What sections are drawn with: the agents' styles, the folder of figures, numbers as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qsm_bench.report import figures
from qsm_bench.report.document import Picture

NONE = "\N{EM DASH}"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Drawing:
    """One report's figures: an agent keeps its style in all of them."""

    folder: Path
    styles: dict[str, figures.AgentStyle]

    @classmethod
    def into(cls, report: Path, agents: Sequence[str]) -> "Drawing":
        """Draw for the report in the new folder ``report``."""
        folder = report / "figures"
        folder.mkdir(parents=True)
        return cls(folder, figures.agent_styles(agents))

    def picture(
        self, name: str, figure: Figure, data: pd.DataFrame, *, alt: str, caption: str
    ) -> Picture:
        """Save a figure and make a block of it."""
        svg = figures.save(figure, self.folder, name)
        return Picture(name=name, alt=alt, caption=caption, svg=svg, data=data)


def number(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; whole parts are never cut."""
    if not np.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """``value [low, high]``; without bounds, the value alone."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def count(number_of: int, what: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number_of:,} {what}" + ("" if number_of == 1 else "s")
