"""The protocol: what is refused, where its fields stand, and that each of them does something."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qsm_bench.cli as cli
import qsm_bench.training as training
from envs import find_task, make, task_names
from qsm_bench.errors import UserError
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.protocol import Protocol, option
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from qsm_bench.training import Training, portions
from tests.qsm_bench.jobs import AGENTS, PROTOCOL, make_experiment, make_job, train, written

PUBLISHED = Path(__file__).parents[2] / "results" / "cartpole-swingup"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "--steps 0 is not right: input should be greater than or equal to 1"),
        ({"steps": 1.5}, "--steps 1.5 is not right"),
        ({"steps": True}, "--steps True is not right"),
        ({"steps": "9"}, "--steps '9' is not right"),
        ({"batch_size": -1}, "--batch-size -1 is not right"),
        ({"eval_episodes": 10**9}, "--eval-episodes 1000000000 is not right"),
        ({"steps": 10_000}, "--steps 10000 leaves nothing to learn after --warmup-steps 10000"),
        ({"steps": 10**9, "eval_every": 1}, "gives 1,000,000,000 evaluations"),
        ({"stepps": 3}, "a protocol has no 'stepps': its fields are steps, "),
        ({"matmul_precision": "tf32"}, "give it as settings={'matmul_precision': 'tf32'}"),
        ({"settings": 3}, "--settings 3 is not right"),
    ],
)
def test_what_is_not_right_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Protocol(**fields)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_field_is_an_option_with_its_description(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        cli.app(["run", "--help"], prog_name="qsm_bench")
    shown = "".join(c for c in capsys.readouterr().out if c.isalnum() or c in "-.,")
    for name, field in Protocol.model_fields.items():
        if name != "settings":
            assert option(name) in shown
            words = str(field.description).split()
            assert words[0] in shown
    assert "qsm,qsmalpha10,sac" in shown.replace("-", "")


def test_the_shared_settings_are_every_agents_and_in_no_label() -> None:
    experiment = make_experiment(
        "td3,sac[learning_rate=0.01],sac_reference",
        settings={"hidden_sizes": [16, 16], "n_step": 3},
    )
    assert experiment.labels == ["td3", "sac[learning_rate=0.01]", "sac_reference"]
    td3, sac, reference = (job.settings for job in experiment.jobs)
    assert td3["hidden_sizes"] == sac["hidden_sizes"] == [16, 16]
    assert (td3["n_step"], sac["n_step"], sac["learning_rate"]) == (3, 3, 0.01)
    # A preset is its source's: what the protocol says is not its own.
    assert (reference["hidden_sizes"], reference["n_step"]) == ([256, 256], 1)


@pytest.mark.parametrize("settings", [{"alpha": 3}, {"hidden_sizes": []}, {"discount": 2}])
def test_a_shared_setting_that_not_every_agent_has_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="every agent"):
        make_experiment("qsm", settings=settings)


def test_a_job_written_flat_is_the_same_job() -> None:
    job = make_job(steps=45)
    flat = job.model_dump(mode="json")
    protocol = flat.pop("protocol")
    del protocol["updates_per_step"], protocol["settings"]
    assert Job.model_validate({**flat, **protocol, "replay_capacity": 45}) == job
    less = make_job(replay_capacity=9)
    assert Job.model_validate({**flat, **protocol, "replay_capacity": 9}) == less
    assert less.identity != job.identity


def test_the_published_jobs_have_the_identities_of_their_checkpoints() -> None:
    folder = ExperimentStore(PUBLISHED.parent, PUBLISHED.name).job_folder(
        "qsm", "cartpole-swingup", (0, 1, 2)
    )
    content = json.loads(folder.manifest_file.read_text())["job"]
    if "protocol" in content:
        pytest.skip("the published manifest has been written anew")
    assert folder.read_manifest().job.protocol.replay_size == content["replay_capacity"]


def changed_jobs() -> list[Job]:
    changes: dict[str, Any] = {
        "batch_size": 9,
        "eval_every": 15,
        "eval_episodes": 3,
        "action_repeat": 2,
    }
    changes |= {"updates_per_step": 2, "replay_capacity": 12, "warmup_steps": 9, "steps": 46}
    assert {*changes} == {*Protocol.model_fields} - {"settings"}
    return [make_job(**{name: value}) for name, value in changes.items()]


def test_each_field_but_the_length_changes_the_identity() -> None:
    *others, longer = changed_jobs()
    identities = [job.identity for job in (make_job(), *others)]
    assert len(set(identities)) == len(identities)
    assert longer.protocol.steps > make_job().protocol.steps
    assert longer.identity == make_job().identity


def test_each_field_changes_what_is_written(tmp_path: Path) -> None:
    outcomes = []
    for number, job in enumerate([make_job(), *changed_jobs()]):
        assert train(job, tmp_path / str(number))
        outcomes.append(json.dumps(written(tmp_path / str(number)), default=repr))
    assert len(set(outcomes)) == len(outcomes)


@pytest.mark.parametrize("agent", AGENTS)
def test_several_updates_a_step_are_counted_and_resumed(tmp_path: Path, agent: str) -> None:
    job = make_job(agent, updates_per_step=3)
    assert train(job, tmp_path / "uncut")
    assert not train(job, tmp_path / "cut", stop_at=20)
    assert train(job, tmp_path / "cut")
    assert written(tmp_path / "cut") == written(tmp_path / "uncut")
    ended = Training(job, JobFolder(tmp_path / "cut"), checkpoint_every=10)
    assert ended.updates == 3 * (PROTOCOL.steps - PROTOCOL.warmup_steps) == job.protocol.updates
    ended.close()


@given(st.integers(1, 1_000))
def test_the_updates_of_a_step_are_made_in_portions(updates: int) -> None:
    made = list(portions(updates))
    assert sum(made) == updates
    assert len(made) == math.ceil(updates / training.AT_ONCE)
    assert 0 < min(made) <= max(made) <= training.AT_ONCE


@pytest.mark.parametrize("agent", [AGENTS[0], AGENTS[-1]])
def test_how_many_updates_are_made_at_once_is_not_seen_in_what_is_learned(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, found = make_job(agent, updates_per_step=3), []
    for at_once in (1, 2, 3):
        monkeypatch.setattr(training, "AT_ONCE", at_once)
        assert train(job, tmp_path / str(at_once))
        found.append(written(tmp_path / str(at_once)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("task", ["four-goals", "cartpole-balance", "Pendulum-v1"])
def test_an_action_is_held_on_every_kind_of_task(task: str) -> None:
    job = make_job(task=task, action_repeat=4)
    held, once = make(job.environment), make(find_task(task))
    observation, _ = held.reset(seed=3)
    np.testing.assert_array_equal(observation, once.reset(seed=3)[0])
    for value in (-0.3, 0.7):
        action = np.full(held.action_space.shape or (1,), value, np.float32)
        after, reward, *_ = held.step(action)
        steps = [once.step(action) for _ in range(4)]
        np.testing.assert_array_equal(after, steps[-1][0])
        assert float(reward) == pytest.approx(sum(float(step[1]) for step in steps))
    assert task in (*task_names(), "Pendulum-v1")
    held.close()
    once.close()


def test_a_job_alone_decides_what_is_run(tmp_path: Path) -> None:
    """Its task is made from its own fields: what the name stands for here is not looked up."""
    job = make_job(task="bimodal-bandit").model_copy(update={"task": "a-name-of-another-machine"})
    assert train(job, tmp_path)
    assert written(tmp_path)["evaluations"]


def test_the_action_repeat_stands_in_results_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = make_experiment(action_repeat=2)
    (folder,) = ExperimentStore(tmp_path / "results", "there").prepare(experiment, "")
    assert train(experiment.jobs[0], folder.path)
    assert [c["action_repeat"] for c in load_results(tmp_path / "results", "there").cells] == [2]
    cli.app(["report", "there"], standalone_mode=False)
    report = (tmp_path / "reports" / "there" / "report.md").read_text()
    assert "| action_repeat | 2 |" in report
    assert "repeated for 2 environment steps" in report
