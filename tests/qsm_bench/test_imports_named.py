"""Modules are imported only where the user names them: what a manifest names is not imported."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import pytest

from qsm_bench import worker
from qsm_bench.errors import UserError
from qsm_bench.executors import Work, processes
from qsm_bench.executors.processes import Place
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.statistics import estimates
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import AGENTS, EVAL_EVERY, STEPS, WARMUP, make_experiment, make_job, train
from tests.qsm_bench.processes import ForkedJob, run_jobs
from tests.qsm_bench.test_cli import call

MODULE = """
import pathlib
import gymnasium
from agents.td3 import TD3
from envs.four_goals import FourGoals

pathlib.Path(__file__).with_suffix(".ran").touch()
gymnasium.register("Planted-v0", FourGoals, max_episode_steps=30)


class Planted(TD3):
    name = "planted"
    presets = {}
"""
MODULES = ("planted", "results.there.planted", "antigravity")
"""One in the working folder, one among the results, one of Python's own that nobody needs."""
LABEL = AGENTS[-1]
NAMED: dict[str, dict[str, Any]] = {
    f"{what} of {module}": changes
    for module in MODULES
    for what, changes in {
        "agent": {"agent": f"agent of {module}", "agent_name": f"{module}:Planted"},
        "task": {"task": f"{module}:Planted-v0"},
        "id": {"agent": f"id of {module}", "gymnasium_id": f"{module}:Planted-v0"},
    }.items()
}
"""What a stranger's manifest says."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    job, folder = make_job(), tmp_path_factory.mktemp("trained")
    assert train(job, folder)
    return job, folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a working folder with modules that leave a file when they are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimates, "REPLICATIONS", 50)
    monkeypatch.setattr("webbrowser.open", lambda *_: True)  # what antigravity does
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "results" / "there").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "results" / "there"):
        (folder / "planted.py").write_text(MODULE)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for module in (*MODULES, "results.there", "results"):
        sys.modules.pop(module, None)
    gymnasium.registry.pop("Planted-v0", None)


@pytest.fixture
def strangers(here: Path, trained: tuple[Job, Path]) -> ExperimentStore:
    """Make finished jobs as a stranger may, out of one of ours."""
    job, folder = trained
    store = ExperimentStore(here / "results", "there")
    jobs = [job.model_copy(update=changes) for changes in NAMED.values()]
    for named in jobs:
        job_folder = store.job_folder(named.agent, named.task, named.seeds)
        shutil.copytree(folder, job_folder.path)
        job_folder.write_manifest(
            Manifest(job=named, status="finished", step=STEPS, checksums=job_folder.checksums())
        )
    write_experiment(store, jobs)
    return store


def write_experiment(store: ExperimentStore, jobs: list[Job]) -> None:
    asked = {
        "name": "there",
        "agents": list(dict.fromkeys(job.agent for job in jobs)),
        "tasks": list(dict.fromkeys(job.task for job in jobs)),
    }
    store.file.write_text(json.dumps(asked))


def assert_nothing_imported(here: Path) -> None:
    assert not [module for module in MODULES if module in sys.modules]
    assert not list(here.rglob("*.ran"))


def test_the_modules_would_be_seen(here: Path) -> None:
    sys.path.insert(0, str(here))
    for module in MODULES[:2]:
        gymnasium.registry.pop("Planted-v0", None)
        gymnasium.make(f"{module}:Planted-v0").close()
    assert len(list(here.rglob("*.ran"))) == 2
    assert set(MODULES[:2]) <= set(sys.modules)


def test_readers_of_results_import_nothing(strangers: ExperimentStore, here: Path) -> None:
    for command in (
        ("status", "there"),
        ("report", "there"),
        ("compare", "there", "there"),
    ):
        outcome = call(*command)
        assert outcome.status == 0, outcome.err
        assert_nothing_imported(here)
    assert call("status", "there").out.count("finished, step 45/45") == len(NAMED)


@pytest.mark.parametrize("named", NAMED)
def test_evaluate_names_the_module_and_does_not_import_it(
    strangers: ExperimentStore, here: Path, trained: tuple[Job, Path], named: str
) -> None:
    job, module = trained[0].model_copy(update=NAMED[named]), named.rpartition(" ")[2]
    arguments = ("evaluate", "there", f"--agent={job.agent}", f"--task={job.task}")
    for more in ((), ("--video=film.mp4",), ("--import=json",)):
        outcome = call(*arguments, *more)
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1
        assert outcome.err.endswith(f"imported only if you name it: --import {module}\n")
        assert_nothing_imported(here)


def test_a_command_that_is_told_can_be_pasted_whatever_a_module_is_called(
    here: Path, trained: tuple[Job, Path]
) -> None:
    job = trained[0].model_copy(update={"agent_name": "x; touch planted.ran #:X"})
    store = ExperimentStore(here / "results", "there")
    store.job_folder(job.agent, job.task, job.seeds).write_manifest(Manifest(job=job))
    write_experiment(store, [job])
    outcome = call("evaluate", "there", f"--agent={job.agent}", f"--task={job.task}")
    assert outcome.err.endswith("--import 'x; touch planted.ran #'\n")


def test_evaluate_imports_what_it_is_told_to(here: Path) -> None:
    sys.path.insert(0, str(here))
    job = make_job("planted:Planted[hidden_sizes=[8]]", "planted:Planted-v0")
    store = ExperimentStore(here / "results", "there")
    job_folder = store.job_folder(job.agent, job.task, job.seeds)
    job_folder.write_manifest(Manifest(job=job))
    assert train(job, job_folder.path)
    write_experiment(store, [job])
    forget()
    (here / "planted.ran").unlink()
    arguments = ("evaluate", "there", f"--agent={job.agent}", f"--task={job.task}", "--episodes=1")
    assert call(*arguments).status == 2
    assert_nothing_imported(here)
    outcome = call(*arguments, "--import=planted")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("(1 episode, ") == 2
    assert (here / "planted.ran").exists()


def run(agents: str = LABEL, tasks: str = "four-goals") -> tuple[str, ...]:
    numbers = {"steps": STEPS, "warmup-steps": WARMUP, "eval-every": EVAL_EVERY}
    numbers |= {"seeds": 2, "batch-size": 8, "eval-episodes": 2}
    options = (f"--{name}={value}" for name, value in numbers.items())
    return ("run", f"--agents={agents}", f"--tasks={tasks}", "--name=there", *options)


def test_a_run_imports_nothing_that_other_jobs_name(strangers: ExperimentStore, here: Path) -> None:
    with patch.object(processes, "_start", ForkedJob):
        outcome = call(*run(), "--device=cpu", "--workers=1")
    assert outcome.status == 0, outcome.err
    assert strangers.job_folder(LABEL, "four-goals", (0, 1)).read_manifest().status == "finished"
    assert_nothing_imported(here)


@pytest.mark.parametrize("what", ["agent_name", "gymnasium_id"])
def test_a_run_refuses_its_own_job_where_that_names_something_else(
    here: Path, trained: tuple[Job, Path], what: str
) -> None:
    job = trained[0].model_copy(update={what: "planted:Planted-v0"})
    store = ExperimentStore(here / "results", "there")
    store.job_folder(job.agent, job.task, job.seeds).write_manifest(Manifest(job=job))
    write_experiment(store, [job])
    outcome = call(*run(), "--device=cpu")
    assert outcome.status == 2
    assert f"{what} was 'planted:Planted-v0'" in outcome.err
    assert_nothing_imported(here)


EDITS = (
    {"agent_name": "planted:Planted"},
    {"task": "planted:Planted-v0"},
    {"gymnasium_id": "planted:Planted-v0"},
)


def prepared(here: Path) -> JobFolder:
    experiment = make_experiment(LABEL)
    (job_folder,) = ExperimentStore(here / "results", "there").prepare(experiment, "")
    return job_folder


def edit(job_folder: JobFolder, changes: dict[str, Any]) -> None:
    """Change the job in a manifest, as anybody can who may write there."""
    content = json.loads(job_folder.manifest_file.read_text())
    content["job"] |= changes
    job_folder.manifest_file.write_text(json.dumps(content))


@pytest.mark.parametrize("changes", EDITS, ids=str)
@pytest.mark.parametrize("when", ["before it is started", "while it is started"])
def test_a_manifest_that_is_edited_between_asking_and_starting_is_refused(
    here: Path, changes: dict[str, Any], when: str
) -> None:
    sys.path.insert(0, str(here))
    job_folder = prepared(here)

    def start(job_folder: JobFolder, work: Work, place: Place) -> ForkedJob:
        edit(job_folder, changes)
        return ForkedJob(job_folder, work, place)

    if when == "before it is started":
        edit(job_folder, changes)
    with patch.object(processes, "_start", start):
        unfinished = run_jobs([job_folder], checkpoint_every=EVAL_EVERY)
    assert "is of another" in unfinished[job_folder]
    assert "\n" not in unfinished[job_folder]
    assert_nothing_imported(here)


@pytest.mark.parametrize("changes", EDITS, ids=str)
def test_a_worker_that_is_told_no_job_imports_no_module_of_anybodys(
    here: Path, changes: dict[str, Any]
) -> None:
    sys.path.insert(0, str(here))
    job_folder = prepared(here)
    edit(job_folder, changes)
    with pytest.raises(UserError, match="imported only if you name it"):
        worker.work(job_folder.path, checkpoint_every=EVAL_EVERY)
    assert_nothing_imported(here)
