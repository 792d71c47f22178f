"""The best of N samples: in evaluation, and where diffusion trainers act and learn."""

import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from agents.common.networks import TwinCritic
from agents.registry import find_agent
from tests.agents.fixed_critics import CPU, fix_critic, make_batch

SEEDS, OBS, ACT = (0, 1), 3, 2
DIFFUSION = ("qsm", "diffusion_ql", "diffusion_pg", "sdac", "qvpo", "dipo", "dacer", "dpmd")
RANDOM = (*DIFFUSION, "langevin", "sac")


def build(name: str, **settings: Any) -> Any:
    agent = find_agent(name).agent
    config = agent.config_class(**{"hidden_sizes": (16, 16), **settings})
    return agent(config, OBS, ACT, SEEDS, CPU)


def first_entry(observation: Tensor, action: Tensor) -> Tensor:
    return action[..., 0]


def test_the_best_of_64_uniform_actions_lies_a_65th_from_the_optimum() -> None:
    agent = build("sac")
    fix_critic(agent, lambda s, a: -(a[..., 0] - 0.3).abs())
    count = 5000
    candidates = 2 * torch.rand(2, 64 * count, 1) - 1
    best = agent.best_action(torch.zeros(2, count, OBS), candidates)
    assert best.shape == (2, count, 1)
    # The standard deviation of each distance is 1/65, too.
    assert (best - 0.3).abs().mean().item() == pytest.approx(1 / 65, abs=5 / 65 / 100)


@pytest.mark.parametrize("count", [1, 4, 32])
def test_the_best_of_n_has_the_nth_power_of_the_policys_distribution(count: int) -> None:
    """So its density is N pi F^(N-1), with F the distribution of Q of one sample."""
    agent = build("sac")
    fix_critic(agent, first_entry)
    rows = 20_000
    candidates = torch.randn(2, count * rows, 1)
    best = agent.best_action(torch.zeros(2, rows, OBS), candidates).flatten().sort().values
    found = torch.arange(1, 2 * rows + 1) / (2 * rows)
    # Kolmogorov's distance of 40,000 draws is above this once in a thousand.
    assert (found - torch.special.ndtr(best) ** count).abs().max() < 1.95 / math.sqrt(2 * rows)


def test_the_smaller_of_both_critics_decides() -> None:
    agent = build("sac")
    fix_critic(agent, first_entry, lambda s, a: -a[..., 0])
    candidates = torch.tensor([-0.9, -0.1, 0.5]).view(1, 3, 1).expand(2, -1, -1)
    assert (agent.best_action(torch.zeros(2, 1, OBS), candidates) == -0.1).all()


@pytest.fixture
def no_critic() -> Iterator[None]:
    """Let any call of a critic fail."""
    with patch.object(TwinCritic, "forward", side_effect=AssertionError):
        yield


@pytest.mark.usefixtures("no_critic")
@pytest.mark.parametrize("name", [n for n in RANDOM if n != "langevin"])  # its samples climb one
def test_one_candidate_asks_no_critic(name: str) -> None:
    agent = build(name, **({"candidates_act": 1} if name in DIFFUSION else {}))
    for explore in (True, False):
        agent.act(torch.zeros(2, 4, OBS), explore=explore)


@pytest.mark.parametrize("name", RANDOM)
def test_an_evaluation_takes_the_best_of_its_samples(name: str) -> None:
    agent, one = build(name, candidates_evaluate=8), build(name)
    for each in (agent, one):
        fix_critic(each, first_entry)
    observation = torch.randn(2, 4, OBS)
    best = agent.act(observation, explore=False)
    # Sample k of observation b is drawn as if observation k B + b were there.
    samples = one.act(observation.repeat(1, 8, 1), explore=False).view(2, 8, 4, ACT)
    torch.testing.assert_close(best[..., 0], samples[..., 0].amax(dim=1))
    assert (best[..., 1] != samples[..., 1].amax(dim=1)).any()


@pytest.mark.parametrize("name", RANDOM)
def test_how_it_is_evaluated_does_not_change_training(name: str) -> None:
    agent, one = build(name, candidates_evaluate=8), build(name)
    for _ in range(2):
        batch = make_batch(2, 8, OBS, ACT, torch.float32)
        agent.act(torch.zeros(2, 4, OBS), explore=False)
        ours, theirs = agent.update(batch), one.update(batch)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        observation = torch.ones(2, 1, OBS)
        mine, its = (each.act(observation, explore=True) for each in (agent, one))
        assert torch.equal(mine, its)


@pytest.mark.parametrize("name", [n for n in DIFFUSION if n != "sdac"])  # it has one for both
def test_the_next_action_is_the_target_critics_best_and_the_executed_one_the_critics(
    name: str,
) -> None:
    agent = build(name, candidates_target=8, candidates_act=8, exploration_noise=1e-9)
    observation = torch.randn(2, 16, OBS)
    fix_critic(agent, first_entry)
    target = agent.critic
    fix_critic(agent, lambda s, a: -a[..., 0])
    agent.target_critic = target
    noise = agent.draw_critic_noise(16)
    assert noise.chain.shape[2] == 8 * noise.exploration.shape[1] == 8 * 16
    sampled = agent.policy.sample(observation, noise.chain).view(2, 8, 16, ACT)[..., 0]
    next_action = agent.next_action(observation, noise)[..., 0]
    torch.testing.assert_close(next_action, sampled.amax(dim=1))

    executed = agent.act(observation, explore=True)[..., 0]
    low, high = sampled.amin(dim=1).mean(), sampled.mean()
    assert (executed.mean() - low).abs() < (executed.mean() - high).abs()


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_average_acts_where_it_is_asked_to(name: str) -> None:
    observation = torch.randn(2, 4, OBS)
    for settings in ({"ema_acts": True}, {"ema_target": True}, {}):
        agent, fresh = build(name, polyak=1e-9, **settings), build(name, **settings)
        for _ in range(3):
            agent.update(make_batch(2, 16, OBS, ACT, torch.float32))
        # The average has hardly moved, and the actor has.
        acts_as_before = torch.allclose(
            agent.act(observation, explore=False),
            fresh.act(observation, explore=False),
            atol=1e-5,
        )
        assert acts_as_before == ("ema_acts" in settings)
        assert ("target_denoiser" in agent.state_dict()) == bool(settings)
        noise = fresh.draw_critic_noise(4)
        same = torch.allclose(
            agent.next_action(observation, noise), fresh.next_action(observation, noise), atol=1e-5
        )
        assert same == ("ema_target" in settings)


def test_candidates_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="needs evaluation=sample"):
        build("sac", evaluation="mean", candidates_evaluate=2)
