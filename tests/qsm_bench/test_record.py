"""Records: published, read back, checked, and put beside an experiment."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import run_experiment
from qsm_bench.beside import (
    STAGED,
    STAGED_THERE,
    last_common_evaluation,
    place_beside,
    same_runs,
)
from qsm_bench.cli import app
from qsm_bench.comparable import protocol_differences, protocol_hash
from qsm_bench.errors import UserError
from qsm_bench.exporters import export
from qsm_bench.external import import_curves
from qsm_bench.manifest import Manifest, SeedFailure
from qsm_bench.protocol import Protocol
from qsm_bench.record import find_record, known_records, load_record, read_record
from qsm_bench.report import write_report
from qsm_bench.results import Results, load_results
from qsm_bench.shipped import shipped
from qsm_bench.statistics import estimates
from qsm_bench.statistics.selection import agents_of, select_runs
from qsm_bench.statistics.significance import compare_all_pairs
from qsm_bench.store import ExperimentStore
from qsm_bench.stretches import Stretch
from tests.qsm_bench.jobs import EVAL_EVERY, PROTOCOL, make_experiment

TASKS = ("four-goals", "linear-quadratic")
LEVEL = {"sac": 0.0, "td3": 100.0}


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


def experiment_on_disk(
    root: Path,
    name: str,
    agents: str = "sac,td3",
    tasks: tuple[str, ...] = TASKS,
    seeds: int = 3,
    shift: float = 0.0,
    **protocol: Any,
) -> Results:
    """Write a finished experiment; the returns are made up, seed by seed."""
    experiment = make_experiment(agents, tasks, name=name, seeds=seeds, per_job=2, **protocol)
    store = ExperimentStore(root, name)
    store.prepare(
        experiment, f"python -m qsm_bench run --name {name} --results /a/place --reports=/a/place"
    )
    for job in experiment.jobs:
        folder = store.folder_of(job)
        steps = [s for s in range(1, job.protocol.steps + 1) if job.protocol.is_evaluated(s)]
        rows = [
            f"{seed},{step},{k},{LEVEL[job.agent_name] + shift + seed + step / 100},10\n"
            for step in steps
            for seed in job.seeds
            for k in range(job.protocol.eval_episodes)
        ]
        folder.evaluations_file.write_text("seed,step,episode,return,length\n" + "".join(rows))
        training = [f"{seed},{step},{step},1.0\n" for step in steps for seed in job.seeds]
        folder.training_file.write_text(
            "seed,step,wall_clock,training_return\n" + "".join(training)
        )
        manifest = Manifest(job=job, status="finished", step=job.protocol.steps, train_seconds=9.0)
        folder.write_manifest(manifest.model_copy(update={"checksums": folder.checksums()}))
    return load_results(root, name)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A record of sac and td3 on two tasks."""
    return export(experiment_on_disk(tmp_path, "base"), "record", tmp_path / "out/base", who="us")


def zipped(folder: Path, top: str = "") -> Path:
    file = folder.with_suffix(".zip")
    with ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, top + path.relative_to(folder).as_posix())
    return file


@pytest.mark.parametrize(
    "form", [lambda f: f, zipped, lambda f: zipped(f, "base/"), lambda f: zipped(f, "a/b/base/")]
)
def test_a_record_has_the_runs_that_were_published(
    published: Path, tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    loaded, own = load_record(form(published)), load_results(tmp_path, "base")
    assert loaded.record.agents == {"sac": (0, 1, 2), "td3": (0, 1, 2)}
    assert (loaded.record.who, loaded.record.tasks) == ("us", TASKS)
    for table in ("evaluations", "training"):
        pd.testing.assert_frame_equal(getattr(loaded.results, table), getattr(own, table))
    assert loaded.results.damaged == ()


def test_a_record_names_no_folder_and_has_no_checkpoint(published: Path, tmp_path: Path) -> None:
    job = next((tmp_path / "base").rglob("manifest.json")).parent
    (job / "checkpoint").mkdir()
    (job / "checkpoint/state.pt").write_bytes(b"weights")
    (job / "log.txt").write_text("a line")
    again = export(load_results(tmp_path, "base"), "record", tmp_path / "again", who="us")
    names = {file.name for file in again.rglob("*") if file.is_file()}
    assert not {"state.pt", "log.txt"} & names
    assert not any(b"/a/place" in file.read_bytes() for file in again.rglob("*.json"))
    assert "--name base" in (again / "experiment.json").read_text()
    assert (again / "record.json").read_bytes() == (published / "record.json").read_bytes()


def test_a_report_beside_a_record_says_the_command_that_makes_it(
    published: Path, tmp_path: Path
) -> None:
    mine = experiment_on_disk(tmp_path, "mine", shift=1.0)
    write_report(place_beside(mine, load_record(published, "../base.zip")), tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "python -m qsm_bench report mine --beside ../base.zip\n" in text


def test_a_record_tells_nothing_of_the_machine_that_made_it(tmp_path: Path) -> None:
    """Commands, reasons, warnings and logs may have folders, hosts and accounts."""
    experiment_on_disk(tmp_path, "base")
    folder = next(ExperimentStore(tmp_path, "base").job_folders())
    manifest = folder.read_manifest()
    command = (
        "python -m qsm_bench run --agents sac,td3 --results /home/me/r --beside=/home/me/x.zip "
        "--executor slurm --partition mine --slurm account=mine --no-requeue --seeds 3"
    )
    where = "FileNotFoundError: /home/me/a/file.csv: no such file (https://some.where/to/look)"
    folder.write_manifest(
        manifest.model_copy(
            update={
                "status": "failed",
                "reason": where,
                "retried": where,
                "log_tail": ('File "/home/me/mine.py", line 3',),
                "warnings": (where,),
                "failed_seeds": {1: SeedFailure(step=3, reason=where)},
                "stretches": (Stretch(command=command),),
            }
        )
    )
    place = export(load_results(tmp_path, "base"), "record", tmp_path / "out", who="us")
    text = "".join(file.read_text() for file in place.rglob("*.json"))
    assert "/home" not in text
    assert "mine" not in text
    assert "slurm" not in text
    assert "python -m qsm_bench run --agents sac,td3 --seeds 3" in text
    said = "FileNotFoundError: file.csv: no such file (https://some.where/to/look)"
    assert text.count(said) == 4
    load_record(place)


def test_only_agents_that_have_ended_everywhere_are_in_it(tmp_path: Path) -> None:
    experiment_on_disk(tmp_path, "base")
    store = ExperimentStore(tmp_path, "base")
    (folder, *_) = store.job_folders_of("sac", TASKS[1])
    manifest = folder.read_manifest()
    folder.write_manifest(manifest.model_copy(update={"status": "interrupted"}))
    place = export(load_results(tmp_path, "base"), "record", tmp_path / "out", who="us")
    assert list(load_record(place).record.agents) == ["td3"]
    assert not (place / "sac").exists()
    folder.write_manifest(manifest.model_copy(update={"status": "failed"}))
    export(load_results(tmp_path, "base"), "record", place, who="us")
    assert list(load_record(place).record.agents) == ["sac", "td3"]
    experiment_on_disk(tmp_path, "none", agents="sac", tasks=TASKS[:1])
    (folder, *_) = ExperimentStore(tmp_path, "none").job_folders_of("sac", TASKS[0])
    folder.write_manifest(folder.read_manifest().model_copy(update={"status": "running"}))
    with pytest.raises(UserError, match="no agent's runs have ended on every task"):
        export(load_results(tmp_path, "none"), "record", tmp_path / "no", who="us")
    assert not (tmp_path / "no").exists()


def test_a_record_has_who_publishes_it_and_nothing_else_has(tmp_path: Path) -> None:
    results = experiment_on_disk(tmp_path, "base")
    for nobody in ("", " ", "x" * 201):
        with pytest.raises(UserError, match="give the name of who publishes it"):
            export(results, "record", tmp_path / "record", who=nobody)
    with pytest.raises(UserError, match="needs --who"):
        export(results, "record", tmp_path / "out")
    with pytest.raises(UserError, match="has no --who"):
        export(results, "tdmpc2", tmp_path / "out", who="us")


@pytest.mark.parametrize("name", ["record.json", "experiment.json", "manifest.json", "*.csv"])
@pytest.mark.parametrize("damage", ["changed", "missing", "link", "folder", "pipe"])
def test_a_record_that_is_not_as_published_is_refused_in_one_line(
    published: Path, tmp_path: Path, name: str, damage: str
) -> None:
    file = next(published.rglob(name))
    content = file.read_bytes()
    file.unlink()
    if damage == "changed":
        file.write_bytes(content.replace(b"0", b"1", 1))
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        import os

        os.mkfifo(file)
    with pytest.raises(UserError, match=str(published)) as error:
        load_record(published)
    assert "\n" not in str(error.value)


def change(published: Path, **changes: object) -> None:
    file = published / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


STRANGE: list[tuple[dict[str, object], str]] = [
    ({"format": 2}, "upgrade qsm_bench"),
    ({"format": "x"}, "format"),
    ({"files": {"../../x": "0"}}, "no record has a file"),
    ({"files": {"a/b/../manifest.json": "0"}}, "no record has a file"),
    ({"files": {"/a/b/manifest.json": "0"}}, "no record has a file"),
    ({"files": {"a/b/checkpoint/state.pt": "0"}}, "no record has a file"),
    ({"name": "../x"}, "is no name"),
    ({"name": ""}, "is no name"),
    ({"agents": {}}, "no agent or no task"),
    ({"agents": {"td3": [0, 1, 2]}}, "sac on "),
    ({"agents": {"sac": [0, 1], "td3": [0, 1, 2]}}, "other seeds"),
    ({"protocol_hash": "0"}, "hash"),
    ({"protocol": {"steps": 5}}, "record.json is damaged: protocol"),
    ({"protocol": PROTOCOL.but(batch_size=9).model_dump(mode="json")}, "hash"),
    ({"who": 3}, "who is 3: "),
    ({"who": ""}, "who is '': "),
    ({"who": "x" * 201}, "who is .*: String should have at most 200 characters"),
    ({"began": "yesterday"}, "began or ended at other times"),
    ({"protocol": PROTOCOL.but(settings={"discount": 0.9}).model_dump(mode="json")}, "hash"),
    (
        {"protocol": {**PROTOCOL.model_dump(mode="json"), "settings": {"x": 1}}},
        "record.json is damaged: protocol: every agent has no setting 'x'",
    ),
    ({"protocol": PROTOCOL.but(steps=99).model_dump(mode="json")}, "sac on .* has other steps"),
    ({"commits": ["deadbeef"]}, "its runs are of other commits"),
    ({"tasks": [*TASKS, TASKS[0]]}, "a task twice"),
    ({"format": True}, "format"),
    ({"name": "x" * 300}, "is damaged: "),
    ({"name": "other"}, "is of the experiment 'base'"),
    ({"files": {}}, "lists no experiment.json"),
]


@pytest.mark.parametrize(("changes", "fault"), STRANGE)
def test_a_record_that_says_what_its_files_do_not_is_refused(
    published: Path, changes: dict[str, object], fault: str
) -> None:
    change(published, **changes)
    with pytest.raises(UserError, match=fault) as error:
        load_record(published)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"record"'])
def test_a_record_of_another_kind_of_json_is_refused(published: Path, content: str) -> None:
    (published / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record.json is damaged: it is no JSON object$"):
        load_record(published)


def write_zip_of_version(file: Path, version: int) -> None:
    """Write a zip that says that only a later program can read it."""
    with ZipFile(file, "w") as archive:
        archive.writestr("record.json", "{}")
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = version
    file.write_bytes(content)


def forge(published: Path, pattern: str, forged: Callable[[str], str]) -> None:
    """Change one file of a record, and let ``record.json`` say that it was published so."""
    file = sorted(published.rglob(pattern))[-1]
    file.write_text(forged(file.read_text()))
    about = json.loads((published / "record.json").read_text())
    name = file.relative_to(published).as_posix()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    change(published, files={**about["files"], name: digest})


def in_job(**changes: Any) -> Callable[[str], str]:
    """Change fields of the job in a manifest."""

    def forged(text: str) -> str:
        content = json.loads(text)
        return json.dumps({**content, "job": {**content["job"], **changes}})

    return forged


@pytest.mark.parametrize(
    ("pattern", "forged", "fault"),
    [
        ("manifest.json", in_job(gymnasium_id="other-v0"), "'gymnasium_id' is not that of"),
        ("manifest.json", in_job(score_range=[-9, 0]), "'score_range' is not that of"),
        ("manifest.json", in_job(settings={"discount": 0.5}), "'settings' is not that of"),
        ("manifest.json", in_job(agent_name="qsm"), "'agent_name' is not that of"),
        (
            "manifest.json",
            in_job(protocol=PROTOCOL.but(batch_size=9).model_dump(mode="json")),
            "has another protocol than record.json says",
        ),
        (
            "manifest.json",
            lambda text: json.dumps({**json.loads(text), "step": 1}),
            "finished, at step 1 of",
        ),
    ],
)
def test_every_job_of_a_record_is_held_against_the_others(
    published: Path, pattern: str, forged: Callable[[str], str], fault: str
) -> None:
    """The last job of the last agent is as good a place for a forgery as the first."""
    forge(published, pattern, forged)
    with pytest.raises(UserError, match=fault) as error:
        load_record(published)
    assert str(error.value).startswith(f"record {published} is damaged: ")


def test_a_finished_run_of_a_record_has_all_its_evaluations(published: Path) -> None:
    """Or who publishes it could choose the step at which everybody is compared."""
    forge(published, "evaluations.csv", lambda text: text[: text[:-1].rindex("\n") + 1])
    for manifest in published.rglob("manifest.json"):  # the job's own checksum is forged, too
        name = manifest.relative_to(published).as_posix()
        forge(published, name, lambda text: json.dumps({**json.loads(text), "checksums": {}}))
    with pytest.raises(UserError, match=r"finished, with \d+ of \d+ evaluated episodes"):
        load_record(published)


def test_uncommitted_changes_are_told(tmp_path: Path) -> None:
    results = experiment_on_disk(tmp_path, "base")
    for folder in ExperimentStore(tmp_path, "base").job_folders():
        manifest = folder.read_manifest()
        stretch = Stretch(commit="0123456789ab-dirty")
        folder.write_manifest(manifest.model_copy(update={"stretches": (stretch,)}))
    place = export(load_results(tmp_path, results.name), "record", tmp_path / "out", who="us")
    assert "by us, commit 0123456-dirty, protocol" in load_record(place).record.summary


def test_the_programs_own_record_keeps_its_name(published: Path, tmp_path: Path) -> None:
    published.rename(tmp_path / "record")
    known = known_records(tmp_path)
    assert known["record"] == shipped("record")
    assert known[str(tmp_path / "record")] == tmp_path / "record"


def test_an_agent_that_has_no_runs_is_refused(published: Path) -> None:
    import hashlib

    file = published / "experiment.json"
    asked = json.loads(file.read_text())
    file.write_text(json.dumps({**asked, "agents": [*asked["agents"], "ghost"]}))
    files = json.loads((published / "record.json").read_text())["files"]
    known = hashlib.sha256(file.read_bytes()).hexdigest()
    change(published, files={**files, "experiment.json": known})
    with pytest.raises(UserError, match="has other agents or tasks"):
        load_record(published)


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (lambda f: f.write_bytes(b"no zip"), "cannot be read"),
        (lambda f: ZipFile(f, "w").close(), "no zip of one record"),
        (lambda f: write_zip_of_version(f, 99), "cannot be read"),
        (lambda f: f.mkdir(), "x.zip is no record, as it has no record.json$"),
        (lambda f: None, "no record at"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], object], fault: str
) -> None:
    write(tmp_path / "x.zip")
    with pytest.raises(UserError, match=fault) as error:
        load_record(tmp_path / "x.zip")
    assert "\n" not in str(error.value)


def test_a_zip_whose_bytes_were_changed_is_read_as_it_was_or_refused(published: Path) -> None:
    file = zipped(published)
    content = file.read_bytes()
    refused = []
    for at in range(0, len(content), 997):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with suppress(UserError):  # any other error fails the test
            assert load_record(file).record == read_record(published)  # a byte such as of a time
            continue
        refused.append(at)
    assert len(refused) > len(content) / 997 / 2


def test_a_name_is_looked_for_among_the_results(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "results" / "base")
    assert find_record("base", tmp_path / "results") == tmp_path / "results" / "base"
    assert known_records(tmp_path / "results")["base"] == tmp_path / "results" / "base"
    assert read_record(tmp_path / "results" / "base").who == "us"
    with pytest.raises(UserError, match="did you mean 'base'"):
        find_record("bas", tmp_path / "results")
    assert find_record(str(published), tmp_path) == published
    assert find_record("x.zip", tmp_path).name == "x.zip"


def test_equal_protocols_are_compared_at_the_last_common_step(
    published: Path, tmp_path: Path
) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=50.0, steps=EVAL_EVERY)
    together = place_beside(own, load_record(published))
    comparison = select_runs(together)
    assert comparison.agents == ("td3", "sac (base)", "td3 (base)")
    assert {int(runs.steps[-1]) for runs in comparison.runs.values()} == {EVAL_EVERY}
    pairs = compare_all_pairs(comparison)
    assert set(zip(pairs["better"], pairs["worse"], strict=True)) == {
        ("td3", "sac (base)"),
        ("td3", "td3 (base)"),
    }
    assert "are compared on four-goals, linear-quadratic" in " ".join(together.beside.sentences)
    # Seen from the other side, what is compared is the same.
    theirs = comparison.runs["td3 (base)", TASKS[0]].returns
    base = load_results(tmp_path, "base").evaluations
    rows = base[
        (base["agent"] == "td3") & (base["task"] == TASKS[0]) & (base["step"] == EVAL_EVERY)
    ]
    assert list(theirs[:, -1]) == list(rows.groupby("seed")["return"].mean())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_episodes": 3}, "eval_episodes is 2 there and 3 here"),
        ({"batch_size": 9}, "batch_size is 8 there and 9 here"),
        ({"settings": {"discount": 0.9}}, "discount is 0.99 there and 0.9 here"),
        (
            {"eval_every": 10, "warmup_steps": 9},
            "warmup_steps is 8 there and 9 here. Also, eval_every is",
        ),
    ],
)
def test_other_protocols_are_only_drawn(
    published: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=1.0, **changes)
    together = place_beside(own, load_record(published))
    alone, beside = select_runs(own), select_runs(together)
    assert (beside.agents, beside.left_out) == (alone.agents, alone.left_out)
    assert {curve.name for curve in together.beside.references} == {"sac (base)", "td3 (base)"}
    assert said in " ".join(together.beside.sentences)
    page = write_report(together, tmp_path / "report")
    text = page.with_name("report.md").read_text("utf-8")
    assert said in text
    drawn = pd.read_csv(tmp_path / "report/data/learning-curves.csv")
    assert {"td3", "sac (base)", "td3 (base)"} == set(drawn["agent"])


def test_a_staged_experiment_tests_its_own_agents_alone(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=1.0)
    staged = replace(own, experiment={**own.experiment, "stages": {}})
    together = place_beside(staged, load_record(published))
    assert select_runs(together).agents == ("td3",)
    assert STAGED in " ".join(together.beside.sentences)


def test_tasks_that_one_of_them_has_stay_as_they_are(published: Path, tmp_path: Path) -> None:
    tasks = ("four-goals", "bimodal-bandit")
    own = experiment_on_disk(tmp_path, "mine", "td3", tasks=tasks, shift=1.0)
    comparison = select_runs(place_beside(own, load_record(published)))
    assert ("td3 (base)", "linear-quadratic") not in comparison.runs
    assert comparison.shared_tasks("td3", "sac (base)") == ("four-goals",)
    assert comparison.shared_tasks("td3") == ("four-goals", "bimodal-bandit")


def test_what_shares_no_task_or_is_the_record_is_refused(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", tasks=("bimodal-bandit",))
    with pytest.raises(UserError, match="has no task of this experiment"):
        place_beside(own, load_record(published))
    itself = load_results(published.parent, "base")
    with pytest.raises(UserError, match="is this record itself"):
        place_beside(itself, load_record(published))


def test_the_command_line_lists_publishes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment_on_disk(tmp_path / "results", "base")
    experiment_on_disk(tmp_path / "results", "mine", "td3", shift=1.0)
    publish = ["export", "base", "--to", "record", "--who", "a lab", "--out", "rec/base"]
    app(publish, standalone_mode=False)
    shutil.copytree(tmp_path / "rec/base", tmp_path / "results/published-base")
    capsys.readouterr()
    app(["list", "records"], standalone_mode=False)
    listed = capsys.readouterr().out
    assert "sac, td3 on 2 tasks, 3 seeds, 45 steps; by a lab" in listed
    app(["report", "mine", "--beside", "rec/base"], standalone_mode=False)
    assert "sac (base)" in (tmp_path / "reports/mine/report.md").read_text("utf-8")
    with pytest.raises(UserError, match="given 2 times: a report stands beside one record"):
        app(["report", "mine", "--beside", "rec/base", "--beside=record"], standalone_mode=False)
    with pytest.raises(UserError, match="no record 'best'"):
        app(["report", "mine", "--beside", "best"], standalone_mode=False)


@pytest.mark.parametrize("what", ["train", "prepare", "remove", "import"])
def test_a_record_is_not_written_to(published: Path, tmp_path: Path, what: str) -> None:
    place = tmp_path / "results/base"
    shutil.copytree(published, place)
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    store = ExperimentStore(place.parent, "base")
    curves = tmp_path / "four-goals.csv"
    curves.write_text("step,return,seed\n1,1,0\n")
    columns = {"step": "step", "return": "return", "seed": "seed"}
    experiment = make_experiment("sac,td3", TASKS, name="base", seeds=3, per_job=2)
    ways: dict[str, Callable[[], object]] = {
        "train": lambda: run_experiment(
            "qsm", tasks=TASKS[0], name="base", protocol=PROTOCOL, results=place.parent
        ),
        "prepare": lambda: store.prepare(experiment, ""),
        "remove": store.remove,
        "import": lambda: import_curves(store, curves, "theirs", columns=columns),
    }
    with pytest.raises(UserError, match="is a published record, and stays as it is"):
        ways[what]()
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before
    load_record(place)


@pytest.mark.parametrize("times", [0, 2])
def test_a_zip_has_one_record(published: Path, times: int) -> None:
    file = published.with_suffix(".zip")
    with ZipFile(file, "w") as archive:
        for number in range(times):
            archive.write(published / "record.json", f"{number}/record.json")
    with pytest.raises(UserError, match=rf"no zip of one record: record.json is in it {times} tim"):
        load_record(file)


def test_the_seeds_needed_are_those_of_agents_that_can_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents of a record get none. A setting that they do not have stays in the others' labels."""
    monkeypatch.setitem(LEVEL, "td3", 0.05)
    record = export(experiment_on_disk(tmp_path, "base"), "record", tmp_path / "out/base", who="us")
    own = experiment_on_disk(
        tmp_path, "mine", "td3[hidden_sizes=[8]],sac[hidden_sizes=[8]]", shift=0.1
    )
    write_report(place_beside(own, load_record(record)), tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    agents = "sac[hidden_sizes=[8]] and td3[hidden_sizes=[8]]"
    assert f"more than 50 seeds of {agents} instead of 3 would be needed" in text
    assert "both were measured elsewhere" not in text  # the record's own pair is not tested here
    times = (tmp_path / "report/data/return-against-time.csv").read_text()
    assert "td3[hidden_sizes=[8]]" in times
    assert "(base)" not in times  # from another machine


def test_one_run_is_never_two(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3")
    together = place_beside(own, load_record(published))
    assert select_runs(together).agents == ("td3", "sac (base)")
    assert "td3 (base) is left out: runs of it are those of td3 here" in " ".join(
        together.beside.sentences
    )


def test_one_run_is_never_two_whatever_it_is_called(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", agents="sac[discount=0.99]")
    placed = place_beside(own, load_record(published))
    assert agents_of(placed) == ["sac[discount=0.99]", "td3 (base)"]
    assert any(
        "sac (base) is left out: runs of it are those of sac[discount=0.99] here" in said
        for said in placed.beside.sentences
    )


def test_a_setting_that_older_runs_lack_is_no_difference(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", agents="sac[discount=0.99]")
    theirs = load_record(published).results
    for cell in theirs.cells:
        cell["settings"] = {k: v for k, v in cell["settings"].items() if k != "matmul_precision"}
    assert same_runs(own, theirs) == {"sac": "sac[discount=0.99]"}


def test_two_trainers_of_equal_returns_are_two(published: Path, tmp_path: Path) -> None:
    """Policies that stay at a bound of the action box do the same, whoever trained them."""
    own = experiment_on_disk(tmp_path, "mine", agents="sac[discount=0.9]")  # made up as sac's are
    theirs = load_record(published).results
    assert same_runs(own, theirs) == {}
    assert same_runs(experiment_on_disk(tmp_path, "same", agents="sac"), theirs) == {"sac": "sac"}


def test_tasks_that_the_record_lacks_are_named(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", tasks=(*TASKS, "bimodal-bandit"), shift=1.0)
    placed = place_beside(own, load_record(published))
    assert "base has no runs on bimodal-bandit." in placed.beside.sentences


def test_a_record_of_your_own_runs_alone_leaves_your_report_as_it_is(
    published: Path, tmp_path: Path
) -> None:
    together = place_beside(load_results(tmp_path, "base"), load_record(published))
    assert select_runs(together).agents == ("sac", "td3")
    assert len(together.beside.sentences) == 2
    write_report(together, tmp_path / "report")
    assert "sac (base) is left out" in (tmp_path / "report/report.md").read_text()


def test_a_record_that_ends_earlier_says_where(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=1.0, steps=2 * 45)
    together = place_beside(own, load_record(published))
    assert {int(runs.steps[-1]) for runs in select_runs(together).runs.values()} == {40}
    assert (
        "On four-goals, linear-quadratic all agents are compared at step 40, the last"
        in " ".join(together.beside.sentences)
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 25), st.booleans())
def test_the_last_common_evaluation_is_the_last_step_of_both(
    a: int, b: int, every: int, extended: bool
) -> None:
    """A run that was given more steps has been evaluated where it ended before."""
    one, other = (Protocol(steps=n + 1, warmup_steps=1, eval_every=every) for n in (a, b))
    earlier = 1 + a // 2
    both = [
        step
        for step in range(1, 1 + min(one.steps, other.steps))
        if (one.is_evaluated(step) or (extended and step == earlier)) and other.is_evaluated(step)
    ]
    cells: list[dict[str, Any]] = [
        {"protocol": one.model_dump(), "lengths": [earlier] if extended else []},
        {"protocol": other.model_dump()},
    ]
    assert last_common_evaluation(cells) == max(both, default=0)


def test_where_nothing_is_learned_equal_returns_are_no_sign_of_one_run(
    published: Path, tmp_path: Path
) -> None:
    own, loaded = experiment_on_disk(tmp_path, "mine", shift=1.0), load_record(published)
    for results in (own, loaded.results):
        results.evaluations.loc[results.evaluations["task"] == TASKS[0], "return"] = 0.0
    assert same_runs(own, loaded.results) == {}
    assert len(select_runs(place_beside(own, loaded)).agents) == 4


def test_an_agent_of_a_label_that_is_taken_is_refused(published: Path, tmp_path: Path) -> None:
    own = experiment_on_disk(tmp_path, "mine", shift=1.0)
    asked = {**own.experiment, "agents": [*own.experiment["agents"], "td3 (base)"]}
    with pytest.raises(UserError, match=r"mine has an agent 'td3 \(base\)' already, which record"):
        place_beside(replace(own, experiment=asked), load_record(published))


def test_damage_is_told_where_no_cell_can_be_read(published: Path, tmp_path: Path) -> None:
    experiment_on_disk(tmp_path, "mine", "td3", shift=1.0)
    for file in (tmp_path / "mine").rglob("evaluations.csv"):
        file.write_text("no table")
    own = load_results(tmp_path, "mine")
    assert own.damaged
    with pytest.raises(UserError, match=r"none of its jobs can be read, the first because .*eval"):
        place_beside(own, load_record(published))


def test_the_page_says_that_times_of_a_record_are_no_times_of_this_machine(
    published: Path, tmp_path: Path
) -> None:
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=1.0)
    page = write_report(place_beside(own, load_record(published)), tmp_path / "report")
    text = page.with_name("report.md").read_text("utf-8")
    assert "The runs of sac (base) and td3 (base) were trained elsewhere" in text


def test_an_experiment_is_no_record_and_how_it_becomes_one_is_said(tmp_path: Path) -> None:
    experiment_on_disk(tmp_path, "mine", "td3")
    with pytest.raises(UserError, match=r"no record 'mine'.*experiment of this name: `export NAME"):
        find_record("mine", tmp_path)
    with pytest.raises(UserError, match=r"is no record, as it has no record.json: `export NAME"):
        load_record(tmp_path / "mine")


def test_what_a_zip_lacks_is_told_once(published: Path) -> None:
    next(published.rglob("manifest.json")).unlink()
    with pytest.raises(UserError, match=r"^record \S+ is damaged: it has no \S+manifest.json$"):
        load_record(zipped(published))


def test_runs_that_were_never_evaluated_at_one_step_are_only_drawn(tmp_path: Path) -> None:
    short = experiment_on_disk(tmp_path, "short", steps=15)
    record = load_record(export(short, "record", tmp_path / "out", who="us"))
    own = experiment_on_disk(tmp_path, "mine", shift=1.0)
    together = place_beside(own, record)
    assert select_runs(together).agents == ("sac", "td3")
    assert "there first at 15, here first at 20" in " ".join(together.beside.sentences)


def test_a_staged_record_is_only_drawn(published: Path, tmp_path: Path) -> None:
    loaded = load_record(published)
    asked = {**loaded.results.experiment, "stages": {"agents": ["sac", "td3"]}}
    staged = replace(loaded, results=replace(loaded.results, experiment=asked))
    own = experiment_on_disk(tmp_path, "mine", "td3", shift=1.0)
    together = place_beside(own, staged)
    assert select_runs(together).agents == ("td3",)
    assert STAGED_THERE in " ".join(together.beside.sentences)


def test_a_record_has_one_protocol(tmp_path: Path) -> None:
    experiment_on_disk(tmp_path, "base", "sac")
    with patch.object(ExperimentStore, "_refuse_other_protocol"):  # as earlier versions did not
        experiment_on_disk(tmp_path, "base", "td3", eval_episodes=3)
    with pytest.raises(UserError, match="eval_episodes is 2 for sac on four-goals and 3 for td3"):
        export(load_results(tmp_path, "base"), "record", tmp_path / "out", who="us")
    assert not (tmp_path / "out").exists()
    # Where an own task has two protocols, one that differs is enough.
    record = load_record(
        export(
            experiment_on_disk(tmp_path, "z", "sac", shift=1.0), "record", tmp_path / "o", who="us"
        )
    )
    together = place_beside(load_results(tmp_path, "base"), record)
    assert "eval_episodes is 2 there and 3 here" in " ".join(together.beside.sentences)


def test_agents_that_are_left_out_of_a_record_are_named(tmp_path: Path) -> None:
    from qsm_bench.exporters.to_record import left_out

    experiment_on_disk(tmp_path, "base")
    (folder, *_) = ExperimentStore(tmp_path, "base").job_folders_of("sac", TASKS[1])
    folder.write_manifest(folder.read_manifest().model_copy(update={"status": "interrupted"}))
    (line,) = left_out(load_results(tmp_path, "base"))
    assert line.startswith("left out: sac: ")


# The hash


FIELDS = {
    "warmup_steps": st.integers(1, 99),
    "batch_size": st.integers(1, 512),
    "eval_every": st.integers(1, 100),
    "eval_episodes": st.integers(1, 20),
    "action_repeat": st.integers(1, 4),
}


def protocol_of(values: dict[str, Any]) -> Protocol:
    return Protocol(**{"warmup_steps": 10, **values})


PROTOCOLS = st.fixed_dictionaries(
    {"steps": st.integers(100, 200)},
    optional={
        **FIELDS,
        "settings": st.fixed_dictionaries({"discount": st.sampled_from([0.9, 0.99])}),
    },
).map(protocol_of)


@given(first=PROTOCOLS, second=PROTOCOLS)
def test_hashes_are_equal_where_nothing_differs_but_the_length(
    first: Protocol, second: Protocol
) -> None:
    same = protocol_hash(first) == protocol_hash(second)
    assert same == (protocol_differences(first, second) == {})
    assert protocol_hash(first) == protocol_hash(first.but(steps=first.steps + 1))


def test_the_hash_of_the_default_protocol_never_changes() -> None:
    """Published records name it: a field that is added must leave it as it is."""
    expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert protocol_hash(Protocol()) == expected
