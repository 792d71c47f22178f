"""What was asked for: parsing agents and settings, labels, resolution per task."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.registry import registered_agents
from envs import TaskError
from qsm_bench.errors import UserError, user_errors
from qsm_bench.experiment import Experiment, parse_agents, parse_settings
from qsm_bench.protocol import Protocol
from tests.qsm_bench.jobs import make_experiment, make_job


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("qsm,sac,td3", ["qsm", "sac", "td3"]),
        (
            "qsm,qsm[alpha=10],qsm[diffusion_steps=20]",
            ["qsm", "qsm[alpha=10]", "qsm[diffusion_steps=20]"],
        ),
        ("qsm[ hidden_sizes=[512,512] , alpha=1e1 ]", ["qsm[alpha=10,hidden_sizes=[512,512]]"]),
        ("qsm[hidden_sizes=[32]]", ["qsm[hidden_sizes=[32]]"]),
        ("sac[evaluation=mean]", ["sac[evaluation=mean]"]),
        ("qsm_reference", ["qsm_reference"]),
    ],
)
def test_agents_are_read_and_labeled(text: str, labels: list[str]) -> None:
    assert make_experiment(text).labels == labels


def test_a_label_reads_back_as_the_same_agent() -> None:
    for job in make_experiment("qsm[alpha=10,hidden_sizes=[8,8],target_scale=noised],td3").jobs:
        assert make_job(job.agent) == job


@given(st.floats(1e-6, 1e6))
def test_a_set_option_is_a_bracket(alpha: float) -> None:
    (inside,) = parse_agents(f"qsm[alpha={alpha}]")
    _, settings = parse_settings([f"qsm.alpha={alpha}"])
    assert parse_agents("qsm", settings) == (inside,)
    assert make_job(f"qsm[alpha={alpha}]").settings["alpha"] == alpha


def test_the_sources_settings_for_a_task_hold_unless_overridden() -> None:
    tasks = ("cartpole-swingup", "quadruped-walk", "humanoid-walk", "humanoid-run")
    jobs = make_experiment("qsm,qsm[alpha=10],qsm_reference", tasks).jobs
    alpha = {(job.agent, job.task): job.settings["alpha"] for job in jobs}
    # The source says it of two alone, and does not set it: its own configuration has 50.
    assert [alpha["qsm", task] for task in tasks] == [50.0, 120.0, 120.0, 50.0]
    assert alpha["qsm_reference", "quadruped-walk"] == 50.0
    assert alpha["qsm[alpha=10]", "quadruped-walk"] == 10.0


def test_every_agent_resolves_and_has_documented_settings() -> None:
    from qsm_bench.describe import describe_agent

    for name in registered_agents():
        text = describe_agent(name)
        assert "not documented" not in text
        assert "Settings:" in text


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("qms", [], "unknown agent 'qms': did you mean 'qsm"),
        ("qsm[aplha=1]", [], "qsm has no setting 'aplha': did you mean 'alpha"),
        ("qsm[alpha=-1]", [], "setting alpha of qsm: -1 is not right: input should be greater"),
        ("qsm[alpha=ten]", [], "setting alpha of qsm: 'ten' is not right"),
        ("qsm[alpha=inf]", [], "alpha of qsm: inf is not a finite number"),
        ("qsm[diffusion_steps=2.5]", [], "setting diffusion_steps of qsm: 2.5 is not right"),
        ("qsm[hidden_sizes=[]]", [], "setting hidden_sizes of qsm"),
        ("qsm[hidden_sizes=[16,0]]", [], "setting hidden_sizes of qsm"),
        ("qsm[target_scale=large]", [], "setting target_scale of qsm: 'large' is not right"),
        ("qsm[alpha]", [], "'alpha' is not of the form setting=value"),
        ("qsm[alpha=1", [], "write it as name or name"),
        ("", [], "--agents is empty"),
        (",", [], "--agents is empty"),
        ("qsm", ["sac.alpha=1"], "agent 'sac' is not in --agents"),
        ("qsm", ["alpha=1"], "every agent has no setting 'alpha'"),
        ("qsm", ["learning_rate=0"], "learning_rate of every agent: 0 is not right"),
        ("qsm", ["qsm.alpha=1", "qsm.alpha=2"], "qsm.alpha is given as 1 and as 2: give one"),
        ("qsm[alpha=1,alpha=2]", [], "alpha is given as 1 and as 2: give one of them"),
        ("qsm", ["polyak=0.1", "polyak=0.2"], "polyak is given as 0.1 and as 0.2: give one"),
        ("qsm", [".alpha=1"], "write it as agent.setting=value"),
        ("qsm", ["qsm.alpha"], "write it as agent.setting=value"),
        ("diffusion_pg[chains=1]", [], "baseline leave_one_out needs chains >= 2"),
        ("sac[log_std_min=3]", [], "log_std_min"),
    ],
)
def test_wrong_agents_and_settings_are_one_clear_line(
    text: str, settings: list[str], message: str
) -> None:
    with pytest.raises(user_errors()) as caught:
        prepare_run(text, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_before_the_bracket_is_no_part_of_the_name() -> None:
    (entry,) = parse_agents("qsm [alpha=10]", {"qsm": {"n_step": 3}})
    assert entry.overrides == {"alpha": 10, "n_step": 3}


def prepare_run(agents: str, settings: list[str]) -> None:
    shared, own = parse_settings(settings)
    Experiment("x", parse_agents(agents, own), ("four-goals",), ((0,),), Protocol(settings=shared))


@given(st.text(alphabet="qsm[]=,.()0 alph", max_size=20))
def test_no_text_at_all_is_a_traceback(text: str) -> None:
    try:
        make_experiment(text)
    except user_errors() as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "experiment name '../x'"),
        ({"name": ""}, "experiment name ''"),
        ({"agents": "qsm,qsm"}, "agent 'qsm' is named twice"),
        ({"tasks": ("cartpole-swingup",) * 2}, "task 'cartpole-swingup' is named twice"),
        ({"steps": 8}, "--steps 8 leaves nothing to learn"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make_experiment(**changes)


def test_an_unknown_task_is_refused_with_its_neighbors() -> None:
    with pytest.raises(
        TaskError, match="unknown task 'cartpole-swngup': did you mean 'cartpole-sw"
    ):
        make_experiment(tasks=("cartpole-swngup",))
