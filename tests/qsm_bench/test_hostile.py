"""Results from a stranger: they run no code, and no name in them leads out of its folder."""

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm_bench import cli
from qsm_bench.checkpoint import FORMAT, Checkpoint, read_state
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.report import write_report
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.training import Training
from tests.qsm_bench.jobs import make_experiment, make_job, train

PACKAGES = [Path(__file__).parents[2] / name for name in ("agents", "envs", "qsm_bench")]


class Exploit:
    """An object that makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def zipped(file: Path, content: Any) -> None:
    torch.save(content, file)


def plain_pickle(file: Path, content: Any) -> None:
    file.write_bytes(pickle.dumps(content))


def legacy(file: Path, content: Any) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def script(file: Path, content: Any) -> None:
    """Make a TorchScript archive, which torch.load opens in another way."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(content))
        archive.writestr("archive/data.pkl", pickle.dumps(content))


@pytest.mark.parametrize("write", [zipped, plain_pickle, legacy, script])
@pytest.mark.parametrize("name", ["state.pt", "previous.pt"])
def test_a_checkpoint_runs_no_code(tmp_path: Path, name: str, write: Any) -> None:
    job_folder = JobFolder(tmp_path / "job")
    job_folder.checkpoint.mkdir(parents=True)
    ran = tmp_path / "ran"
    write(job_folder.checkpoint / name, {"step": 1, "replay_added": 0, "agent": Exploit(ran)})
    checkpoint = Checkpoint(job_folder.checkpoint)
    for load in (
        checkpoint.load_state,
        lambda: read_state(job_folder.checkpoint / name),
        lambda: Training(make_job(), job_folder, checkpoint_every=1),
    ):
        with pytest.raises(UserError, match=name) as refused:
            load()
        assert "\n" not in str(refused.value)
    assert not ran.exists()


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"replay_added": "many"},
        {"replay_added": 10**15},
        {"replay_added": -1},
        {"replay_added": 0},
        {"replay_added": 0, "agent": {}, "checksums": 3},
        {"replay_added": 0, "evaluations_size": 10**15},
        {"replay_added": 0, "evaluations_size": -5},
    ],
    ids=repr,
)
def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path, state: Any) -> None:
    job_folder = JobFolder(tmp_path)
    job_folder.checkpoint.mkdir()
    if isinstance(state, dict):
        state |= {"format": FORMAT}
    torch.save(state, job_folder.checkpoint / "state.pt")
    (job_folder.checkpoint / "replay.f32").touch()
    with pytest.raises(UserError) as refused:
        train(make_job(), tmp_path)
    assert "\n" not in str(refused.value)


def test_no_module_reads_pickles() -> None:
    words = ("import pickle", "import shelve", "import marshal", "weights_only=False", "allow_pick")
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            text = file.read_text()
            assert not any(word in text for word in words), file
            assert text.count("torch.load(") == text.count("weights_only=True)"), file


JOB = make_job()
NAMES = st.text(alphabet="./\\~%2eF: \0aé<script>", min_size=1, max_size=20) | st.sampled_from(
    ["..", ".", "../..", "/etc", "a/../../b", "~", "..%2f", "%2e%2e", "C:\\x", "\0", "con", "-rf"]
)


@given(NAMES, NAMES)
def test_a_job_lies_in_its_experiment_whatever_it_is_called(agent: str, task: str) -> None:
    folder = ExperimentStore(Path("/results"), "there").job_folder(agent, task, (0,)).path
    assert folder.parents[2] == Path("/results/there")
    assert Path(os.path.normpath(folder)) == folder
    assert "\0" not in str(folder)


@given(NAMES)
def test_an_experiment_lies_in_the_results_or_has_no_such_name(name: str) -> None:
    try:
        make_experiment("td3", name=name)
    except UserError:
        return
    folder = Path("/results") / name
    assert Path(os.path.normpath(folder)) == folder
    assert folder.parent == Path("/results")


@given(NAMES, st.sampled_from(["status", "report", "evaluate"]))
@settings(max_examples=30)
def test_no_command_leaves_the_results_for_a_name(name: str, command: str) -> None:
    with TemporaryDirectory() as folder:
        outside = Path(folder, "experiment.json")
        outside.write_text(json.dumps({"agents": [], "tasks": []}))
        results = Path(folder, "results")
        results.mkdir()
        arguments = [command, f"--results={results}", "--", name]
        if command == "evaluate":
            arguments[1:1] = ["--agent=a", "--task=b"]
        if command == "report":
            arguments[1:1] = [f"--reports={folder}/reports"]
        with (
            patch.object(sys, "argv", ["qsm_bench", *arguments]),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
        assert ended.value.code == 2
        assert sorted(Path(folder).rglob("*")) == [outside, results]


SCRIPT = "<script src='http://example.org/x.js'>alert(1)</script>"


@pytest.mark.slow
def test_a_report_of_hostile_names_stays_in_its_folder(tmp_path: Path) -> None:
    store = ExperimentStore(tmp_path / "results", "there")
    agents, tasks = [SCRIPT, "../../../agent", "sac"], [f"task{SCRIPT}", "../../task"]
    store.folder.mkdir(parents=True)
    asked = {
        "name": "there",
        "agents": agents,
        "tasks": tasks,
        "seeds": [0, 1],
        "steps": 45,
        "warmup_steps": 8,
        "batch_size": 8,
        "replay_capacity": 45,
        "eval_every": 20,
        "eval_episodes": 2,
        "device": "cpu",
        "command": SCRIPT,
    }
    store.file.write_text(json.dumps(asked))
    for agent in agents:
        for task in tasks:
            job = Job.model_validate(JOB.model_dump() | {"agent": agent, "task": task})
            job_folder = store.job_folder(agent, task, job.seeds)
            job_folder.write_manifest(
                # As an earlier version wrote it: the commit at the top.
                Manifest.model_validate(
                    {"job": job, "status": "failed", "reason": SCRIPT, "log_tail": (SCRIPT,)}
                    | {"commit": SCRIPT}
                )
            )
            rows = [f"{s},{t},{k},{s + k},30" for t in (20, 40) for s in (0, 1) for k in (0, 1)]
            job_folder.evaluations_file.write_text(
                "\n".join(["seed,step,episode,return,length", *rows, ""])
            )
    before = set(tmp_path.rglob("*"))
    page = write_report(load_results(tmp_path / "results", "there"), tmp_path / "reports" / "there")
    made = set(tmp_path.rglob("*")) - before
    assert page in made
    assert all(tmp_path / "reports" in (path, *path.parents) for path in made)
