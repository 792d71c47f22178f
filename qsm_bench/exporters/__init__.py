"""Results in the forms that other programs read: each is a function of ``Results`` alone."""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

from qsm_bench.errors import UserError, did_you_mean
from qsm_bench.exporters.folder import Output, update
from qsm_bench.progress import FOLLOW_SECONDS, at_work
from qsm_bench.record import LONGEST_WHO
from qsm_bench.results import Results, load_results
from qsm_bench.store import ExperimentStore

FORMATS = ("tensorboard", "wandb", "tdmpc2", "parquet", "record")


def export(
    results: Results, to: str, folder: str | Path | None = None, *, who: str | None = None
) -> Path:
    """Write an experiment into ``folder``, by default exports/<name>/<to>, in the format ``to``.

    ``who`` publishes it, where it is a record.

    What an earlier export wrote there is brought up to date: the folder then holds what these
    results say and nothing else of ours, so that doing it twice changes nothing. Returns the
    folder. Raises UserError for an unknown format, one whose package is missing, a record that
    nobody publishes, or a folder that holds something else.
    """
    outputs = outputs_in(to)
    if who is not None and not (who.strip() and len(who) <= LONGEST_WHO):
        raise UserError(
            f"--who {who!r:.60}: give the name of who publishes it, up to {LONGEST_WHO} characters"
        )
    if (to == "record") != (who is not None):
        needed = "needs --who, the name of who publishes it" if who is None else "has no --who"
        raise UserError(f"--to {to} {needed}")
    if who is not None:
        outputs = partial(outputs, who=who)
    target = Path("exports", results.name, to) if folder is None else Path(folder)
    update(target.absolute(), results.name, to, outputs(results))
    return target


def outputs_in(to: str) -> Callable[..., Iterable[Output]]:
    """Return the function that says which files an experiment is in a format."""
    if to not in FORMATS:
        raise UserError(f"--to {to!r} is not right: {did_you_mean(to, FORMATS)}")
    try:
        module = importlib.import_module(f"qsm_bench.exporters.to_{to}")
    except ImportError as error:
        raise UserError(
            f"--to {to} needs {error.name or to}, which is not installed: "
            f"pip install 'qsm_bench[{to}]'"
        ) from error
    return cast("Callable[..., Iterable[Output]]", module.outputs)


def followed(store: ExperimentStore) -> Iterator[Results]:
    """Yield an experiment as it is, and again whenever its files have changed.

    It ends when no job is at work any more; what is yielded last is all there is then. Raises
    UserError as ``load_results`` does.
    """
    seen = None
    while True:
        working = at_work(store)  # before the files are looked at, which nobody changes after
        if (now := _stamps(store)) != seen:
            yield load_results(store.folder.parent, store.folder.name)
            seen = now
        if not working:
            return
        time.sleep(FOLLOW_SECONDS)


def _stamps(store: ExperimentStore) -> list[tuple[str, int, int]]:
    """When each of the experiment's files was last written, and its size."""
    stamps = []
    for file in (f for job in store.job_folders() for f in (job.manifest_file, *job.tables)):
        with suppress(OSError):
            status = file.lstat()
            stamps.append((str(file), status.st_mtime_ns, status.st_size))
    return stamps
