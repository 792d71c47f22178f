"""``remove`` and ``list experiments``: what is named goes, and nothing else."""

from pathlib import Path

import pytest
from filelock import FileLock

from qsm_bench import UserError, cli
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import make_experiment, train

AGENTS = "td3[hidden_sizes=[8]],sac[hidden_sizes=[8]]"
TD3, SAC = AGENTS.split(",")
TASKS = ("four-goals", "bimodal-bandit")


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    """Train one job of four; the others have not begun."""
    store = ExperimentStore(tmp_path / "results", "there")
    experiment = make_experiment(AGENTS, TASKS, seeds=2, per_job=1, steps=20, eval_every=10)
    job_folders = store.prepare(experiment, "")
    assert train(experiment.jobs[0], job_folders[0].path)
    (tmp_path / "results" / "another").mkdir()
    (tmp_path / "results" / "another" / "kept").write_text("kept")
    return store


def pairs_of(store: ExperimentStore) -> set[tuple[str | None, str | None]]:
    return {(job_folder.agent, job_folder.task) for job_folder in store.job_folders()}


def test_everything_of_an_experiment_goes_and_nothing_else(store: ExperimentStore) -> None:
    assert len(store.remove()) == 8
    assert not store.folder.exists()
    assert (store.folder.parent / "another" / "kept").read_text() == "kept"


def test_a_file_of_somebody_elses_stays(store: ExperimentStore) -> None:
    job_folder = next(store.job_folders())
    (job_folder.path / "notes.txt").write_text("mine")
    store.remove()
    assert [file for file in store.folder.rglob("*") if file.is_file()] == [
        job_folder.path / "notes.txt"
    ]


def test_an_agent_a_task_or_a_job_of_both_goes(store: ExperimentStore) -> None:
    store.remove(TD3, TASKS[0])
    assert pairs_of(store) == {(SAC, TASKS[0]), (TD3, TASKS[1]), (SAC, TASKS[1])}
    store.remove(task=TASKS[1])
    assert pairs_of(store) == {(SAC, TASKS[0])}
    assert store.read()["tasks"] == [TASKS[0]]
    store.remove(SAC)
    assert store.read()["agents"] == [TD3]
    store.remove(TD3)
    assert not store.folder.exists()


def test_what_is_not_there_is_refused_and_nothing_goes(store: ExperimentStore) -> None:
    for agent, task in (("sca", None), (None, "four"), (SAC, "four")):
        with pytest.raises(UserError, match="there has no"):
            store.remove(agent, task)
    with pytest.raises(UserError, match="no experiment 'elsewhere'"):
        ExperimentStore(store.folder.parent, "elsewhere").remove()
    assert not (store.folder.parent / "elsewhere").exists()
    assert len(list(store.job_folders())) == 8


def test_a_job_that_a_process_writes_stays(store: ExperimentStore) -> None:
    *_, last = store.job_folders()
    with FileLock(last.lock_file), pytest.raises(UserError, match="is still written by"):
        store.remove()
    assert last.manifest_file.exists()


def test_a_link_is_not_followed(store: ExperimentStore, tmp_path: Path) -> None:
    job_folder = next(store.job_folders())
    outside = job_folder.path.rename(tmp_path / "outside")
    job_folder.path.symlink_to(outside)
    with pytest.raises(UserError):
        store.remove()
    assert (outside / "manifest.json").exists()
    assert len(list(store.job_folders())) == 8


def test_the_commands_say_what_went_and_what_is_there(
    store: ExperimentStore, capsys: pytest.CaptureFixture[str]
) -> None:
    results = f"--results={store.folder.parent}"
    cli.app(["list", "experiments", results], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.startswith(f"there  {TD3}, {SAC} on four-goals, bimodal-bandit, 2 seeds; jobs: ")
    assert "8 pending" in out
    cli.app(["remove", "there", results], standalone_mode=False)
    assert capsys.readouterr().out.count("removed: ") == 8
    cli.app(["list", "experiments", results], standalone_mode=False)
    assert "no experiment is in" in capsys.readouterr().out
