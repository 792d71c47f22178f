"""What every agent promises: shapes, bounds, seed isolation, exact state, purity of the update."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from agents.protocol import Agent, Batch
from agents.registry import AgentError, built_in_agents, find_agent

CPU = torch.device("cpu")
OBS, ACT, BATCH = 4, 2, 16
TRAINERS = [name for name in built_in_agents() if "reference" not in name]
AGENTS = [*TRAINERS, "examples.best_of_n:BestOfN", "examples.langevin_score:LangevinScore"]
OFTEN: Mapping[str, Mapping[str, Any]] = {
    "dacer": {"alpha_delay": 2, "entropy_samples": 20},
    "dpmd": {"copy_updates": 2},
}
"""What an agent does once in thousands of updates is among the few that are tried here."""


def build(name: str, seeds: tuple[int, ...] = (0, 1, 2), **settings: Any) -> Any:
    registered = find_agent(name)
    asked: Mapping[str, Any] = {
        "hidden_sizes": (16, 16),
        **OFTEN.get(name, {}),
        **registered.preset,
        **settings,
    }
    return registered.agent(registered.agent.config_class(**asked), OBS, ACT, seeds, CPU)


def random_batch(generator: torch.Generator, seeds: int = 3) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, BATCH, *shape, generator=generator)

    return Batch(
        observation=normal(OBS),
        action=normal(ACT).tanh(),
        reward=normal(),
        discount=0.99 * (normal() > -1).float(),
        next_observation=normal(OBS),
        number=torch.arange(BATCH).repeat(seeds, 1),
    )


def batches(count: int, seeds: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [random_batch(generator, seeds) for _ in range(count)]


def tensors(state: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {path: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        name: tensor
        for key, value in items
        if isinstance(value, Tensor | dict | list)
        for name, tensor in tensors(value, f"{path}/{key}").items()
    }


def seed_rows(agent: Agent, seed: int, seeds: int) -> dict[str, Tensor]:
    """Return every learned tensor's rows that belong to a seed (twin critics have 2 S rows)."""
    return {
        name: tensor[seed::seeds]
        for name, tensor in tensors(agent.state_dict()).items()
        if tensor.dim() > 0 and tensor.is_floating_point() and tensor.shape[0] % seeds == 0
    }


@pytest.mark.parametrize("name", AGENTS)
def test_actions_have_their_shape_and_stay_in_the_box(name: str) -> None:
    agent = build(name)
    for explore in (True, False):
        action = agent.act(10 * torch.randn(3, 5, OBS), explore=explore)
        assert action.shape == (3, 5, ACT)
        assert action.abs().max() <= 1.0
        assert not action.requires_grad


@pytest.mark.parametrize("name", AGENTS)
def test_update_moves_every_seeds_networks_and_reports_a_number_per_seed(name: str) -> None:
    agent = build(name)
    before = [copy.deepcopy(seed_rows(agent, s, 3)) for s in range(3)]
    for batch in batches(2):
        metrics = agent.update(batch)
    for key, value in metrics.items():
        assert value.shape == (3,), key
        assert value.isfinite().all(), key
    for s in range(3):
        after = seed_rows(agent, s, 3)
        for part in ("critic", "target_critic", "actor" if "actor" in after else "denoiser"):
            names = [n for n in after if n.startswith(f"/{part}/")]
            assert all(not torch.equal(after[n], before[s][n]) for n in names), part


@pytest.mark.parametrize("poison", [1.0, float("nan")])
@pytest.mark.parametrize("name", AGENTS)
def test_no_seeds_data_reaches_another_seed(name: str, poison: float) -> None:
    # Check 7: bit for bit, for shifted data and for data that are no numbers at all.
    clean, perturbed = build(name), build(name)
    for batch in batches(4):
        clean.update(batch)
        shifted = copy.deepcopy(batch)
        for field in shifted:
            assert field is not None
            field[1] += poison if field.is_floating_point() else 1
        perturbed.update(shifted)
        observation = torch.ones(3, 1, OBS)
        one, other = clean.act(observation, explore=True), perturbed.act(observation, explore=True)
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    for s in (0, 2):
        rows, others = seed_rows(clean, s, 3), seed_rows(perturbed, s, 3)
        assert len(rows) > 20
        for key in rows:
            assert torch.equal(rows[key], others[key]), key
    changed = seed_rows(perturbed, 1, 3)
    assert any(not torch.equal(v, changed[k]) for k, v in seed_rows(clean, 1, 3).items())


@pytest.mark.parametrize("name", TRAINERS)
def test_no_pure_update_is_given_the_numbers_of_transitions(name: str) -> None:
    """So they cost an agent nothing that does not ask for them."""
    agent = build(name)
    pure_update, given = agent.pure_update, []

    def watched(batch: Batch, *noise: Any) -> Any:
        given.append(batch)
        return pure_update(batch, *noise)

    agent.pure_update = watched
    (batch,) = batches(1)
    agent.update(batch)
    assert given == [batch._replace(number=None)]


@pytest.mark.parametrize("name", AGENTS)
def test_a_seed_learns_alone_what_it_learns_beside_others(name: str) -> None:
    together, alone = build(name, (0, 1, 2)), build(name, (1,))
    for batch in batches(3):
        together.update(batch)
        alone.update(tree_map(lambda field: field[1:2], batch))
    mine = seed_rows(alone, 0, 1)
    for key, rows in seed_rows(together, 1, 3).items():
        torch.testing.assert_close(rows, mine[key], rtol=2e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", AGENTS)
def test_a_restored_agent_goes_on_bit_for_bit(name: str) -> None:
    first = build(name)
    for batch in batches(3):
        first.update(batch)
    state = copy.deepcopy(first.state_dict())
    second = build(name, (5, 6, 7))
    second.load_state_dict(state)
    for batch in batches(3):
        ours, theirs = first.update(batch), second.update(batch)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        for explore in (True, False):
            observation = torch.ones(3, 2, OBS)
            assert torch.equal(
                first.act(observation, explore=explore), second.act(observation, explore=explore)
            )


@pytest.mark.parametrize("name", AGENTS)
def test_evaluating_does_not_change_training(name: str) -> None:
    evaluated, plain = build(name), build(name)
    for batch in batches(3):
        evaluated.act(torch.ones(3, 4, OBS), explore=False)
        ours, theirs = evaluated.update(batch), plain.update(batch)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        observation = torch.ones(3, 1, OBS)
        assert torch.equal(
            evaluated.act(observation, explore=True), plain.act(observation, explore=True)
        )


def test_unknown_agents_are_named_with_their_neighbors() -> None:
    with pytest.raises(AgentError, match="unknown agent 'qms': did you mean 'qsm"):
        find_agent("qms")
    with pytest.raises(AgentError, match="no module named 'nowhere'"):
        find_agent("nowhere:Agent")
    with pytest.raises(AgentError, match=r"agents\.common\.networks has no 'Agent'"):
        find_agent("agents.common.networks:Agent")
    with pytest.raises(AgentError, match="does not keep the protocol: it lacks name"):
        find_agent("agents.common.networks:MLP")


@pytest.mark.parametrize("name", AGENTS)
def test_the_actors_step_size_is_its_own_where_one_is_given(name: str) -> None:
    agent = build(name, actor_learning_rate=1e-30)
    before = copy.deepcopy(tensors(agent.state_dict()))
    for batch in batches(2):  # TD3's actor moves at every second update
        agent.update(batch)
    after = tensors(agent.state_dict())
    moved = {path.split("/")[1] for path in before if not torch.equal(after[path], before[path])}
    assert "critic" in moved
    assert not moved & {"actor", "denoiser"}


@pytest.mark.parametrize("name", [n for n in built_in_agents() if n.endswith("_reference")])
def test_a_reference_preset_spells_out_every_choice(name: str) -> None:
    """So that it stays what the source has, whatever becomes of a default."""
    registered = find_agent(name)
    uniform = {"qvpo_reference", "dipo_reference"}  # torch's own
    weights = "uniform" if name in uniform else "xavier"
    assert registered.preset["initialization"] == weights
    # What the preset leaves out has no effect beside what it says, or is the machine's matter.
    unused = {"temperature"} if name == "qsm_reference" else set()
    unused |= {"matmul_precision"}
    fields = {field.name for field in dataclasses.fields(registered.agent.config_class)}
    assert fields - set(registered.preset) == unused
