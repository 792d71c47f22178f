"""The tables that a job writes as it goes: evaluations, training and diagnostics."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsm_bench.evaluation import Episodes
from qsm_bench.files import write_atomically
from qsm_bench.job_folder import JobFolder
from qsm_bench.tables import CsvLog, as_csv


class JobTables:
    """A job's tables, opened for more rows; a row is of one seed at one step."""

    def __init__(self, folder: JobFolder, seeds: Sequence[int], state: Mapping[str, Any]) -> None:
        """Cut the tables back to where the checkpoint ``state`` has them; empty without one.

        Raises UserError if they do not fit it.
        """
        # Up to November 2026 a table's columns were not noted: they are those of its header.
        checksums, columns = state.get("checksums", {}), state.get("columns", {})

        def table(name: str, file: Path) -> CsvLog:
            size = state.get(f"{name}_size", 0)
            return CsvLog(file, size, checksums.get(name), columns.get(name))

        self.seeds = seeds
        self.evaluations = table("evaluations", folder.evaluations_file)
        self.training = table("training", folder.training_file)
        self.diagnostics = table("diagnostics", folder.diagnostics_file)
        self.slices_file = folder.slices_file

    @property
    def _logs(self) -> dict[str, CsvLog]:
        return {
            "evaluations": self.evaluations,
            "training": self.training,
            "diagnostics": self.diagnostics,
        }

    def add_evaluation(self, step: int, played: Episodes) -> None:
        """Write the returns and lengths of an evaluation's episodes."""
        returns = played.returns
        self.evaluations.append(
            {
                "seed": seed,
                "step": step,
                "episode": episode,
                "return": float(returns[row, episode]),
                "length": int(played.length[row, episode]),
            }
            for row, seed in enumerate(self.seeds)
            for episode in range(returns.shape[1])
        )

    def add_metrics(
        self,
        step: int,
        seconds: float,
        finished_returns: Sequence[Sequence[float]],
        means: Mapping[str, Sequence[float]],
        running: NDArray[np.bool_],
    ) -> None:
        """Write a row of training.csv for each seed that is ``running`` [S].

        ``finished_returns`` are of the training episodes that ended since the row before, and
        ``means`` the metrics' since then, each of every seed.
        """
        self.training.append(
            {
                "seed": seed,
                "step": step,
                "wall_clock": round(seconds, 2),
                "training_return": float(np.mean(finished)) if finished else "",
                **{name: values[row] for name, values in means.items()},
            }
            for row, (seed, finished) in enumerate(zip(self.seeds, finished_returns, strict=True))
            if running[row]
        )

    def add_diagnostics(
        self,
        measures: Iterable[Mapping[str, Any]],
        slices: Iterable[Mapping[str, Any]],
        running: NDArray[np.bool_],
    ) -> None:
        """Write rows of diagnostics.csv, and of slices.csv anew, of the seeds that are ``running``.

        There may be none: an agent need not show anything.
        """
        seeds = {seed for seed, runs in zip(self.seeds, running, strict=True) if runs}
        kept = [row for row in measures if row["seed"] in seeds]
        drawn = [row for row in slices if row["seed"] in seeds]
        if kept:
            self.diagnostics.append(kept)
        if drawn:
            write_atomically(self.slices_file, as_csv(drawn))

    def sync(self) -> None:
        """Wait until every row is on the disk: before anything counts on it."""
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.close()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint notes of the tables: their sizes, checksums and columns."""
        logs = self._logs
        return {
            **{f"{name}_size": log.size for name, log in logs.items()},
            "checksums": {name: log.checksum for name, log in logs.items()},
            "columns": {name: list(log.columns) for name, log in logs.items()},
        }
