"""Files: whole or not there, one writer at a time, and one clear line where they are damaged."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench.errors import UserError
from qsm_bench.experiment import Experiment
from qsm_bench.files import write_atomically
from qsm_bench.job_folder import JobFolder
from qsm_bench.progress import job_state
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import CsvLog
from tests.qsm_bench.jobs import make_experiment
from tests.qsm_bench.processes import exit_status, fork


def experiment(agents: str = "sac,qsm", tasks: tuple[str, ...] = ("four-goals",)) -> Experiment:
    return make_experiment(agents, tasks, steps=60, warmup_steps=10)


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    store = ExperimentStore(tmp_path, "there")
    store.prepare(experiment(), "a command")
    return store


def test_a_replaced_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.json"
    write_atomically(file, "old")

    def fail(*_: object) -> None:
        assert file.read_text() == "old"
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    monkeypatch.undo()
    write_atomically(file, "new")
    assert file.read_text() == "new"


ROWS = st.lists(st.integers(0, 10**9), min_size=1, max_size=4)


@given(st.lists(ROWS, max_size=4), st.lists(ROWS, max_size=4), st.integers(0, 4))
def test_a_table_cut_back_to_a_size_it_had_goes_on_from_there(
    before: list[list[int]], after: list[list[int]], kept: int
) -> None:
    with TemporaryDirectory() as folder:
        file, whole = Path(folder) / "cut.csv", Path(folder) / "whole.csv"
        sizes = [0]
        log = CsvLog(file)
        for rows in before:
            log.append({"step": row, "seed": 0} for row in rows)
            sizes.append(log.size)
            assert file.stat().st_size == log.size
        log.close()
        kept = min(kept, len(before))
        log = CsvLog(file, sizes[kept])
        assert log.size == sizes[kept]
        for rows in after:
            log.append({"step": row, "seed": 0} for row in rows)
        log.close()
        uncut = CsvLog(whole)
        for rows in before[:kept] + after:
            uncut.append({"step": row, "seed": 0} for row in rows)
        uncut.close()
        assert file.read_bytes() == whole.read_bytes()


def test_a_table_shorter_than_its_checkpoint_is_not_filled_up_with_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("step\n1\n")
    with pytest.raises(UserError, match=r"a\.csv"):
        CsvLog(file, 100)
    assert file.read_text() == "step\n1\n"


def test_an_experiment_has_one_writer_and_names_it(store: ExperimentStore) -> None:
    def hold() -> None:
        with store.lock():
            (store.folder / "held").touch()
            time.sleep(60)

    other = fork(hold)
    while not (store.folder / "held").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"being run by process {other}:"), store.lock():
        pass
    os.kill(other, signal.SIGKILL)
    assert exit_status(other) == -signal.SIGKILL
    with store.lock():
        pass


def test_agents_and_tasks_may_be_added_and_nothing_else_changes(store: ExperimentStore) -> None:
    before = {
        job_folder.path: job_folder.manifest_file.read_bytes() for job_folder in store.job_folders()
    }
    store.prepare(experiment("td3", ("four-goals", "bimodal-bandit")), "another command")
    asked = store.read()
    assert asked["agents"] == ["sac", "qsm", "td3"]
    assert asked["tasks"] == ["four-goals", "bimodal-bandit"]
    job_folders = list(store.job_folders())
    assert [(c.read_manifest().job.agent, c.read_manifest().job.task) for c in job_folders] == [
        ("sac", "four-goals"),
        ("qsm", "four-goals"),
        ("td3", "four-goals"),
        ("td3", "bimodal-bandit"),
    ]
    for folder, text in before.items():
        assert JobFolder(folder).manifest_file.read_bytes() == text


@pytest.mark.parametrize(("agents", "task"), [("td3", "four-goals"), ("sac", "bimodal-bandit")])
def test_another_protocol_is_refused_for_another_agent_or_task_too(
    store: ExperimentStore, agents: str, task: str
) -> None:
    before = {file: file.read_bytes() for file in store.folder.rglob("*.json")}
    rounded = "matmul_precision was 'float32' and is 'bfloat16'"
    for changes, said in (
        ({"batch_size": 9}, "batch_size was 8 and is 9"),
        ({"settings": {"discount": 0.9}}, "discount was 0.99 and is 0.9"),
        ({"settings": {"matmul_precision": "bfloat16"}}, rounded),
    ):
        asked = make_experiment(agents, (task,), steps=60, warmup_steps=10, **changes)
        with pytest.raises(UserError, match=rf"has qsm on four-goals .*\({said}\): choose another"):
            store.prepare(asked, "run")
    assert {file: file.read_bytes() for file in store.folder.rglob("*.json")} == before
    longer = make_experiment(agents, (task,), steps=99, warmup_steps=10)
    store.prepare(longer, "run")  # steps may be added


def test_what_was_asked_may_be_asked_again(store: ExperimentStore) -> None:
    before = [job_folder.manifest_file.read_bytes() for job_folder in store.job_folders()]
    store.prepare(experiment(), "another command")
    assert [job_folder.manifest_file.read_bytes() for job_folder in store.job_folders()] == before


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=20))
def test_no_label_leads_out_of_the_experiment(label: str) -> None:
    folder = ExperimentStore(Path("/results"), "there").job_folder("agent", label, (0,)).path
    assert folder.parents[1] == Path("/results/there/agent")
    assert folder.parent.name not in ("", ".", "..")


def test_different_labels_have_different_folders() -> None:
    store = ExperimentStore(Path("results"), "there")
    labels = ["a/b", "a%2Fb", "a:b", "a b", "A", "a", "qsm[alpha=10]", "qsm[alpha=1,polyak=0.1]"]
    assert len({store.job_folder("agent", label, (0,)).path for label in labels}) == len(labels)


def cut(text: str) -> str:
    return text[: len(text) // 2]


DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "cut off": cut,
    "no object": lambda _: "[]",
    "nothing": lambda _: "null",
    "no JSON": lambda _: "steps: 60",
    "an empty object": lambda _: "{}",
    "binary": lambda _: "\0" * 20,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_one_clear_line(store: ExperimentStore, damage: str) -> None:
    first, *_ = store.job_folders()
    file = first.manifest_file
    file.write_text(DAMAGES[damage](file.read_text()))
    before = file.read_bytes()
    with pytest.raises(UserError, match="manifest") as damaged:
        first.read_manifest()
    fault = str(damaged.value)
    assert str(file) in fault
    assert "\n" not in fault
    assert f"delete {first.path} and run again" in fault
    results = load_results(store.folder.parent, "there")
    assert [(job_folder.agent, job_folder.fault) for job_folder in results.damaged] == [
        ("sac", fault)
    ]
    assert [cell["agent"] for cell in results.cells] == ["qsm"]
    assert job_state(first).status == "damaged"
    assert fault in job_state(first).line
    assert len(store.prepare(experiment(), "")) == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [*DAMAGES, "no list", "no names"],
)
def test_a_damaged_experiment_is_one_clear_line(store: ExperimentStore, damage: str) -> None:
    damages = DAMAGES | {
        "no list": lambda _: json.dumps({"agents": "sac", "tasks": ["four-goals"]}),
        "no names": lambda _: json.dumps({"agents": [1], "tasks": ["four-goals"]}),
    }
    store.file.write_text(damages[damage](store.file.read_text()))
    for read in (
        lambda: list(store.job_folders()),
        lambda: load_results(store.folder.parent, "there"),
        lambda: store.job_folders_of("sac", "four-goals"),
        lambda: store.prepare(experiment(), ""),
    ):
        with pytest.raises(UserError, match=r"experiment\.json") as damaged:
            read()
        assert "\n" not in str(damaged.value)


def test_the_jobs_of_an_agent_are_those_that_were_asked_for_it(store: ExperimentStore) -> None:
    """Seeds that came with a later agent are no jobs of an earlier one."""
    before = [folder.path for folder in store.job_folders_of("sac", "four-goals")]
    asked = json.loads(store.file.read_text())
    asked["groups"].append([77])
    asked["agents"].append("td3[polyak=0.5]")
    store.file.write_text(json.dumps(asked))
    assert [folder.path for folder in store.job_folders_of("sac", "four-goals")] == before
    with pytest.raises(UserError, match="has not been run in there"):
        store.job_folders_of("td3[polyak=0.5]", "four-goals")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_progress_is_none(store: ExperimentStore, damage: str) -> None:
    first, *_ = store.job_folders()
    first.progress_file.write_text(DAMAGES[damage]('{"step": 10, "return": 2.0}'))
    assert job_state(first).last_return is None


def test_results_of_an_experiment_that_has_not_begun_are_empty(store: ExperimentStore) -> None:
    results = load_results(store.folder.parent, "there")
    assert [cell["agent"] for cell in results.cells] == ["sac", "qsm"]
    assert len(results.evaluations) == len(results.training) == 0
    assert {"agent", "task", "seed", "step", "return"} <= set(results.evaluations.columns)


def test_results_are_the_jobs_tables_with_their_names(store: ExperimentStore) -> None:
    rows: list[dict[str, Any]] = []
    for number, job_folder in enumerate(store.job_folders()):
        log = CsvLog(job_folder.evaluations_file)
        row = {"seed": 0, "step": 20, "episode": 0, "return": number / 3, "length": 30}
        log.append([row])
        log.close()
        rows.append({"agent": ("sac", "qsm")[number], "task": "four-goals"} | row)
    results = load_results(store.folder.parent, "there")
    assert results.evaluations.to_dict("records") == rows


def test_a_table_cut_off_in_a_row_is_one_clear_line(store: ExperimentStore) -> None:
    first, *_ = store.job_folders()
    first.evaluations_file.write_bytes(b"seed,step\n0,20\n\xff\xfe,1,2,3\n")
    (damaged,) = load_results(store.folder.parent, "there").damaged
    assert "evaluations.csv is damaged" in damaged.fault
    assert "\n" not in damaged.fault
