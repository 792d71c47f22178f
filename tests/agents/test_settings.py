"""Every setting does something, or its configuration says that it does not, and it is refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from agents.protocol import AgentConfig
from agents.registry import built_in_agents, built_in_trainers, find_agent
from qsm_bench.errors import UserError
from qsm_bench.experiment import parse_agents
from tests.agents.test_every_agent import OBS, OFTEN, batches, build, tensors

ELSEWHERE = {"discount", "n_step", "matmul_precision"}
"""Settings of the replayed batch, and one that not every machine can change."""
SEEN: Mapping[str, Mapping[str, Any]] = {
    **OFTEN,
    "qvpo": {"uniform_decay_updates": 3},
    "sac": {"log_std_min": -0.1},
    "td3": {"target_noise": 2.0, "target_noise_clip": 1.5},
}
"""Values at which other settings are seen in a few updates."""
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in built_in_trainers()),
    ("examples.best_of_n:BestOfN", {}),
    ("examples.langevin_score:LangevinScore", {}),
    ("qsm", {"target_scale": "noised"}),
    ("qsm", {"target_scale": "normalized"}),
    ("qvpo", {"uniform_samples": 0}),
    ("qvpo", {"uniform_decay_updates": 0}),
    ("langevin", {"noise_levels": 2}),
    ("langevin", {"normalize_gradient": True}),
    ("sac", {"evaluation": "mean"}),
    ("td3", {"policy_delay": 1}),
    ("td3", {"target_noise": 0.0}),
]


def other(value: Any, hint: Any) -> Any:
    """Another value of a setting, far enough from its own to be seen in a few updates."""
    literals = [
        choice
        for part in get_args(hint)
        if get_origin(part) is Literal
        for choice in get_args(part)
    ]
    if literals:
        return next(choice for choice in literals if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 100 else 2
    if isinstance(value, tuple):
        return (*value, 8)
    return value / 2 if value else 0.01


def behavior(name: str, settings: dict[str, Any]) -> list[Tensor]:
    """What an agent does in a few updates: its actions, of either kind, and its state."""
    agent = build(name, (0,), **{**SEEN.get(name, {}), **settings})
    observation = 10 * torch.randn(1, 16, OBS, generator=torch.Generator().manual_seed(2))
    done = []
    for batch in batches(4, seeds=1):
        agent.update(batch)
        done += [agent.act(observation, explore=explore) for explore in (True, False)]
    return done + list(tensors(agent.state_dict()).values())


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_setting_has_an_effect_or_is_said_to_have_none(
    name: str, settings: dict[str, Any]
) -> None:
    config_class = find_agent(name).agent.config_class
    hints = get_type_hints(config_class, include_extras=True)
    usual = behavior(name, settings)
    assert same(usual, behavior(name, settings))
    without = set()
    for field in fields(config_class):
        if field.name in ELSEWHERE | settings.keys():
            continue
        value = SEEN.get(name, {}).get(field.name, field.default)
        try:
            changed = behavior(name, settings | {field.name: other(value, hints[field.name])})
        except ValueError:  # refused by the configuration itself
            continue
        if same(usual, changed):
            without.add(field.name)
    config: AgentConfig = config_class(**settings)
    assert without == set(config.without_effect)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (
            "qsm[temperature=0.01]",
            "setting temperature of qsm: 0.01 has no effect: it needs target_scale=normalized",
        ),
        (
            "qsm_normalized[alpha=10]",
            "setting alpha of qsm_normalized: 10 has no effect: it needs target_scale=alpha or "
            "target_scale=noised",
        ),
        (
            "td3[candidates_evaluate=10]",
            "setting candidates_evaluate of td3: 10 has no effect: the policy has one action for "
            "each observation",
        ),
    ],
)
def test_a_setting_without_effect_is_refused_in_one_line(agents: str, message: str) -> None:
    """Its column would be that without it, and a report would say that it does not matter."""
    (entry,) = parse_agents(agents)
    with pytest.raises(UserError) as refused:
        entry.config("four-goals", {})
    assert str(refused.value) == message


@pytest.mark.parametrize("name", built_in_agents())
def test_no_preset_and_no_setting_of_a_task_is_refused(name: str) -> None:
    """What the user did not ask for may be without effect: qsm_normalized on humanoid-walk."""
    (entry,) = parse_agents(name)
    for task in ("humanoid-walk", "four-goals"):
        entry.config(task, {"actor_learning_rate": 1e-3, "candidates_evaluate": 2})
