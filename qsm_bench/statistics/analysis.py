"""The tables that a report shows, each computed once."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from qsm_bench.results import Results
from qsm_bench.statistics.estimates import aggregates, task_curves
from qsm_bench.statistics.selection import Comparison, learning_curves, select_runs
from qsm_bench.statistics.significance import pairs


@dataclass(frozen=True)
class Analysis:
    """All tables of an experiment, each computed once, when it is first wanted."""

    results: Results

    @cached_property
    def comparison(self) -> Comparison:
        """The runs to compare. Raises UserError if there are none."""
        return select_runs(self.results)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """See ``pairs``."""
        return pairs(self.comparison)

    @cached_property
    def aggregates(self) -> pd.DataFrame:
        """See ``aggregates``."""
        return aggregates(self.comparison)

    @cached_property
    def task_curves(self) -> pd.DataFrame:
        """See ``task_curves``: of every cell, at all its evaluations."""
        return task_curves(learning_curves(self.results))
