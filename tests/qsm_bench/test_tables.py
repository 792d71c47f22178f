"""A table that grows: values under their names, and the same bytes however it was cut back."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench.errors import UserError
from qsm_bench.manifest import Manifest
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import CsvLog, narrowed, widened, without_uncertain
from tests.qsm_bench.jobs import make_job

NAMES = st.sampled_from(["loss", "q", "a,b", 'say "x"', "é", "seeds", "l" * 50, "x y"])
ROWS = st.lists(
    st.dictionaries(NAMES, st.floats() | st.integers(), max_size=5), min_size=1, max_size=12
)


def keyed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"seed": 0, "step": step, **row} for step, row in enumerate(rows)]


def written(file: Path, rows: list[dict[str, Any]]) -> bytes:
    log = CsvLog(file)
    for row in rows:
        log.append([row])
    log.close()
    return file.read_bytes()


@given(ROWS)
def test_each_value_stands_under_its_name_and_nothing_else_does(
    rows: list[dict[str, Any]],
) -> None:
    with TemporaryDirectory() as folder:
        text = written(Path(folder, "t.csv"), keyed(rows)).decode()
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    for row, found in zip(keyed(rows), read, strict=True):
        assert None not in found
        assert {k: v for k, v in found.items() if v} == {k: str(v) for k, v in row.items()}


@given(ROWS, st.data())
def test_cut_back_anywhere_and_resumed_it_is_the_same_bytes(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Each cut is a checkpoint, rows after it, a line that was cut off, and a resume."""
    rows = keyed(rows)
    with TemporaryDirectory() as folder:
        whole = written(Path(folder, "whole.csv"), rows)
        file = Path(folder, "cut.csv")
        log, done = CsvLog(file), 0
        for _ in range(data.draw(st.integers(1, 3))):
            upto = data.draw(st.integers(done, len(rows)))
            ahead = data.draw(st.integers(upto, len(rows)))
            for row in rows[done:upto]:
                log.append([row])
            known = log.size, log.checksum, list(log.columns)
            for row in rows[upto:ahead]:
                log.append([row])
            log.close()
            with file.open("ab") as torn:
                torn.write(data.draw(st.sampled_from([b"", b"0,1", b"0,1,nan,", b"\xff,"])))
            log, done = CsvLog(file, *known), upto
        for row in rows[done:]:
            log.append([row])
        log.close()
        assert file.read_bytes() == whole


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.binary(max_size=50))
def test_narrowing_undoes_widening(names: list[str], line: bytes) -> None:
    line = bytes(byte for byte in line if byte not in b'\r\n"')
    table = b"seed,step\n0,1\n" + line + b"\n"
    assert narrowed(widened(table, names), len(names)) == table


def test_a_table_with_other_columns_than_its_checkpoint_is_refused_and_left(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    written(file, [{"seed": 0, "step": 1, "loss": 2.0}])
    before = file.read_bytes()
    for columns, message in (
        (["seed", "step", "q"], "other columns"),
        (["seed", "step", "loss", "q"], "other columns"),
        (["seed", "step"], "fewer rows"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            CsvLog(file, len(before), None, columns)
        assert str(file) in str(refused.value)
        assert file.read_bytes() == before


def test_a_table_of_an_old_checkpoint_has_the_columns_of_its_header(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    before = written(file, [{"seed": 0, "step": 1, "loss": 2.0}])
    log = CsvLog(file, len(before))
    log.append([{"seed": 0, "step": 2, "q": 1.0, "loss": 3.0}])
    log.close()
    assert file.read_text() == "seed,step,loss,q\n0,1,2.0,\n0,2,3.0,1.0\n"


OLD = (
    "seed,step,wall_clock,training_return,bc_loss,critic_loss\n"
    "0,10,0.1,,3.0,7.0\n1,10,0.1,-4.0,3.0,7.0\n"
    "0,20,0.2,-5.0,7.0\n1,20,0.2,,7.0\n"
    "0,30,0.3,,7.0,9.0\n1,30,0.3,,7.0,9.0,1.0\n"
)
"""As 59885ad wrote them: the last rows' columns are critic_loss and actor_loss."""


def test_of_an_old_ragged_table_only_what_is_certain_is_read() -> None:
    text, blank = without_uncertain(OLD.encode(), 4)
    assert blank == 4
    assert text.decode() == "".join(
        [
            *(line + "\n" for line in OLD.splitlines()[:3]),
            "0,20,0.2,-5.0,,\n1,20,0.2,,,\n0,30,0.3,,,\n1,30,0.3,,,\n",
        ]
    )
    sound = "\n".join(OLD.splitlines()[:3]) + "\n"
    assert without_uncertain(sound.encode(), 4) == (sound.encode(), 0)


def test_an_old_ragged_table_is_loaded_and_said_to_be(tmp_path: Path) -> None:
    store = ExperimentStore(tmp_path, "old")
    job = make_job()
    folder = store.job_folder(job.agent, job.task, job.seeds)
    folder.write_manifest(Manifest(job=job, status="running"))
    asked = {"name": "old", "agents": [job.agent], "tasks": [job.task], "steps": 45}
    store.file.write_text(json.dumps(asked))
    folder.training_file.write_text(OLD)
    results = load_results(tmp_path, "old")
    assert list(results.training["step"]) == [10, 10, 20, 20, 30, 30]
    assert list(results.training["bc_loss"].dropna()) == [3.0, 3.0]
    (note,) = results.notes
    assert note.startswith(f"{folder.training_file}: the metrics in its last 4 rows")
