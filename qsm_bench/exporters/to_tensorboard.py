"""TensorBoard's event files: a run for each agent, task and seed, in <agent>/<task>/seed-<n>/.

Tags are eval/return, train/<metric> and diagnostics/<measure>; the global step is the step, and
the wall time is when it was reached. A file holds single-precision numbers, as all of
TensorBoard's do. The file of a run that goes on grows at its end.
"""

import io
from collections.abc import Iterator
from functools import partial

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from qsm_bench.exporters.folder import Output, digest
from qsm_bench.exporters.runs import Run, runs_of
from qsm_bench.results import Results
from qsm_bench.store import as_folder

VERSION = "brain.Event:2"


def outputs(results: Results) -> Iterator[Output]:
    """Yield the event file of each run."""
    for run in runs_of(results):
        folder = f"{as_folder(run.agent)}/{as_folder(run.task)}/seed-{run.seed}"
        source = digest(repr((run.began, run.points)))
        path = f"{folder}/events.out.tfevents"
        yield Output(path, source, partial(events, run), followed=True)


def events(run: Run) -> bytes:
    """Return an event file of a run."""
    began = run.began.timestamp()
    # Whatever a reader has of this run from another file ends where this one starts: at 0.
    start = SessionLog(status=SessionLog.START)
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=began, file_version=VERSION).SerializeToString())
    writer.write(Event(wall_time=began, session_log=start).SerializeToString())
    for point in run.points:
        values = [Summary.Value(tag=tag, simple_value=v) for tag, v in point.values.items()]
        event = Event(
            wall_time=began + point.seconds, step=point.step, summary=Summary(value=values)
        )
        writer.write(event.SerializeToString())
    return content.getvalue()
