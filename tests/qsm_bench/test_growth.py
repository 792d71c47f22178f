"""A run that is given more steps leaves what one of that length leaves, byte for byte."""

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.td3 import TD3, TD3Config
from qsm_bench import UserError, load_results, run_experiment
from qsm_bench.checkpoint import read_state
from qsm_bench.executors import processes
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest, as_it_began
from qsm_bench.results import Results
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import (
    AGENTS,
    EVAL_EVERY,
    PROTOCOL,
    STEPS,
    WARMUP,
    make_experiment,
    make_job,
    train,
    uncut,
    written,
)
from tests.qsm_bench.processes import ForkedJob

SHORT = 30
"""No evaluation is due here but the last."""


def grow(job: Job, folder: Path, *lengths: int) -> None:
    """Train a job to each of these steps in turn."""
    for steps in lengths:
        assert train(job.model_copy(update={"protocol": job.protocol.but(steps=steps)}), folder)


@pytest.mark.parametrize("agent", AGENTS)
def test_more_steps_give_the_bytes_of_one_run(tmp_path: Path, agent: str) -> None:
    job = make_job(agent)
    grow(job, tmp_path / "grown", SHORT, STEPS)
    assert written(tmp_path / "grown") == uncut(job.model_dump_json())
    assert train(job, tmp_path / "whole")
    grown, whole = (
        read_state(tmp_path / f / "checkpoint" / "state.pt") for f in ("grown", "whole")
    )
    torch.testing.assert_close(grown["agent"], whole["agent"], rtol=0, atol=0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(WARMUP + 1, STEPS - 1), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(3, 60),
)
def test_any_lengths_on_the_way_give_the_bytes_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], capacity: int
) -> None:
    job = make_job("sac[hidden_sizes=[8],n_step=3]", replay_capacity=capacity)
    folder = tmp_path_factory.mktemp("grown")
    grow(job, folder, *lengths, STEPS)
    assert written(folder) == uncut(job.model_dump_json())


def run(folder: Path, steps: int, *, keep_replay: bool | None = None) -> Results:
    with patch.object(processes, "_start", ForkedJob):
        return run_experiment(
            "td3[hidden_sizes=[8]]",
            tasks="four-goals",
            protocol=PROTOCOL.but(steps=steps),
            name="there",
            seeds=range(2),
            seeds_per_job=2,
            keep_replay=keep_replay,
            results=folder,
        )


def folder_in(folder: Path) -> JobFolder:
    return next(ExperimentStore(folder, "there").job_folders())


def test_an_experiment_is_given_more_steps(tmp_path: Path) -> None:
    run(tmp_path / "grown", SHORT)
    results = run(tmp_path / "grown", STEPS)
    run(tmp_path / "whole", STEPS)
    grown, whole = folder_in(tmp_path / "grown"), folder_in(tmp_path / "whole")
    assert written(grown.path) == written(whole.path)
    manifest = grown.read_manifest()
    assert (manifest.status, manifest.step, manifest.lengths) == ("finished", STEPS, (SHORT,))
    assert [(s.first_step, s.last_step) for s in manifest.stretches] == [(0, SHORT), (SHORT, STEPS)]
    assert sorted(set(results.evaluations["step"])) == [EVAL_EVERY, 2 * EVAL_EVERY, STEPS]


def test_what_has_not_begun_to_train_on_is_read_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, SHORT)
    longer = make_experiment("td3[hidden_sizes=[8]]", steps=STEPS)
    ExperimentStore(tmp_path, "there").prepare(longer, "", keep_replay=True)
    results = load_results(tmp_path, "there")
    assert not results.damaged
    assert results.cells[0]["status"] == "pending"
    assert sorted(set(results.evaluations["step"])) == [EVAL_EVERY, SHORT]


def test_without_its_replay_buffer_a_finished_run_cannot_train_on(tmp_path: Path) -> None:
    run(tmp_path, SHORT, keep_replay=False)
    before = folder_in(tmp_path).manifest_file.read_bytes()
    with pytest.raises(UserError, match="has finished its 30 steps and its replay buffer was not"):
        run(tmp_path, STEPS)
    assert folder_in(tmp_path).manifest_file.read_bytes() == before
    run(tmp_path, SHORT, keep_replay=False)  # as long as it is: nothing is to be done


def test_fewer_steps_are_another_configuration(tmp_path: Path) -> None:
    run(tmp_path, SHORT)
    with pytest.raises(UserError, match="steps was 30 and is 20"):
        run(tmp_path, 20)


@dataclass(frozen=True)
class LaterConfig(TD3Config):
    """The settings of TD3 with one that came later."""

    later: float = 0.5


def test_a_run_of_before_a_setting_came_grows_as_it_began(tmp_path: Path) -> None:
    run(tmp_path / "grown", SHORT)
    run(tmp_path / "whole", STEPS)
    with patch.object(TD3, "config_class", LaterConfig):
        results = run(tmp_path / "grown", STEPS)
        assert not results.damaged
        assert "later" not in results.cells[0]["settings"]
    grown, whole = folder_in(tmp_path / "grown"), folder_in(tmp_path / "whole")
    assert written(grown.path) == written(whole.path)
    # Another value than the default is another configuration.
    with patch.object(TD3, "config_class", LaterConfig):
        there = grown.read_manifest().job
        asked = there.model_copy(update={"settings": {**there.settings, "later": 0.25}})
        assert as_it_began(asked, there) == asked


def test_large_replay_buffers_are_kept_only_if_asked(tmp_path: Path) -> None:
    with patch("qsm_bench.run.KEPT_BYTES", 10):
        run(tmp_path, SHORT)
        assert not folder_in(tmp_path).replay_file.exists()
        run(tmp_path / "asked", SHORT, keep_replay=True)
    assert folder_in(tmp_path / "asked").replay_file.exists()


def test_a_job_that_another_process_writes_is_not_changed(tmp_path: Path) -> None:
    run(tmp_path, SHORT)
    job_folder = folder_in(tmp_path)
    with FileLock(job_folder.lock_file), pytest.raises(UserError, match="is still written by"):
        run(tmp_path, STEPS)
    assert job_folder.read_manifest().job.protocol.steps == SHORT


def test_a_checkpoint_that_names_the_earlier_identity_is_resumed(tmp_path: Path) -> None:
    job = make_job()
    assert not train(job, tmp_path, stop_at=20)
    file = tmp_path / "checkpoint" / "state.pt"
    state = read_state(file)
    assert state["job"] == job.identity
    torch.save(state | {"job": job.earlier_identity}, file)
    assert train(job, tmp_path)
    assert written(tmp_path) == uncut(job.model_dump_json())
    assert Manifest(job=job).lengths == ()
