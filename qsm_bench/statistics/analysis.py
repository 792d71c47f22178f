"""The tables that a report shows, each computed once."""

from dataclasses import dataclass
from functools import cached_property
from math import comb

import pandas as pd

from qsm_bench.results import Results
from qsm_bench.stages import Stages, read_stages
from qsm_bench.statistics.estimates import aggregates, task_curves
from qsm_bench.statistics.ranking import Ranking, ranking
from qsm_bench.statistics.selection import (
    CellKey,
    Comparison,
    Curves,
    external_curves,
    learning_curves,
    select_runs,
)
from qsm_bench.statistics.settling import (
    StagesToCome,
    most_tried,
    seconds_per_seed,
    settling,
)
from qsm_bench.statistics.significance import compare_all_pairs
from qsm_bench.statistics.stages import Look, looks_at, staged_pairs, up_to


@dataclass(frozen=True)
class Analysis:
    """All tables of an experiment. Each is computed once, when it is first used."""

    results: Results

    @cached_property
    def comparison(self) -> Comparison:
        """The runs to compare. Raises UserError if there are none."""
        return select_runs(self._used)

    @cached_property
    def _used(self) -> Results:
        """The results without the seeds of a stage that has not ended."""
        if self.stages is None or not self.looks:
            return self.results
        return up_to(self.results, self.stages.seeds_until(self.looks[-1].number))

    @cached_property
    def stages(self) -> Stages | None:
        """The plan of an experiment in stages; None of another one."""
        return read_stages(self.results.experiment)

    @cached_property
    def looks(self) -> list[Look]:
        """The tests of the stages that have ended; empty without stages."""
        return looks_at(self.results, self.stages) if self.stages else []

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every pair of agents, tested: see ``compare_all_pairs`` for the columns.

        In an experiment with stages, see ``staged_pairs``.
        """
        if self.stages:
            return staged_pairs(self.comparison, self.stages, self.looks)
        return compare_all_pairs(self.comparison)

    @cached_property
    def aggregates(self) -> pd.DataFrame:
        """Aggregated scores of each agent: see ``estimates.aggregates`` for the columns."""
        return aggregates(self.comparison)

    @cached_property
    def ranking(self) -> Ranking:
        """The agents, best first, and those that cannot be told apart."""
        return ranking(self.comparison, self.aggregates, self.pairs)

    @cached_property
    def settling(self) -> pd.DataFrame:
        """What each open pair needs for a verdict: see ``settling.settling`` for the columns."""
        seconds = seconds_per_seed(self.results)
        return settling(
            self.comparison,
            self.pairs,
            seconds,
            self.ranking.agents,
            self.results.elsewhere,
            self.stages_to_come,
        )

    @property
    def stages_to_come(self) -> StagesToCome | None:
        """The stages that have not been tested yet; None in an experiment without stages."""
        if self.stages is None:
            return None
        still_open = len(self.looks[-1].open) if self.looks else comb(len(self.stages.agents), 2)
        plan = zip(self.stages.counts, self.stages.shares, strict=True)
        return [(n, share / max(1, still_open)) for n, share in [*plan][len(self.looks) :]]

    @property
    def most_seeds(self) -> int:
        """The most seeds for which ``settling`` looks; 0 if the last stage was tested."""
        if self.stages_to_come is None:
            return most_tried(self.pairs)
        return max((count for count, _ in self.stages_to_come), default=0)

    @cached_property
    def cell_curves(self) -> dict[CellKey, Curves]:
        """The complete evaluations of every cell that has any, seed by seed."""
        return learning_curves(self._used)

    @cached_property
    def task_curves(self) -> pd.DataFrame:
        """The learning curve of every cell: see ``estimates.task_curves`` for the columns."""
        return task_curves(self.cell_curves)

    @cached_property
    def external_curves(self) -> pd.DataFrame:
        """Every curve from elsewhere: see ``estimates.task_curves`` for the columns."""
        return task_curves(external_curves(self.results))

    @cached_property
    def all_curves(self) -> pd.DataFrame:
        """The curves of cells and the imported ones in one table."""
        tables = [t for t in (self.task_curves, self.external_curves) if not t.empty]
        return pd.concat(tables, ignore_index=True) if tables else self.task_curves
