"""The report of an experiment: its results, how they were obtained, and what they do not show."""

from pathlib import Path

from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.counting import count
from qsm_bench.published import Published, published_scores
from qsm_bench.report import answer, pairs, runs, scores
from qsm_bench.report.document import Document, write_document
from qsm_bench.report.drawing import Drawing
from qsm_bench.report.folder import replacing
from qsm_bench.report.labels import without_shared_settings
from qsm_bench.results import Results
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.selection import agents_of, tasks_of

TERMS = (
    "A step is one decision of the agent. A run is one agent on one task with one seed. Its score "
    "is the mean return over the episodes of an evaluation: of the last one that all agents on the "
    "task have, not of the best one. In an evaluation, every action is one sample of the policy."
)


@refusing_wrong_types
def write_report(results: Results, folder: str | Path, published: Published | None = None) -> Path:
    """Write index.html, report.md, figures/ and data/ into ``folder``, replacing an older report.

    Where task and budget fit, the report shows published scores next to the results; by default
    those of this repository. The report is replaced as a whole: a reader of ``folder`` never sees
    a half-written one. The same results give the same files. Settings that all agents share leave
    their labels. Returns the path of index.html.

    Raises UserError if there is nothing to report yet, or if ``folder`` contains anything that no
    report wrote.
    """
    folder = Path(folder)
    results, shared = without_shared_settings(results)
    who = "All agents of this experiment" if results.elsewhere else "All agents"
    lead = [f"{who} were trained and evaluated under one protocol.", TERMS]
    if shared:
        lead.append(f"{who}: {', '.join(shared)}.")
    analysis = Analysis(results)
    said = answer.sentences(analysis)
    published = (published or published_scores()).within(results.budgets)
    agents, tasks = agents_of(results), tasks_of(results)
    with replacing(folder) as fresh:
        external = (curve.name for curve in results.curves_elsewhere)
        drawing = Drawing.into(fresh, list(dict.fromkeys([*agents, *external])))
        document = Document(
            title=f"{results.name}: {count(len(agents), 'agent')}, {count(len(tasks), 'task')}",
            lead=" ".join([*lead, *results.beside.sentences]),
            sections=[
                answer.answer(said, analysis, drawing),
                scores.learning_curves(analysis, drawing, published),
                runs.cost(analysis, drawing),
                pairs.settling(analysis),
                pairs.pairs(analysis, drawing),
                scores.aggregate_scores(analysis, drawing),
                scores.profiles(analysis, drawing),
                scores.every_run(analysis),
                runs.trainers(results, drawing),
                runs.what_ran(results),
                runs.what_is_missing(analysis),
                scores.limits(analysis),
            ],
        )
        write_document(document, fresh)
    return folder / "index.html"
