"""A built-in trainer is named in one place: its line in ``agents.registry.BUILT_IN``."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from agents import registry
from qsm_bench import regression
from tests.benchmarks import gate
from tests.qsm_bench.test_cli import call


@pytest.fixture(autouse=True)
def sixth(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the one line to the list of built-in trainers."""
    path = "tests.sixth_trainer:Sixth"
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, path))
    registry.built_in_agents.cache_clear()
    yield
    registry.built_in_agents.cache_clear()


def test_a_sixth_trainer_is_listed_and_described() -> None:
    lines = call("list", "agents").out.splitlines()
    assert {"sixth", "sixth_slow"} <= {line.split()[0] for line in lines}
    assert call("describe", "sixth").out.startswith("sixth: tests.sixth_trainer:Sixth")


def test_the_regression_trains_it_on_every_small_task_with_its_own_settings() -> None:
    delays, noises = {}, {}
    for experiment in regression.experiments([0]):
        for job in experiment.jobs:
            if job.agent_name == "sixth":
                settings = dict(job.settings)
                delays[experiment.name] = settings["policy_delay"]
                noises[experiment.name] = settings["target_noise"]
                assert list(settings["hidden_sizes"]) == [64, 64]
    assert delays == {task.name: 3 for task in regression.SMALL_TASKS}
    assert noises == {"bimodal-bandit": 0.2, "four-goals": 0.1, "linear-quadratic": 0.2}


def test_the_speed_gate_watches_it() -> None:
    watched = [text for text, *_ in gate.ratios() if text.startswith("sixth,")]
    assert len(watched) == 1


def test_the_settings_for_small_tasks_are_settings_of_their_trainer() -> None:
    for name in registry.built_in_trainers():
        agent = registry.find_agent(name).agent
        for settings in getattr(agent, "small_task_settings", {}).values():
            assert set(settings) <= set(asdict(agent.config_class()))
