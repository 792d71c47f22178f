"""DACER's noise and its regulator against closed forms, its critics and actor against formulas."""

import copy
import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.common.diffusion_agent import ActionNoise
from agents.dacer import DACER, CriticNoise, DACERConfig
from agents.protocol import Batch
from agents.speed.acceleration import accelerate
from agents.speed.toolchain import why_not_compiled
from tests.agents.fixed_critics import (
    CPU,
    central_differences,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    plain_sample,
    plain_schedule,
    tensors,
)

SEEDS = (0, 1)
REST = math.exp(-0.9) / math.sqrt(2 * math.pi * math.e)
"""c alpha, where the regulator rests if a collapsed policy's entropy is exact."""


def build(action_size: int = 2, **settings: Any) -> DACER:
    config = DACERConfig(**{"hidden_sizes": (16, 16), **settings})
    return DACER(config, 3, action_size, SEEDS, CPU)


def wave(observation: Tensor, action: Tensor) -> Tensor:
    return (2 * action + observation[..., :1]).sin().sum(dim=-1)


def bowl(observation: Tensor, action: Tensor) -> Tensor:
    return 0.5 - (action - 0.3).square().sum(dim=-1)


def collapse(agent: DACER, place: float) -> None:
    """Let the policy have one action at all states, but for noise."""

    def sample(observation: Tensor, noise: Tensor, draw: Any = None) -> Tensor:
        return torch.full_like(noise[:, 0], place)

    agent.policy = agent.acting_policy = SimpleNamespace(sample=sample)  # type: ignore[assignment]


def set_alpha(agent: DACER, alpha: float) -> None:
    with torch.no_grad():
        agent.alpha["log"].fill_(math.log(alpha))


# The regulator


def test_the_point_of_rest_has_its_number() -> None:
    assert pytest.approx(0.0984, abs=5e-5) == REST


@pytest.mark.parametrize("actions", [1, 6, 21])
@pytest.mark.parametrize("excess", [0.0, math.log(3)])
def test_the_noise_takes_its_path_and_comes_to_rest_whatever_is_learned(
    actions: int, excess: float
) -> None:
    """With the exact entropy of a collapsed policy, at one step of alpha in 10,000 updates.

    An estimate may be log 3 above it: where one Gaussian is split into three equal ones.
    """
    agent = build(actions)
    path = []
    for _ in range(200):
        noise = 0.1 * agent.noise_scale()
        path.append(noise[0].item())
        agent.move_alpha(actions * (noise * math.sqrt(2 * math.pi * math.e)).log() + excess)
    if not excess:
        # At 0, 100,000, 250,000 and 500,000 updates.
        found = [path[updates // 10_000] for updates in (0, 100_000, 250_000, 500_000)]
        assert found == pytest.approx([0.30, 0.22, 0.15, 0.10], abs=0.005)
    assert path[-1] == pytest.approx(REST / math.exp(excess / actions), abs=1e-3)


@pytest.mark.parametrize(
    ("actions", "place", "rest"),
    [
        (1, 0.0, 0.057),
        (2, 0.0, 0.074),
        (6, 0.0, 0.098),
        (21, 0.0, 0.110),
        (2, 1.0, 1.0),
        (6, 1.0, 0.25),
        (21, 1.0, 0.20),
    ],
)
def test_the_estimate_moves_the_point_of_rest(actions: int, place: float, rest: float) -> None:
    """Below it the entropy is short of its target and above it is not: one mode, or a corner."""
    agent = build(actions)
    collapse(agent, place)
    observation = torch.zeros(2, 16 if actions > 6 else 48, 3)
    width = 1.5 if place and actions == 2 else 1.1
    surpluses = []
    for noise in (rest / width, rest * width):
        set_alpha(agent, noise / 0.1)
        surpluses.append((agent.entropy(observation) + 0.9 * actions).mean().item())
    assert surpluses[0] < 0 < surpluses[1]


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0, 3.0, 30.0])
def test_a_single_action_on_a_bound_never_has_the_entropy_that_is_asked_for(noise: float) -> None:
    agent = build(1)
    collapse(agent, 1.0)
    set_alpha(agent, noise / 0.1)
    assert agent.entropy(torch.zeros(2, 32, 3)).max() < -0.9 - 0.5


def test_each_states_entropy_is_of_its_own_actions() -> None:
    """Collapsed at another place in each state: taken together they would have more."""
    agent = build(2, initial_alpha=0.5)
    apart = torch.tensor([-0.6, -0.2, 0.2, 0.6] * 5)
    observation = apart.view(1, -1, 1).expand(2, -1, 3)

    def sample(states: Tensor, noise: Tensor, draw: Any) -> Tensor:
        copies = noise.shape[2] // states.shape[1]
        return states[..., :2].repeat(1, copies, 1)

    agent.policy = SimpleNamespace(sample=sample)  # type: ignore[assignment]
    found = agent.entropy(observation)
    collapse(agent, 0.0)
    torch.testing.assert_close(found, agent.entropy(observation), rtol=0, atol=0.15)


def test_the_noise_grows_where_the_entropy_is_short_and_each_seed_has_its_own() -> None:
    agent = build(2)
    agent.move_alpha(torch.tensor([-3.0, 1.0]))
    moved = agent.noise_scale().log() - math.log(3)
    torch.testing.assert_close(moved, torch.tensor([0.03, -0.03]), rtol=0, atol=1e-6)


# Actions


@pytest.mark.parametrize("alpha", [3.0, 0.5])
def test_noise_is_scaled_where_it_trains_and_absent_where_it_is_evaluated(alpha: float) -> None:
    agent = build(2, initial_alpha=alpha)
    collapse(agent, 0.1)
    observation = torch.zeros(2, 5000, 3)
    evaluated = agent.act(observation, explore=False)
    torch.testing.assert_close(evaluated, torch.full_like(evaluated, 0.1))
    noise = agent.act(observation, explore=True) - 0.1
    # Of 20,000 draws; what is cut at the bounds is three deviations away.
    assert noise.square().mean().sqrt().item() == pytest.approx(0.1 * alpha, rel=0.03)


def test_one_alpha_scales_the_executed_the_next_and_the_graded_action() -> None:
    agent = build(2, initial_alpha=2.0)
    batch = make_batch(2, 8, 3, 2, torch.float32)
    noise = agent.draw_critic_noise(8)
    clean = agent.policy.sample(batch.next_observation, noise.chain)
    wanted = (clean + 0.1 * 2.0 * noise.exploration).clamp(-1, 1)
    torch.testing.assert_close(agent.next_action(batch.next_observation, noise), wanted)
    graded: list[Tensor] = []

    def record(observation: Tensor, action: Tensor) -> Tensor:
        graded.append(action)
        return action.sum(dim=-1)

    fix_critic(agent, record)
    agent.actor_loss(
        batch._replace(observation=batch.next_observation),
        ActionNoise(noise.chain, noise.exploration),
    )
    torch.testing.assert_close(graded[0], wanted)


# The actor


def test_the_loss_is_the_smaller_value_at_the_noisy_action() -> None:
    agent = in_float64(build(diffusion_steps=3))
    fix_critic(agent, wave, bowl)
    batch, noise = make_batch(2, 16, 3, 2, torch.float64), doubled(agent.draw_actor_noise(16))
    action = plain_sample(agent.denoiser, 3, batch.observation, noise.chain)
    action = (action + 0.1 * 3.0 * noise.exploration).clamp(-1, 1)
    smaller = torch.minimum(wave(batch.observation, action), bowl(batch.observation, action))
    loss, _ = agent.actor_loss(batch, noise)
    torch.testing.assert_close(loss, -smaller.mean(dim=-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [
        {"diffusion_steps": 1},
        {"diffusion_steps": 5},
        {"diffusion_steps": 20, "sampler": "x0_clip", "variance": "posterior"},
    ],
)
def test_the_gradient_is_the_central_difference_through_the_whole_sampler(
    settings: dict[str, Any],
) -> None:
    agent = in_float64(build(**settings))
    fix_critic(agent, wave, bowl)
    batch, noise = make_batch(2, 32, 3, 2, torch.float64), doubled(agent.draw_actor_noise(32))
    loss, _ = agent.actor_loss(batch, noise)
    ours = torch.autograd.grad(loss.sum(), list(agent.denoiser.parameters()))
    assert max(g.abs().max().item() for g in ours) > 1e-3
    for along, difference in central_differences(agent, batch, noise, ours):
        assert along == pytest.approx(difference, rel=1e-5, abs=1e-7)


class LinearDenoiser(nn.Module):
    """eps = W s, for any noisy action."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def at_observation(self, observation: Tensor, copies: int = 1) -> Any:
        return lambda action, t: observation @ self.weight


@pytest.mark.parametrize("sampler", ["eps_clip", "x0_clip"])
def test_with_one_step_of_a_linear_denoiser_it_is_ddpgs(sampler: str) -> None:
    """dL / dW = -mean grad_a Q(s, a) da/de s^T at a = (a^1 - sqrt(1 - abar_1) W s) / sqrt(abar_1),
    and 0 where it leaves the box."""
    agent = in_float64(build(diffusion_steps=1, sampler=sampler, exploration_noise=1e-12))
    fix_critic(agent, wave)
    weight = 0.01 * torch.randn(2, 3, 2, dtype=torch.float64)
    linear = LinearDenoiser(weight)
    agent.policy = type(agent.policy)(linear, agent.schedule)  # type: ignore[arg-type]
    batch, noise = make_batch(2, 64, 3, 2, torch.float64), doubled(agent.draw_actor_noise(64))
    abar = plain_schedule(1)[1][1]
    noise = noise._replace(chain=math.sqrt(abar) * 0.7 * noise.chain)
    loss, _ = agent.actor_loss(batch, noise)
    (found,) = torch.autograd.grad(loss.sum(), [linear.weight])

    slope = -math.sqrt(1 - abar) / math.sqrt(abar)
    action = noise.chain[:, 0] / math.sqrt(abar) + slope * (batch.observation @ weight)
    inside = (action.abs() <= 1).double()
    assert 0 < inside.mean() < 1
    climb = 2 * (2 * action.clamp(-1, 1) + batch.observation[..., :1]).cos() * inside
    wanted = -slope * batch.observation.mT @ climb / 64
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_actor_leaves_the_critic_alone() -> None:
    agent = build()
    before = [p.clone() for p in agent.critic.parameters()]
    batch = make_batch(2, 16, 3, 2, torch.float32)
    agent.actor_optimizer.minimize(agent.actor_loss(batch, agent.draw_actor_noise(16))[0])
    assert all(map(torch.equal, before, agent.critic.parameters()))


# The critics


def one_step(size: int, width: float) -> Batch:
    """Rewards a_1 + noise of the deviation ``width``, at the end of an episode of one state."""
    state = torch.zeros(2, size, 3)
    action = 2 * torch.rand(2, size, 2) - 1
    noise = width * math.sqrt(3) * (2 * torch.rand(2, size) - 1)
    return Batch(state, action, action[..., 0] + noise, torch.zeros(2, size), state)


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_in_one_step_the_mean_is_the_rewards_and_the_deviation_its_noises(width: float) -> None:
    agent = build(hidden_sizes=(32,), diffusion_steps=1, policy_delay=10**9)
    for update in range(800):
        agent.critic_optimizer.learning_rate = 2e-2 * (1 - update / 800)
        agent.update(one_step(256, width))
    test = one_step(2000, 0.0)
    mean, deviation = agent.critic.distribution(test.observation, test.action)
    assert (mean - test.reward).square().mean().sqrt() < 0.1 * width + 0.02
    assert deviation.mean().item() == pytest.approx(width, rel=0.05)


@pytest.mark.parametrize("discount", [0.9, 0.5])
def test_a_backup_without_noise_shrinks_the_deviation_by_the_discount(discount: float) -> None:
    """The gradient is 0 at g times the target's deviation, but for draws that end at 3."""
    agent = in_float64(build(action_size=1))
    batch = make_batch(2, 50_000, 3, 1, torch.float64)
    reward = torch.zeros(2, 50_000, dtype=torch.float64)
    batch = batch._replace(reward=reward, discount=torch.full_like(reward, discount))
    noise = CriticNoise(
        torch.zeros(2, 5, 50_000, 1).double(),
        torch.zeros(2, 50_000, 1).double(),
        torch.randn(2, 50_000, dtype=torch.float64),
    )
    place = torch.ones(2, 2, 50_000, dtype=torch.float64)
    agent.target_critic = SimpleNamespace(distribution=lambda s, a: (2 * place, 0.4 * place))  # type: ignore[assignment]
    slopes = []
    for share in (0.95, 1.0, 1.05):
        deviation = (share * discount * 0.4 * place).requires_grad_()
        law = discount * 2 * place, deviation
        agent.critic = SimpleNamespace(distribution=lambda s, a, law=law: law)  # type: ignore[assignment]
        loss, _ = agent.critic_loss(batch, noise)
        slopes.append(torch.autograd.grad(loss.sum(), deviation)[0].sum().item())
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 0.4 * min(-slopes[0], slopes[2])


def test_where_all_is_certain_the_deviation_vanishes() -> None:
    agent = build(hidden_sizes=(32,), diffusion_steps=1, learning_rate=1e-2, polyak=0.1)
    deviations = []
    for _ in range(400):
        batch = one_step(64, 0.0)
        batch = batch._replace(discount=torch.full((2, 64), 0.5), reward=torch.ones(2, 64))
        deviations.append(agent.update(batch)["q_deviation"].max().item())
    assert deviations[0] > 0.5
    assert deviations[-1] < 0.1


def test_the_spread_is_the_first_batchs_and_then_follows() -> None:
    agent = build(polyak=0.25)
    now = torch.rand(2, 2, 8)
    torch.testing.assert_close(agent.moved_spread(now), now.mean(dim=-1, keepdim=True))
    later = torch.rand(2, 2, 8)
    wanted = (0.75 * now + 0.25 * later).mean(dim=-1, keepdim=True)
    torch.testing.assert_close(agent.moved_spread(later), wanted)
    torch.testing.assert_close(agent.critic_spread["mean"].view(2, 2, 1), wanted)


def test_a_reward_unit_is_the_authors_reward_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit 5 on rewards r, and unit 1 on r / 5: the same networks; values are 5 times as large."""
    monkeypatch.setattr("agents.common.optimizer.EPSILON", 1e-25)
    one, five = in_float64(build(reward_unit=1.0)), in_float64(build(reward_unit=5.0))
    for _ in range(4):
        batch = make_batch(2, 16, 3, 2, torch.float64)
        noise = [doubled(one.draw_critic_noise(16)), doubled(one.draw_actor_noise(16))]
        small = batch._replace(reward=batch.reward / 5)
        for agent, own in ((one, small), (five, batch)):
            agent.critic_optimizer.minimize(agent.critic_loss(own, noise[0])[0])
            agent.actor_optimizer.minimize(agent.actor_loss(own, noise[1])[0])
    for part in ("critic", "denoiser"):
        pairs = zip(getattr(one, part).parameters(), getattr(five, part).parameters(), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs)
    q = one.action_value(batch.observation, batch.action)
    torch.testing.assert_close(5 * q, five.action_value(batch.observation, batch.action))


# What happens when


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_at_every_delayed_update_only(delay: int) -> None:
    agent = build(policy_delay=delay, ema_target=True)
    batch = make_batch(2, 16, 3, 2, torch.float32)
    slow = [getattr(agent, part) for part in ("denoiser", "target_denoiser", "target_critic")]
    for update in range(1, 7):
        before = copy.deepcopy([*slow, agent.critic])
        metrics = agent.update(batch)
        moved = [
            not any(map(torch.equal, was.parameters(), now.parameters()))
            for was, now in zip(before, [*slow, agent.critic], strict=True)
        ]
        assert moved[-1]
        assert moved[:-1] == [update % delay == 0] * 3
        assert ("actor_loss" in metrics) == (update % delay == 0)


def test_alpha_moves_when_it_is_due_only() -> None:
    agent = build(alpha_delay=3, entropy_samples=10)
    batch = make_batch(2, 16, 3, 2, torch.float32)
    for update in range(1, 8):
        before = agent.noise_scale()
        metrics = agent.update(batch)
        torch.testing.assert_close(metrics["alpha"], before)
        due = update % 3 == 0
        assert ("entropy" in metrics) == due
        assert (agent.noise_scale() != before).all() == due


@pytest.mark.parametrize("done", [1, 2, 3])
def test_the_schedule_goes_on_after_loading_bit_for_bit(done: int) -> None:
    settings: dict[str, Any] = {"policy_delay": 2, "alpha_delay": 3, "entropy_samples": 20}
    first = build(**settings)
    batches = [make_batch(2, 16, 3, 2, torch.float32) for _ in range(done + 7)]
    for batch in batches[:done]:
        first.update(batch)
    second = DACER(DACERConfig((16, 16), **settings), 3, 2, (5, 6), CPU)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for update, batch in enumerate(batches[done:], start=done + 1):
        ours, theirs = first.update(batch), second.update(batch)
        assert ours.keys() == theirs.keys()
        assert ("actor_loss" in ours, "entropy" in ours) == (update % 2 == 0, update % 3 == 0)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    pairs = zip(tensors(first.state_dict()), tensors(second.state_dict()), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)


@pytest.mark.parametrize("poison", [1.0, float("nan")])
def test_no_seeds_data_reaches_another_seeds_entropy_or_alpha(poison: float) -> None:
    agents = [build(alpha_delay=2, entropy_samples=20) for _ in range(2)]
    for _ in range(4):
        batch = make_batch(2, 16, 3, 2, torch.float32)
        spoiled = Batch(*(torch.cat([x[:1], x[1:] + poison]) for x in batch if x is not None))
        metrics = [a.update(b) for a, b in zip(agents, (batch, spoiled), strict=True)]
        for key in metrics[0]:
            assert torch.equal(metrics[0][key][0], metrics[1][key][0]), key
    one, other = (agent.noise_scale() for agent in agents)
    assert one[0] == other[0]


def test_a_seed_alone_has_the_entropies_and_alphas_it_has_beside_others() -> None:
    together = build(alpha_delay=2, entropy_samples=20)
    alone = DACER(DACERConfig((16, 16), alpha_delay=2, entropy_samples=20), 3, 2, (1,), CPU)
    for _ in range(4):
        batch = make_batch(2, 16, 3, 2, torch.float32)
        ours = together.update(batch)
        mine = alone.update(Batch(*(x[1:] for x in batch if x is not None)))
        for key in mine:
            torch.testing.assert_close(mine[key], ours[key][1:], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.skipif(why_not_compiled() is not None, reason=why_not_compiled() or "it compiles")
def test_a_compiled_update_has_the_alpha_that_has_moved_since_it_was_compiled() -> None:
    settings: dict[str, Any] = {"alpha_delay": 1, "alpha_learning_rate": 0.5, "entropy_samples": 20}
    plain, compiled = build(**settings), build(**settings)
    accelerate(compiled, CPU, seeds=2, compiled=True)
    for _ in range(6):
        batch = make_batch(2, 16, 3, 2, torch.float32)
        ours, theirs = plain.update(batch), compiled.update(batch)
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-2, atol=1e-3, msg=key)
    assert (plain.noise_scale() / 3).log().abs().min() > 1


# The rest


def test_its_own_samples_climb_the_critic() -> None:
    agent = build(1, hidden_sizes=(32, 32), exploration_noise=0.03, policy_delay=1)
    fix_critic(agent, bowl)

    def distance() -> float:
        action = agent.act(torch.zeros(2, 2000, 3), explore=False)
        return (action - 0.3).abs().mean().item()

    before = distance()
    for _ in range(400):
        batch = make_batch(2, 64, 3, 1, torch.float32)
        agent.actor_optimizer.minimize(agent.actor_loss(batch, agent.draw_actor_noise(64))[0])
    assert distance() < 0.1 < before


def test_the_loss_asks_for_no_randomness() -> None:
    assert DACER.effective_temperature(DACERConfig(), {"alpha": 3.0}) == 0.0


@pytest.mark.parametrize("name", DACER.presets)
def test_a_reference_preset_spells_out_every_choice(name: str) -> None:
    assert set(DACER.presets[name]) | {"matmul_precision"} == {f.name for f in fields(DACERConfig)}
