"""Any file of a results folder may be anything: one line names it, and the rest goes on."""

import contextlib
import copy
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from qsm_bench import cli, worker
from qsm_bench.executors import processes
from qsm_bench.heartbeat import start_of, this_machine
from qsm_bench.job_folder import JobFolder
from qsm_bench.process import REFUSED
from qsm_bench.statistics import estimates
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import EVAL_EVERY, STEPS, WARMUP, after, make_experiment

SOUND, STRANGE = "td3[hidden_sizes=[8]]", "sac[hidden_sizes=[8]]"
TASK = "four-goals"
ASKED: dict[str, Any] = {"seeds": 2, "steps": STEPS, "warmup_steps": WARMUP, "batch_size": 8}
ASKED |= {"eval_every": EVAL_EVERY, "eval_episodes": 2}


class Never:
    """A request to stop that comes at a call, or never; no signal is touched."""

    def __init__(self, at: int = 10**9) -> None:
        self.asked = after(at)

    def __call__(self) -> bool:
        return self.asked()

    def take_signals(self) -> None:
        pass


def work(job_folder: JobFolder, stop: Never | None = None) -> int:
    """Do in this process what a job's own process does; return its exit status."""
    try:
        job_folder.refuse_foreign(writing=True)
        worker._run(job_folder, 10, "test", stop or Never(), None)  # type: ignore[arg-type]
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(estimates, "REPLICATIONS", 40)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an experiment of a finished and an interrupted job, with real jobs."""
    root = tmp_path_factory.mktemp("made")
    experiment = make_experiment(f"{SOUND},{STRANGE}", (TASK,), **ASKED)
    sound, strange = ExperimentStore(root, "there").prepare(experiment, "test")
    assert work(sound) == 0
    assert work(strange, Never(42)) != 0
    assert strange.read_manifest().status == "interrupted"
    return root


class World:
    """A copy of the results, and what lies around them."""

    def __init__(self, folder: Path, made: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.reports = folder / "reports"
        self.outside = folder / "outside.txt"
        self.outside.write_text("nobody's business")
        self.made = made
        self.store = ExperimentStore(self.results, "there")
        self.cell = self.store.job_folder(STRANGE, TASK, (0, 1))
        self.renew()

    def renew(self) -> None:
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.copytree(self.made, self.results)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command in this process; return its exit status, standard output and error."""
        with (
            capturing() as told,
            patch.object(sys, "argv", ["qsm_bench", *arguments, f"--results={self.results}"]),
            patch.object(processes, "run_locally", run_here),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
        out, err = told
        status = ended.value.code
        return int(str(status or 0)), out.getvalue(), err.getvalue()

    def held(self, file: Path, *commands: str) -> dict[str, str]:
        """Return what each command prints, and check what is right wherever ``file`` is damaged."""
        return {name: self._held(file, name) for name in commands or COMMANDS}

    def _held(self, file: Path, name: str) -> str:
        before = self.outside.read_text(), sorted(self.folder.iterdir())
        status, out, err = self.call(name, *self.arguments(name))
        told = f"{name} of {file.name}: status {status}\n{out}\n{err}"
        assert status in (0, 1, 2), told
        assert "this is a bug" not in err, told
        if name != "run":  # a job's own log, which here is standard error, has tracebacks
            assert "Traceback" not in err, told
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", out + err), told
        if status == 2:
            assert err.startswith("error: "), told
            assert err.count("\n") == 1, told
        damaged = next((line for line in out.splitlines() if f"{TASK}: damaged" in line), "")
        for line in (out + err).splitlines():
            assert not re.search("delete .*delete ", line), told
        for text in (err if status == 2 else "", damaged):
            if text:
                assert str(file) in text or str(file.parent) in text, told
        if name == "status" and status == 0 and file != self.store.file:
            assert f"{SOUND} on {TASK}: finished, step {STEPS}/{STEPS}" in out, told
        left = self.outside.read_text(), sorted(self.folder.iterdir())
        assert left[0] == before[0], told
        assert set(left[1]) - set(before[1]) <= {self.reports}, told
        return out + err

    def arguments(self, name: str) -> Sequence[str]:
        asked = [f"--{key.replace('_', '-')}={value}" for key, value in ASKED.items()]
        asked.append("--device=cpu")
        return {
            "status": ["there"],
            "report": ["there", f"--reports={self.reports}"],
            "compare": ["there", "there", f"--reports={self.reports}"],
            "evaluate": ["there", f"--agent={STRANGE}", f"--task={TASK}", "--episodes=1"],
            "run": [f"--agents={SOUND},{STRANGE}", f"--tasks={TASK}", "--name=there", *asked],
        }[name]


COMMANDS = ("status", "report", "compare", "evaluate")


@contextlib.contextmanager
def capturing() -> Iterator[tuple[Any, Any]]:
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def run_here(job_folders: Sequence[JobFolder], *_: Any, **__: Any) -> dict[JobFolder, str]:
    """Run every job in this process, in place of the executor."""
    unfinished = {}
    for job_folder in job_folders:
        try:
            status = work(job_folder)
        except Exception as error:
            unfinished[job_folder] = str(error)
            continue
        if status:
            reason = job_folder.read_manifest().reason or ""
            assert status == REFUSED, reason
            assert "\n" not in reason
            unfinished[job_folder] = reason
    return unfinished


@pytest.fixture
def world(tmp_path: Path, made: Path) -> World:
    return World(tmp_path, made)


VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "fraction": "0.5",
    "huge": "1" + "0" * 400,
    "endless": "1e999",
    "nan": "NaN",
    "empty": '""',
    "text": '"x"',
    "control": '"\\u001b[31m\\n\\u0000"',
    "long": '"' + "y" * 100_000 + '"',
    "surrogate": '"\\ud800"',
    "list": "[]",
    "object": "{}",
    "nested": "[[1, [2, {}]]]",
    "strange": '{"a": {"b": [null]}}',
    "digits": '{"1": -1}',
}
OFTEN = ("null", "huge", "control", "strange")
"""The values that are tried in every run of the tests."""
DEEP = 100_000
TEXTS: dict[str, bytes] = {
    **{f"only {name}": text.encode() for name, text in VALUES.items()},
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "NUL": b"\0" * 1000,
    "invalid UTF-8": b'{"a": "\xff\xfe"}',
    "nothing": b"",
    "no JSON": b"\x1b[31mhello",
}
JSON_FILES = ("experiment.json", "manifest.json", "progress.json", ".holder")


def places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything within a JSON content."""
    keys: Any = []
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = range(len(content))[:1]
    for key in keys:
        yield (*before, key)
        yield from places(content[key], (*before, key))


def put(content: Any, where: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    within = content
    for key in where[:-1]:
        within = within[key]
    within[where[-1]] = value
    return content


def json_file(world: World, name: str) -> Path:
    """Return one of the store's JSON files, as it is while this process runs the experiment."""
    store, job_folder = world.store, world.cell
    if name == "experiment.json":
        return store.file
    if name == "manifest.json":
        return job_folder.manifest_file
    alive = {
        "place": this_machine(),
        "pid": os.getpid(),
        "born": start_of(os.getpid()),
        "time": 2e9,
    }
    if name == ".holder":
        store.holder_file.write_text(json.dumps(alive))
        return store.holder_file
    manifest = job_folder.read_manifest()
    manifest.status = "running"
    manifest.stretches[-1].ended = None
    job_folder.write_manifest(manifest)
    told = json.loads(job_folder.progress_file.read_text()) | alive
    told |= {"diverged": {"0": 10}, "failed_seeds": {"1": {"step": 3, "reason": "x"}}}
    job_folder.progress_file.write_text(json.dumps(told))
    return job_folder.progress_file


@pytest.mark.parametrize(
    "value",
    [value if value in OFTEN else pytest.param(value, marks=pytest.mark.slow) for value in VALUES],
)
@pytest.mark.parametrize("name", JSON_FILES)
def test_each_field_of_json_may_be_anything(world: World, name: str, value: str) -> None:
    file = json_file(world, name)
    content = json.loads(file.read_text())
    for where in places(content):
        text = json.dumps(put(content, where, "HERE")).replace('"HERE"', VALUES[value])
        file.write_text(text)
        world.held(file, "status")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_may_be_anything(world: World, name: str, text: str) -> None:
    file = json_file(world, name)
    file.write_bytes(TEXTS[text])
    told = world.held(file, "status", "evaluate")
    if name == "manifest.json":
        assert f"{STRANGE} on {TASK}: damaged" in told["status"]


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_may_be_cut_off_or_say_a_key_twice(world: World, name: str) -> None:
    file = json_file(world, name)
    text = file.read_bytes()
    first = text.partition(b",")[0]
    for damage in (
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        text[: len(text) // 2],
        text[:-3],
        first + b"," + text[1:],
        text + text,
    ):
        file.write_bytes(damage)
        world.held(file, "status")


TABLES = ("evaluations.csv", "training.csv", "diagnostics.csv", "slices.csv")


SHOWN = {
    "diagnostics.csv": "seed,step,spread\n0,20,1.0\n1,20,1.0\n",
    "slices.csv": "seed,step,state,action,q,share\n0,20,0,-1.0,1,0.1\n0,20,0,1.0,1,0.1\n",
}


def without_column(text: str) -> str:
    return "\n".join(line.partition(",")[2] for line in text.split("\n"))


def with_column(text: str) -> str:
    return re.sub(r"(?m)(?<=.)$", ",1", text)


def last_row(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        *rows, last = text.rstrip("\n").split("\n")
        return "\n".join([*rows, ",".join(change(last.split(","))), ""])

    return changed


CSV_DAMAGES: dict[str, Callable[[str], str | bytes]] = {
    "a column less": without_column,
    "a column more": with_column,
    "a name more": lambda text: text.replace("\n", ",x\n", 1),
    "text": last_row(lambda row: [*row[:-1], "x"]),
    "text as seed": last_row(lambda row: ["x", *row[1:]]),
    "formula": last_row(lambda row: ["=1+1", *row[1:]]),
    "huge": last_row(lambda row: ["1" + "0" * 400, *row[1:]]),
    "infinite step": last_row(lambda row: [row[0], "inf", *row[2:]]),
    "another seed": last_row(lambda row: ["77", *row[1:]]),
    "another step": last_row(lambda row: [row[0], "999999", *row[2:]]),
    "negative step": last_row(lambda row: [row[0], "-1", *row[2:]]),
    "longer row": last_row(lambda row: [*row, "1", "2"]),
    "shorter row": last_row(lambda row: row[:2]),
    "row twice": lambda text: text + text.rstrip("\n").rsplit("\n")[-1] + "\n",
    "header twice": lambda text: text + text.partition("\n")[0] + "\n",
    "no rows": lambda text: text.partition("\n")[0] + "\n",
    "nothing": lambda text: "",
    "a line break": lambda text: "\n",
    "cut off": lambda text: text[: len(text) * 2 // 3],
    "200,000 columns": lambda text: ",".join(f"c{k}" for k in range(200_000)) + "\n" + text,
    "long line": lambda text: text + "1" * 20_000_000 + "\n",
    "long header": lambda text: "seed," + "x" * 20_000_000 + "\n1,1\n",
    "quotes": lambda text: '"' + text,
    "binary": lambda text: bytes(range(256)) * 100,
    "NUL": lambda text: b"\0" * 1000 + b"\n",
    "UTF-16": lambda text: text.encode("utf-16"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CR": lambda text: text.replace("\n", "\r"),
    "CR LF": lambda text: text.replace("\n", "\r\n"),
    "surrogate": lambda text: b"\xed\xa0\x80" + text.encode(),
}


@pytest.mark.parametrize("damage", CSV_DAMAGES)
def test_a_table_may_be_anything(world: World, damage: str) -> None:
    for name in TABLES:
        world.renew()
        file = world.cell.path / name
        if not file.exists():  # this agent shows nothing of itself
            file.write_text(SHOWN[name])
            assert "damaged" not in world.held(file, "status")["status"]
        text = CSV_DAMAGES[damage](file.read_text())
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        world.held(file, "status")


class Exploit:
    """An object that makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def _another_job(world: World, file: Path) -> None:
    shutil.copy(world.store.job_folder(SOUND, TASK, (0, 1)).checkpoint / "state.pt", file)


def _cut(world: World, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def _archive(world: World, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Exploit(world.folder / "ran")))


CHECKPOINT_DAMAGES: dict[str, Callable[[World, Path], object]] = {
    "another job's": _another_job,
    "random": lambda world, file: file.write_bytes(os.urandom(10_000)),
    "cut off": _cut,
    "nothing": lambda world, file: file.write_bytes(b""),
    "pickle": lambda world, file: file.write_bytes(pickle.dumps(Exploit(world.folder / "ran"))),
    "archive": _archive,
    "number": lambda world, file: torch.save(3, file),
    "tensor": lambda world, file: torch.save(torch.zeros(3), file),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES)
@pytest.mark.parametrize("name", ["state.pt", "replay.f32"])
def test_a_checkpoint_may_be_anything(world: World, name: str, damage: str) -> None:
    (world.cell.checkpoint / "previous.pt").unlink()
    file = world.cell.checkpoint / name
    CHECKPOINT_DAMAGES[damage](world, file)
    told = world.held(file, "status", "evaluate", "run")
    assert not (world.folder / "ran").exists()
    assert "not finished: " in told["run"], told
    assert "delete" in told["run"], told


STATE_VALUES: tuple[Any, ...] = (None, True, -1, 7, 2**62, 10**400, 0.5, float("nan"), "", "x")
STATE_VALUES += ([], [1], [-1, -1], [10**9, 10**9], [10**400] * 2, ["x", "y"], [[1], [2]], {})
STATE_VALUES += ({"x": 1}, {0: 1}, {0: -1}, {77: 1}, {0: {"step": -1, "reason": 3}})
STATE_VALUES += (torch.zeros(0), torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.int8))
COUNTED = ("step", "episode", "episode_start", "episode_before", "episode_return")


def held_with_state(world: World, keys: Sequence[str], values: Sequence[Any]) -> None:
    file = world.cell.checkpoint / "state.pt"
    state = torch.load(file, weights_only=True)
    for key in keys:
        for value in values:
            world.renew()
            (world.cell.checkpoint / "previous.pt").unlink()
            changed = {k: v for k, v in state.items() if k != key}
            torch.save(changed if value is ... else changed | {key: value}, file)
            try:
                told = world.held(file, "run")["run"]
            except BaseException as error:
                error.add_note(f"{key} = {value!r}")
                raise
            way_out = "delete" in told or "anew" in told
            assert "not finished: " not in told or way_out, (key, value, told)


def test_a_checkpoint_may_count_anything(world: World) -> None:
    held_with_state(world, ["step"], (-1,))
    held_with_state(world, COUNTED, (None, [-1, -1]))


@pytest.mark.slow
def test_a_checkpoint_may_say_anything(world: World) -> None:
    state = torch.load(world.cell.checkpoint / "state.pt", weights_only=True)
    for number, key in enumerate(state):
        # Every key with some of the values, every value with some of the keys: each try is a run.
        held_with_state(world, [key], (*STATE_VALUES[number % 7 :: 7], ...))


def _link_outside(world: World, file: Path) -> None:
    file.symlink_to(world.outside)


def _hard_link(world: World, file: Path) -> None:
    os.link(world.outside, file)


SPECIAL: dict[str, Callable[[World, Path], object]] = {
    "link outside": _link_outside,
    "link to itself": lambda world, file: file.symlink_to(file),
    "dangling link": lambda world, file: file.symlink_to(world.folder / "made"),
    "pipe": lambda world, file: os.mkfifo(file),
    "folder": lambda world, file: file.mkdir(),
    "hard link": _hard_link,
}
FILES = (
    "manifest.json",
    "progress.json",
    "log.txt",
    *TABLES,
    "checkpoint/state.pt",
    "checkpoint/previous.pt",
    "checkpoint/replay.f32",
    "../../../experiment.json",
    "../../../.holder",
    "../../../.lock",
    ".lock",
)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_plain_file_is_refused(world: World, name: str, special: str) -> None:
    file = Path(os.path.normpath(world.cell.path / name))
    file.unlink(missing_ok=True)
    SPECIAL[special](world, file)
    world.held(file, "status", "evaluate", "run")
    assert not (world.folder / "made").exists()


@pytest.mark.parametrize("special", ["link outside", "pipe", "plain"])
@pytest.mark.parametrize("name", ["checkpoint", "", ".."])
def test_what_is_no_folder_is_refused(world: World, name: str, special: str) -> None:
    folder = Path(os.path.normpath(world.cell.path / name))
    away = world.folder / "away"
    folder.rename(away)
    if special == "plain":
        folder.write_text("x")
    elif special == "pipe":
        os.mkfifo(folder)
    else:
        folder.symlink_to(away)
    before = {file: file.stat().st_mtime_ns for file in away.rglob("*")}
    world.held(folder, "status", "evaluate", "run")
    assert {file: file.stat().st_mtime_ns for file in away.rglob("*")} == before


REPORTED: dict[str, Callable[[JobFolder], object]] = {
    "manifest": lambda job_folder: job_folder.manifest_file.write_text("[]"),
    "table": lambda job_folder: job_folder.evaluations_file.write_text("seed\nx\n"),
}


@pytest.mark.parametrize("damage", REPORTED)
def test_the_report_has_the_sound_job_and_names_the_other(world: World, damage: str) -> None:
    REPORTED[damage](world.cell)
    file = {"manifest": world.cell.manifest_file, "table": world.cell.evaluations_file}[damage]
    world.held(file, "report")
    text = (world.reports / "there" / "report.md").read_text()
    assert "td3" in text
    assert file.name in text


@pytest.mark.slow
def test_a_comparison_goes_on_without_the_damaged_job(world: World) -> None:
    world.cell.manifest_file.write_text("[]")
    world.held(world.cell.manifest_file, "compare")


@pytest.mark.slow
def test_a_report_of_any_manifest(world: World) -> None:
    content = json.loads(world.cell.manifest_file.read_text())
    everywhere = list(places(content))
    for number, text in enumerate(VALUES.values()):
        # A report takes seconds: each value stands in one place, another for each.
        where = everywhere[number * len(everywhere) // len(VALUES)]
        changed = json.dumps(put(content, where, "HERE")).replace('"HERE"', text)
        world.cell.manifest_file.write_text(changed)
        world.held(world.cell.manifest_file, "report")
