"""Exports: each format read back by its own reader, again and again, while rows come and go."""

import json
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsm_bench.cli import app
from qsm_bench.errors import UserError
from qsm_bench.experiment import Experiment
from qsm_bench.exporters import FORMATS, export, folder, followed
from qsm_bench.exporters.runs import RETURN, runs_of
from qsm_bench.files import write_atomically
from qsm_bench.heartbeat import Heartbeat
from qsm_bench.job_folder import JobFolder
from qsm_bench.results import Results, load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import as_csv
from tests.qsm_bench.jobs import make_experiment
from tests.qsm_bench.synthetic import make_results, with_diagnostics

OTHERS = tuple(name for name in FORMATS if name != "record")
"""The formats of other programs; a record is our own, and test_record.py reads it."""
KEYS = ["agent", "task", "seed", "step"]
Curves = dict[tuple[str, str, int, str], dict[int, float]]
"""By agent, task, seed and tag: values by step."""


@pytest.fixture(autouse=True)
def _wandb_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    own = tmp_path_factory.mktemp("wandb")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(own))


def small(**changes: Any) -> Results:
    """Make two agents, one of which has its settings in its label, on two tasks."""
    return with_diagnostics(
        make_results(("qsm[alpha=10]", "td3"), ("walker-walk", "Hopper/v5"), seeds=2, **changes)
    )


def until(results: Results, step: int) -> Results:
    """The results as they were when the run had come to ``step``."""
    tables: dict[str, Any] = {
        name: (table := getattr(results, name))[table["step"] <= step].reset_index(drop=True)
        for name in ("evaluations", "training", "diagnostics")
    }
    return replace(results, **tables)


def expected(results: Results) -> Curves:
    """What an export must say, computed from the tables in another way than it is there."""
    curves: Curves = {}
    returns: dict[tuple[Any, ...], list[float]] = {}
    for row in results.evaluations.to_dict("records"):
        returns.setdefault(tuple(row[key] for key in KEYS), []).append(row["return"])
    for (agent, task, seed, step), values in returns.items():
        curves.setdefault((agent, task, seed, RETURN), {})[step] = float(np.mean(values))
    for prefix, table in (("train", results.training), ("diagnostics", results.diagnostics)):
        for row in table.to_dict("records"):
            for name in set(row) - set(KEYS):
                if not np.isnan(row[name]):
                    key = (row["agent"], row["task"], row["seed"], f"{prefix}/{name}")
                    curves.setdefault(key, {})[row["step"]] = row[name]
    return curves


def in_tensorboard(out: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: Curves = {}
    for seed in sorted(out.glob("*/*/seed-*")):
        events = EventAccumulator(str(seed), size_guidance={"scalars": 0}).Reload()
        agent = seed.parent.parent.name
        task = seed.parent.name.replace("%2F", "/")
        for tag in events.Tags()["scalars"]:
            scalars = events.Scalars(tag)
            key = (agent, task, int(seed.name.removeprefix("seed-")), tag)
            curves[key] = {scalar.step: scalar.value for scalar in scalars}
            assert len(curves[key]) == len(scalars), "a point stands twice"
    return curves


def records(file: Path) -> Iterator[Any]:
    """Read a file of W&B's: blocks of 32 KiB of chunks, each with checksum, length and place."""
    from wandb.proto import wandb_internal_pb2

    new_record: Any = vars(wandb_internal_pb2)["Record"]
    data, at, text = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, place = struct.unpack("<IHB", data[at : at + 7])
        text += data[at + 7 : at + 7 + length]
        at += 7 + length
        if place in (1, 4):  # a whole record, or the last part of one
            record = new_record()
            record.ParseFromString(text)
            yield record
            text = b""


def in_wandb(out: Path) -> Curves:
    curves: Curves = {}
    for file in out.glob("offline-run-*/run-*.wandb"):
        run: dict[str, Any] = {}
        for record in records(file):
            if record.HasField("run"):
                run = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert record.run.run_group == run["agent"]
            if record.HasField("history"):
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                for tag in [tag for tag in row if not tag.startswith("_")]:
                    key = (run["agent"], run["task"], run["seed"], tag)
                    assert row["_step"] not in curves.setdefault(key, {}), "a point stands twice"
                    curves[key][row["_step"]] = float(row[tag])
    return curves


def in_tdmpc2(out: Path) -> Curves:
    curves: Curves = {}
    for file in out.glob("*/*.csv"):
        table = pd.read_csv(file)
        assert list(table.columns) == ["step", "reward", "seed"]
        for row in table.to_dict("records"):
            key = (file.parent.name, file.stem.replace("%2F", "/"), row["seed"], RETURN)
            curves.setdefault(key, {})[row["step"]] = row["reward"]
    return curves


def in_parquet(out: Path) -> Curves:
    tables: dict[str, Any] = {name: pd.read_parquet(out / f"{name}.parquet") for name in TABLES}
    return expected(replace(make_results(), **tables))


TABLES = ("evaluations", "training", "diagnostics", "slices")
READERS = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "tdmpc2": in_tdmpc2,
    "parquet": in_parquet,
}


def assert_same(read: Curves, wanted: Curves, to: str) -> None:
    if to == "tdmpc2":
        wanted = {key: curve for key, curve in wanted.items() if key[-1] == RETURN}
    assert read.keys() == wanted.keys()
    for key, curve in wanted.items():
        assert read[key].keys() == curve.keys()
        steps = sorted(curve)
        np.testing.assert_allclose(
            [read[key][s] for s in steps], [curve[s] for s in steps], rtol=1e-6
        )


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    """What a folder holds: by path, the file's number and content, but for what only we read."""
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (folder.MARKER, folder.LOCK)
    }


every_format = pytest.mark.parametrize("to", OTHERS)


@every_format
def test_what_is_exported_is_what_its_own_reader_finds(to: str, tmp_path: Path) -> None:
    results = small()
    export(results, to, tmp_path)
    assert_same(READERS[to](tmp_path), expected(results), to)


@every_format
def test_a_second_export_writes_nothing(to: str, tmp_path: Path) -> None:
    results = small()
    export(results, to, tmp_path)
    before = files(tmp_path)
    assert before
    export(small(), to, tmp_path)
    assert files(tmp_path) == before


@every_format
def test_rows_that_come_are_added_and_rows_that_go_are_gone(to: str, tmp_path: Path) -> None:
    results = small()
    for step in (5_000, 15_000, 10_000, 20_000):
        export(until(results, step), to, tmp_path)
        assert_same(READERS[to](tmp_path), expected(until(results, step)), to)


def test_an_event_file_grows_at_its_end_and_is_another_file_once_rows_are_gone(
    tmp_path: Path,
) -> None:
    results = small()
    export(until(results, 10_000), "tensorboard", tmp_path)
    before = files(tmp_path)
    export(until(results, 15_000), "tensorboard", tmp_path)
    after = files(tmp_path)
    assert after.keys() == before.keys()
    for path, (number, content) in before.items():
        assert after[path][0] == number
        assert after[path][1].startswith(content)
        assert len(after[path][1]) > len(content)
    export(until(results, 5_000), "tensorboard", tmp_path)
    for name, (_, content) in files(tmp_path).items():
        assert (content == b"") == (name in before)
        assert name.endswith(".000001" if name in before else ".000002")
    export(make_results(("td3",), ("walker-walk",), seeds=1), "tensorboard", tmp_path)
    kept = "td3/walker-walk/seed-0/events.out.tfevents"
    assert files(tmp_path).keys() == {f"{kept}.{number:06d}" for number in (1, 2, 3)}


def test_a_reader_that_follows_an_event_file_sees_rows_go(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = small()
    export(until(results, 15_000), "tensorboard", tmp_path)
    seed = next(tmp_path.glob("*/*/seed-1"))
    events = EventAccumulator(str(seed), size_guidance={"scalars": 0}).Reload()
    assert [s.step for s in events.Scalars(RETURN)] == [5_000, 10_000, 15_000]
    export(until(results, 10_000), "tensorboard", tmp_path)
    assert [s.step for s in events.Reload().Scalars(RETURN)] == [5_000, 10_000]
    export(until(results, 20_000), "tensorboard", tmp_path)
    assert [s.step for s in events.Reload().Scalars(RETURN)] == [5_000, 10_000, 15_000, 20_000]


def test_a_run_of_wandb_is_written_anew_where_it_changed_alone(tmp_path: Path) -> None:
    results = small()
    export(results, "wandb", tmp_path)
    before = files(tmp_path)
    one = (results.training["agent"] == "td3") & (results.training["seed"] == 1)
    one &= results.training["task"] == "walker-walk"
    export(replace(results, training=results.training[~one]), "wandb", tmp_path)
    after = files(tmp_path)
    assert after.keys() == before.keys(), "a run keeps its id"
    assert sum(after[path] != before[path] for path in after) == 1


def test_nothing_of_the_environment_is_in_a_run_of_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    secret = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("SOME_TOKEN", secret[::-1])
    export(make_results(("td3",), ("walker-walk",), seeds=1), "wandb", tmp_path)
    ((_, content),) = files(tmp_path).values()
    for text in (secret, secret[::-1], str(tmp_path), f'"{platform.node()}"'):
        assert text.encode() not in content


def test_a_run_of_wandb_has_its_settings_and_protocol_and_says_that_it_failed(
    tmp_path: Path,
) -> None:
    results = make_results(("td3",), ("walker-walk",), seeds=2)
    results.cells[0]["diverged"] = {"1": 10_000}
    export(results, "wandb", tmp_path)
    outcomes = {}
    for file in tmp_path.glob("*/*.wandb"):
        found = list(records(file))
        (run,) = (r.run for r in found if r.HasField("run"))
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["settings"] == results.cells[0]["settings"]
        assert config["protocol"]["batch_size"] == 256
        assert run.project == "made-up"
        assert run.run_group == "td3"
        summary = {
            item.key or "/".join(item.nested_key): item.value_json
            for r in found
            if r.HasField("summary")
            for item in r.summary.update
        }
        (code,) = (r.exit.exit_code for r in found if r.HasField("exit"))
        outcomes[config["seed"]] = (json.loads(summary["outcome"]), code)
    assert outcomes == {0: ("finished", 0), 1: ("diverged at step 10000", 1)}


@pytest.mark.parametrize("empty", [False, True])
def test_parquet_keeps_every_table_and_its_types(tmp_path: Path, empty: bool) -> None:
    results = small()
    if empty:
        results = replace(results, **{n: getattr(results, n).iloc[:0] for n in TABLES})
    export(results, "parquet", tmp_path)
    for name in TABLES:
        read, wanted = pd.read_parquet(tmp_path / f"{name}.parquet"), getattr(results, name)
        pd.testing.assert_frame_equal(read, wanted, check_dtype=not empty)
        if empty:
            assert read["seed"].dtype == np.int64
            assert read["agent"].dtype == object
    cells = pd.read_parquet(tmp_path / "cells.parquet")
    assert cells["steps"].tolist() == [cell["steps"] for cell in results.cells]
    assert [list(seeds) for seeds in cells["seeds"]] == [[0, 1]] * 4
    assert [json.loads(s) for s in cells["settings"]] == [c["settings"] for c in results.cells]


def test_tdmpc2_counts_environment_steps(tmp_path: Path) -> None:
    results = make_results(("td3",), ("walker-walk",), seeds=1, evaluations=2)
    results.cells[0]["action_repeat"] = 2
    export(results, "tdmpc2", tmp_path)
    assert list(pd.read_csv(tmp_path / "td3" / "walker-walk.csv")["step"]) == [10_000, 20_000]


@pytest.mark.parametrize("to", ["tensorboard", "tdmpc2"])
def test_a_run_that_diverged_is_shown_to_its_end(to: str, tmp_path: Path) -> None:
    results = make_results(
        ("td3",), ("walker-walk",), returns=lambda a, t, seed, step: float("nan" if seed else step)
    )
    export(results, to, tmp_path)
    read = READERS[to](tmp_path)
    for seed, value in ((0, 20_000.0), (1, float("nan"))):
        assert read["td3", "walker-walk", seed, RETURN].keys() == {5_000, 10_000, 15_000, 20_000}
        np.testing.assert_equal(read["td3", "walker-walk", seed, RETURN][20_000], value)


def test_an_evaluation_that_is_just_being_written_is_no_point(tmp_path: Path) -> None:
    results = make_results(("td3",), ("walker-walk",), seeds=1, metrics=())
    results = replace(results, evaluations=results.evaluations.iloc[:-1])
    export(results, "tdmpc2", tmp_path)
    assert list(pd.read_csv(tmp_path / "td3" / "walker-walk.csv")["step"]) == [
        5_000,
        10_000,
        15_000,
    ]


values = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(history=st.lists(st.lists(values, max_size=6), min_size=1, max_size=4))
def test_any_history_of_exports_ends_as_a_first_one_of_its_last_results(
    history: list[list[float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was exported before: longer, shorter or other rows."""
    out = tmp_path_factory.mktemp("out")
    for returns in history:
        results = make_results(("td3",), ("walker-walk",), seeds=1, evaluations=8, episodes=1)
        table = results.evaluations.iloc[: len(returns)].assign(**{"return": returns})
        nothing = results.training.iloc[:0]
        results = replace(results, evaluations=table, training=nothing)
        for to in ("tensorboard", "tdmpc2"):
            export(results, to, out / to)
    steps = [5_000 * (k + 1) for k in range(len(history[-1]))]
    wanted = {("td3", "walker-walk", 0, RETURN): dict(zip(steps, history[-1], strict=True))}
    for to in ("tensorboard", "tdmpc2"):
        assert_same(READERS[to](out / to), wanted if steps else {}, to)


# The folder.


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that no export made") as error:
        export(small(), "tdmpc2", tmp_path)
    assert str(tmp_path) in one_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_files_of_somebody_else_among_ours_stay_and_one_in_the_way_is_refused(
    tmp_path: Path,
) -> None:
    export(make_results(("td3",), ("walker-walk",)), "tdmpc2", tmp_path)
    (tmp_path / "td3" / "notes.txt").write_text("mine")
    export(make_results(("sac",), ("walker-walk",)), "tdmpc2", tmp_path)
    assert files(tmp_path).keys() == {"td3/notes.txt", "sac/walker-walk.csv"}
    (tmp_path / "td3" / "walker-walk.csv").write_text("mine")
    with pytest.raises(UserError, match="in the export's way"):
        export(make_results(("td3",), ("walker-walk",)), "tdmpc2", tmp_path)
    assert (tmp_path / "td3" / "walker-walk.csv").read_text() == "mine"
    assert (tmp_path / "sac" / "walker-walk.csv").exists()


def test_another_experiment_or_format_is_refused(tmp_path: Path) -> None:
    export(small(), "tdmpc2", tmp_path)
    for results, to in ((small(name="other"), "tdmpc2"), (small(), "parquet")):
        with pytest.raises(UserError, match="holds the export of made-up to tdmpc2"):
            export(results, to, tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        export(small(), "tdmpc2", tmp_path / "out")
    export(small(), "tdmpc2", tmp_path / "own")
    kept = (tmp_path / "own" / "td3").rename(tmp_path / "moved")
    (tmp_path / "own" / "td3").symlink_to(kept)
    before = files(kept)
    for results in (until(small(), 5_000), make_results(("sac",))):
        with pytest.raises(UserError, match="is a link"):
            export(results, "tdmpc2", tmp_path / "own")
    assert files(kept) == before
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("path", ["../mine.txt", "/etc/hostname", "a/../../mine.txt", "a//b", ""])
def test_a_marker_that_lists_what_lies_outside_is_refused(tmp_path: Path, path: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    mine.write_text("mine")
    export(small(), "tdmpc2", out)
    marker = json.loads((out / folder.MARKER).read_text())
    marker["files"][path] = {"output": "x"}
    (out / folder.MARKER).write_text(json.dumps(marker))
    with pytest.raises(UserError, match="is damaged") as error:
        export(small(), "tdmpc2", out)
    one_line(error)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("to", ["tensorboard", "tdmpc2", "parquet"])
def test_what_was_cut_off_or_damaged_is_mended_by_the_next_export(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a kill, at any write: one line, and the next export has all."""
    results, whole = small(), tmp_path / "whole"
    export(results, to, whole)
    wanted = {content for _, content in files(whole).values()}
    write, left = write_atomically, 0

    def full(file: Path, text: str | bytes, *, sync: bool = False) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(file))
        write(file, text, sync=sync)

    for room in range(len(wanted) + 2):
        out, left = tmp_path / str(room), room
        monkeypatch.setattr(folder, "write_atomically", full)
        with pytest.raises(UserError, match="cannot be written: No space left") as error:
            export(results, to, out)
        one_line(error)
        monkeypatch.setattr(folder, "write_atomically", write)
        export(results, to, out)
        assert {content for _, content in files(out).values()} == wanted
    for path in files(out):
        (out / path).write_bytes((out / path).read_bytes()[:-3])
    export(results, to, out)
    assert {content for _, content in files(out).values()} == wanted


# The command.


def on_disk(root: Path) -> tuple[ExperimentStore, Experiment, JobFolder]:
    """Lay out an experiment of one cell, which nobody runs."""
    experiment = make_experiment(steps=80)
    store = ExperimentStore(root, experiment.name)
    (cell,) = store.prepare(experiment, "python -m qsm_bench run")
    write_rows(cell, [])
    return store, experiment, cell


def write_rows(cell: JobFolder, steps: list[int], status: str = "interrupted") -> None:
    """Let the cell have been evaluated at ``steps``."""
    rows = [
        {"seed": seed, "step": step, "episode": k, "return": step + seed, "length": 9}
        for step in steps
        for seed in (0, 1)
        for k in (0, 1)
    ]
    if rows:
        cell.evaluations_file.write_text(as_csv(rows))
    set_status(cell, status)


def set_status(cell: JobFolder, status: str) -> None:
    """Write the cell's manifest, if it is to say anything new."""
    manifest = cell.read_manifest()
    if manifest.status != status:
        cell.write_manifest(manifest.model_copy(update={"status": status}))


def command(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_the_command_writes_into_exports_under_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, cell = on_disk(tmp_path / "results")
    write_rows(cell, [20, 40])
    monkeypatch.chdir(tmp_path)
    command("export", "there", "--to", "tdmpc2", "--results", tmp_path / "results")
    (read,) = Path("exports/there/tdmpc2").glob("*/four-goals.csv")
    assert list(pd.read_csv(read)["step"]) == [20, 40, 20, 40]
    assert capsys.readouterr().out == "exports/there/tdmpc2\n"


def test_following_exports_what_comes_and_goes_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cell = on_disk(tmp_path)
    out = tmp_path / "out"
    history = iter([[20], [20, 40], [20, 40], [20], [20, 40, 60]])
    seen: list[list[int]] = []

    def look(_: float) -> None:
        """In place of the wait: what the last look has exported; and the run goes on."""
        seen.append(sorted({step for curve in in_tensorboard(out).values() for step in curve}))
        steps = next(history, None)
        write_rows(
            cell,
            [20, 40, 60, 80] if steps is None else steps,
            "running" if steps else "interrupted",
        )

    monkeypatch.setattr(time, "sleep", look)
    with Heartbeat(cell.progress_file):
        write_rows(cell, [], "running")
        command(
            "export",
            "there",
            "--to",
            "tensorboard",
            "--out",
            out,
            "--follow",
            "--results",
            tmp_path,
        )
    assert seen == [[], [20], [20, 40], [20, 40], [20], [20, 40, 60]]
    assert {tuple(curve) for curve in in_tensorboard(out).values()} == {(20, 40, 60, 80)}


def test_a_look_at_files_that_have_not_changed_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, cell = on_disk(tmp_path)
    looks = iter(["running", "running", "interrupted"])
    monkeypatch.setattr(time, "sleep", lambda _: set_status(cell, next(looks)))
    with Heartbeat(cell.progress_file):
        write_rows(cell, [20], "running")
        assert [r.cells[0]["status"] for r in followed(store)] == ["running", "interrupted"]


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(tmp_path)
    results = load_results(tmp_path, "there")
    with pytest.raises(UserError, match="--to 'tensorbord' is not right: did you mean"):
        export(results, "tensorbord", tmp_path / "out")
    for to, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("parquet", "pyarrow")):
        for module in [package, *sys.modules]:
            if module.split(".")[0] == package:
                monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"qsm_bench.exporters.to_{to}", raising=False)
        with pytest.raises(UserError, match=rf"pip install 'qsm_bench\[{to}\]'") as error:
            export(results, to, tmp_path / "out")
        one_line(error)
    assert not (tmp_path / "out").exists()


def test_a_damaged_cell_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, cell = on_disk(tmp_path)
    write_rows(cell, [20])
    cell.evaluations_file.write_text("seed,step\nx,y\n")
    command("export", "there", "--to", "tdmpc2", "--out", tmp_path / "out", "--results", tmp_path)
    assert capsys.readouterr().err.startswith("left out: td3")
    assert files(tmp_path / "out") == {}


def test_runs_are_in_the_order_of_the_experiment() -> None:
    runs = runs_of(small())
    assert [(r.task, r.agent, r.seed) for r in runs] == [
        (task, agent, seed)
        for task in ("walker-walk", "Hopper/v5")
        for agent in ("qsm[alpha=10]", "td3")
        for seed in (0, 1)
    ]
    assert runs[0].began.isoformat() == "2026-01-02T03:04:05+00:00"


def test_a_run_is_judged_and_dated_by_its_own_group_of_seeds() -> None:
    results = make_results(("td3",), ("walker-walk",), seeds=2)
    (cell,) = results.cells
    failed = {"status": "failed", "reason": "no memory", "step": 20_000, "log_tail": []}
    cell["groups"] = [cell | {"seeds": [0]}, {"seeds": [1], **failed}]
    (first,) = cell["stretches"]
    later = first | {"started": "2026-02-02T03:04:05+00:00", "seeds": [1]}
    cell["stretches"] = [first | {"seeds": [0]}, later]
    runs = runs_of(results)
    assert [run.fault for run in runs] == [None, "failed: no memory"]
    assert [run.began.month for run in runs] == [1, 2]
