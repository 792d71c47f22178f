"""The report of an experiment: what its results say, how they came about, what they cannot say."""

import tempfile
from pathlib import Path

from qsm_bench.errors import UserError
from qsm_bench.report import runs, scores
from qsm_bench.report.document import Document, write_document
from qsm_bench.report.drawing import Drawing
from qsm_bench.statistics import agents_of, compare, tasks_of
from qsm_bench.store import Results


def write_report(results: Results, folder: Path) -> Path:
    """Write index.html, report.md, figures/ and data/ into ``folder``, replacing an older report.

    A reader of ``folder`` sees the old report or the new one, whole. The same results give the
    same files. Returns the page. Raises UserError if there is nothing to report yet, or if
    ``folder`` holds something that is no report.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "index.html").exists():
        raise UserError(f"{folder} holds something that is not a report: move it away")
    comparison = compare(results)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        fresh = Path(temporary) / "new"
        drawing = Drawing.into(fresh, agents_of(results))
        sections = [
            scores.answer(comparison, results),
            scores.aggregate_scores(comparison, drawing),
            scores.profiles(comparison, drawing),
            scores.improvement(comparison, drawing),
            scores.sample_efficiency(comparison, results, drawing),
            runs.cost(results, drawing),
            scores.every_run(comparison, drawing),
            runs.trainers(results, drawing),
            runs.what_ran(results),
            runs.what_is_missing(comparison, results),
            scores.limits(comparison, results),
        ]
        document = Document(
            title=f"{results.name}: {len(agents_of(results))} agents, {_count(results)}",
            lead=(
                "Trainers compared under one protocol. A step is one decision of the agent; a "
                "run's score is its mean return over the episodes of its last evaluation, one "
                "sample of the policy a decision, never of its best evaluation."
            ),
            sections=[section for section in sections if section.blocks],
        )
        write_document(document, fresh)
        _swap(fresh, folder, Path(temporary) / "old")
    return folder / "index.html"


def _count(results: Results) -> str:
    tasks = len(tasks_of(results))
    return f"{tasks} task{'s' if tasks != 1 else ''}"


def _swap(fresh: Path, folder: Path, aside: Path) -> None:
    if folder.exists():
        folder.replace(aside)
    fresh.replace(folder)
