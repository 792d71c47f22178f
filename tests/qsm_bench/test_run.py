"""The Python entry: an experiment from first to last without the command line."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import qsm_bench
from qsm_bench import (
    Protocol,
    UserError,
    load_policy,
    load_results,
    run_experiment,
    signals,
)
from qsm_bench.checkpoint_evaluation import evaluate_job
from qsm_bench.executors import processes
from qsm_bench.results import Results
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.processes import ForkedJob, fork

PROTOCOL = Protocol(
    steps=40,
    warmup_steps=10,
    batch_size=8,
    eval_every=20,
    eval_episodes=2,
    settings={"hidden_sizes": [8]},
)


def run(folder: Path, agents: str = "td3,qsm", seeds: range = range(3, 5)) -> Results:
    with patch.object(processes, "_start", ForkedJob):
        return run_experiment(
            agents,
            tasks="four-goals",
            protocol=PROTOCOL,
            name="there",
            seeds=seeds,
            settings=["qsm.diffusion_steps=2"] if "qsm" in agents else (),
            results=folder,
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tmp_path_factory.mktemp("results"))


def test_it_trains_and_returns_what_is_on_disk(results: Results) -> None:
    assert [cell["status"] for cell in results.cells] == ["finished"] * 2
    assert sorted(set(results.evaluations["seed"])) == [3, 4]
    assert len(results.evaluations) == 2 * 2 * 2 * 2
    again = load_results(str(results.root), "there")
    assert again.evaluations.equals(results.evaluations)


def test_it_goes_on_with_what_is_there(results: Results) -> None:
    written = {file: file.stat().st_mtime_ns for file in results.root.rglob("evaluations.csv")}
    run(results.root)
    assert written == {file: file.stat().st_mtime_ns for file in written}


def test_a_report_is_written_from_the_results(results: Results, tmp_path: Path) -> None:
    page = qsm_bench.write_report(results, tmp_path / "report")
    assert page.read_text().startswith("<!doctype html>")
    assert qsm_bench.write_report(results, str(tmp_path / "report")) == page


def test_a_policy_acts_on_one_observation_or_on_several(results: Results) -> None:
    policy = load_policy(results, "td3", "four-goals", seed=4)
    environment = policy.make_environment()
    observation, _ = environment.reset(seed=0)
    one = policy(observation)
    assert one.shape == environment.action_space.shape
    assert np.abs(one).max() <= 1.0
    # TD3 has no noise: one at a time or together is the same.
    several = policy(np.stack([observation, observation]))
    np.testing.assert_allclose(several, np.stack([one, one]), rtol=1e-6)
    other = load_policy(results, "td3", "four-goals", seed=3)
    assert not np.allclose(other(observation), one)
    assert policy.step == 40


def test_what_task_or_agent_do_wrong_in_a_policy_is_a_user_error(results: Results) -> None:
    policy = load_policy(results, "td3", "four-goals", seed=4)
    with pytest.raises(UserError, match="cannot be constructed"):
        policy.make_environment(render_mode="nonsense")
    with (
        patch.object(policy._agent.bare, "act", return_value=None),
        pytest.raises(UserError, match="returned None"),
    ):
        policy(np.zeros(2))


def test_a_policy_earns_what_its_job_is_evaluated_at(results: Results) -> None:
    folders = ExperimentStore(results.root, "there").job_folders_of("td3", "four-goals")
    (folder,) = (folder for folder in folders if 4 in (folder.seeds or ()))
    returns = evaluate_job(folder, 200).returns[-1]
    policy = load_policy(results, "td3", "four-goals", seed=4)
    environment = policy.make_environment()
    earned = []
    for episode in range(200):
        observation, _ = environment.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = environment.step(policy(observation))
            total, over = total + float(reward), terminated or truncated
        earned.append(total)
    deviation = np.hypot(np.std(returns), np.std(earned)) / np.sqrt(200)
    assert abs(np.mean(returns) - np.mean(earned)) < 5 * deviation + 1e-6


def test_a_checkpoint_is_evaluated_with_another_choice_of_actions(tmp_path: Path) -> None:
    made = run(tmp_path, agents="sac", seeds=range(1))
    (folder,) = ExperimentStore(made.root, "there").job_folders_of("sac", "four-goals")
    returns = [
        evaluate_job(folder, 4, (), {"evaluation": kind}).returns for kind in ("sample", "mean")
    ]
    assert np.array_equal(returns[0], evaluate_job(folder, 4).returns)
    assert not np.array_equal(returns[0], returns[1])
    for settings, message in (
        ({"learning_rate": 0.1}, "decides what is learned, too: only evaluation and"),
        ({"evaluation": "best"}, "setting evaluation of sac: 'best' is not right"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_job(folder, 4, (), settings)
    assert folder.read_manifest().job.settings["evaluation"] == "sample"


@pytest.mark.parametrize(
    ("agent", "task", "seed", "message"),
    [
        ("sac", "four-goals", 3, "there has no agent 'sac'"),
        ("td3", "five-goals", 3, "there has no task 'five-goals': did you mean 'four-goals'"),
        ("td3", "four-goals", 0, "td3 on four-goals has no seed 0: its seeds are 3-4"),
    ],
)
def test_a_policy_that_is_not_there_is_refused(
    results: Results, agent: str, task: str, seed: int, message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load_policy(results, agent, task, seed)


@pytest.mark.parametrize("shape", [(3,), (), (1, 1, 2)])
def test_an_observation_of_another_shape_is_refused(
    results: Results, shape: tuple[int, ...]
) -> None:
    policy = load_policy(results, "td3", "four-goals", seed=4)
    with pytest.raises(UserError, match="an observation of shape"):
        policy(np.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": "nobody", "tasks": "four-goals"}, "unknown agent 'nobody'"),
        ({"agents": "td3", "tasks": "four-gaols"}, "unknown task 'four-gaols'"),
        ({"agents": "td3"}, "give either --suite"),
        ({"agents": "td3", "suite": "quik"}, "unknown suite 'quik': did you mean 'quick'"),
        ({"agents": "td3", "tasks": "four-goals", "device": "tpu"}, "--device 'tpu'"),
        (
            {"agents": "td3", "tasks": "four-goals", "compiled": "yes"},
            "compiled='yes' is not right",
        ),
        ({"agents": "td3", "tasks": "four-goals", "seeds": []}, "seeds"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": [1, 1]}, "seed 1 is named twice"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": [-1]}, "seed -1"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": 5}, "seeds=5 is not right"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": [0.5]}, "seed 0.5"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": [2**63]}, "from 0 to 2^63 - 1"),
        ({"agents": "td3", "tasks": "four-goals", "seeds": range(10**12)}, "more than 10,000"),
        ({"agents": "td3", "tasks": "four-goals", "stages": "2,4"}, "stages='2,4' is not right"),
        ({"agents": "td3", "tasks": "four-goals", "checkpoint_every": 0}, "checkpoint_every=0"),
        ({"agents": "td3", "tasks": "four-goals", "seeds_per_job": 0}, "seeds_per_job=0"),
        ({"agents": "td3", "tasks": "four-goals", "protocol": {"steps": 20_000}}, "of Protocol"),
        ({"agents": "td3", "tasks": "four-goals", "executor": "ray"}, "of Executor"),
        ({"agents": "td3", "tasks": "four-goals", "settings": "polyak=1"}, "settings='polyak=1'"),
        ({"agents": ["td3"], "tasks": "four-goals"}, "agents=['td3'] is not right"),
        ({"agents": "__main__:Mine", "tasks": "four-goals"}, "__main__"),
    ],
)
def test_what_cannot_be_run_is_a_user_error(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        run_experiment(results=tmp_path, **arguments)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_job_that_fails_is_told_and_shown(tmp_path: Path) -> None:
    class Dies(ForkedJob):
        def __init__(self, *_: object) -> None:
            self.pid, self.returncode = fork(lambda: sys.exit(1)), None

    with (
        patch.object(processes, "_start", Dies),
        pytest.warns(UserWarning, match="not finished: .*td3"),
    ):
        results = run_experiment(
            "td3", tasks="four-goals", protocol=PROTOCOL, seeds=[0], results=tmp_path
        )
    assert [cell["status"] for cell in results.cells] == ["failed"]


def test_signals_are_the_callers_own_again(tmp_path: Path) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        run(tmp_path, "td3")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_saves_and_raises_keyboard_interrupt(tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> dict[object, str]:
        # Not SIGINT: a shell starts what runs in its background so that it ignores that.
        signal.raise_signal(signal.SIGTERM)
        return {}

    with patch.object(processes, "run_locally", interrupt), pytest.raises(KeyboardInterrupt):
        run(tmp_path, "td3")
    assert signals.STOP_SIGNALS


def test_it_runs_in_a_thread(tmp_path: Path) -> None:
    found: list[Results] = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path, "td3")))
    thread.start()
    thread.join()
    assert [cell["status"] for cell in found[0].cells] == ["finished"]
