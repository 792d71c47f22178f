"""The figures of a report: the agents' styles, and the folder that figures are saved in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qsm_bench.report import figures
from qsm_bench.report.document import Picture
from qsm_bench.visible import visible


@dataclass(frozen=True)
class Drawing:
    """The figures of one report. An agent has the same style in all of them."""

    folder: Path
    styles: dict[str, figures.AgentStyle]

    @classmethod
    def into(cls, report: Path, agents: Sequence[str]) -> "Drawing":
        """Create the folder of figures within the new folder ``report``."""
        folder = report / "figures"
        folder.mkdir()
        return cls(folder, figures.agent_styles(agents))

    def picture(
        self, name: str, chart: figures.Chart, data: pd.DataFrame, *, alt: str, caption: str
    ) -> Picture:
        """Save a figure, and return it as a block of the report."""
        svg, points = figures.save(chart, self.folder, name)
        points = [(x, y, visible(value)) for x, y, value in points]
        return Picture(name=name, alt=alt, caption=caption, svg=svg, data=data, points=points)
