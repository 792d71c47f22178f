"""Diffusion-QL's actor against finite differences through the whole sampler, and its settings."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.diffusion_ql import ActorNoise, DiffusionQL, DiffusionQLConfig
from tests.agents.fixed_critics import (
    CPU,
    assert_critic_learns_as_written,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    perturb,
    plain_sample,
    plain_schedule,
)


def build(**settings: Any) -> DiffusionQL:
    config = DiffusionQLConfig(**{"hidden_sizes": (16, 16), **settings})
    return in_float64(DiffusionQL(config, 3, 2, (0, 1), CPU))


def wave(observation: Tensor, action: Tensor) -> Tensor:
    return (2 * action + observation[..., :2]).sin().sum(dim=-1)


def bowl(observation: Tensor, action: Tensor) -> Tensor:
    return 0.5 - (action - 0.3).square().sum(dim=-1)


def draw(agent: DiffusionQL, size: int) -> ActorNoise:
    noise: ActorNoise = doubled(agent.draw_actor_noise(size))
    return noise


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), list(module.parameters())))


def shifted(module: nn.Module, direction: list[Tensor], distance: float) -> None:
    with torch.no_grad():
        for parameter, step in zip(module.parameters(), direction, strict=True):
            parameter.add_(distance * step)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("scale", [0.02, 1.0], ids=["inside the box", "clipped"])
def test_gradient_is_the_central_difference_of_the_whole_samplers_value(
    steps: int, scale: float
) -> None:
    agent = build(diffusion_steps=steps)
    # The smaller of two critics that cross.
    fix_critic(agent, wave, bowl)
    with torch.no_grad():
        for parameter in agent.denoiser.rest.layers[-1].parameters():
            parameter.mul_(scale)
    batch = make_batch(2, 64, 3, 2, torch.float64)
    noise = draw(agent, 64)
    noise = noise._replace(chain=scale * noise.chain)
    loss, _ = agent.actor_loss(batch, noise)
    ours = gradients(loss, agent.denoiser)

    def value() -> tuple[Tensor, Tensor, Tensor]:
        action = plain_sample(agent.denoiser, steps, batch.observation, noise.chain)
        twins = torch.stack([wave(batch.observation, action), bowl(batch.observation, action)])
        return twins.amin(dim=0).mean(dim=-1), action.abs() == 1, twins.argmin(dim=0)

    with torch.no_grad():
        center, clipped, _ = value()
        torch.testing.assert_close(loss, -center)
        assert clipped.any() == (scale == 1.0)
        assert not clipped.all()
        h = 1e-6
        for _ in range(6):
            direction = [torch.randn_like(p) for p in agent.denoiser.parameters()]
            shifted(agent.denoiser, direction, h)
            above, *kinks_above = value()
            shifted(agent.denoiser, direction, -2 * h)
            below, *kinks_below = value()
            shifted(agent.denoiser, direction, h)
            # No sample crosses a kink between the two points.
            for one, other in zip(kinks_above, kinks_below, strict=True):
                assert torch.equal(one, other)
            difference = -(above - below).sum() / (2 * h)
            along = torch.stack([(g * d).sum() for g, d in zip(ours, direction, strict=True)]).sum()
            assert along.item() == pytest.approx(difference.item(), rel=1e-5, abs=1e-7)


def test_a_clipped_entry_has_no_gradient_and_any_other_has_one_through_every_step() -> None:
    agent = build(diffusion_steps=3)
    batch = make_batch(2, 64, 3, 2, torch.float64)
    noise = draw(agent, 64).chain.requires_grad_()
    action = agent.policy.sample(batch.observation, noise)
    clipped = action.abs() == 1
    (of_clipped,) = torch.autograd.grad(action[clipped].sum(), noise, retain_graph=True)
    (of_free,) = torch.autograd.grad(action[~clipped].sum(), noise)
    both_clipped = clipped.all(dim=-1)
    assert both_clipped.any()
    by_sample = of_clipped.transpose(1, 2)[both_clipped]
    assert (by_sample == 0).all()
    # Rows 0, 1 and 2 are a^T and the noise of steps 3 and 2.
    assert all((of_free[:, row] != 0).any() for row in range(3))


def test_the_random_critic_is_divided_by_the_others_mean_size_held_constant() -> None:
    agent = build(climbed="random")
    q = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    pick = torch.tensor([0, 1])
    value = agent.climbed_value(q, pick)
    (gradient,) = torch.autograd.grad(value.sum(), q)
    for seed, (picked, other) in enumerate([(0, 1), (1, 0)]):
        size = q[other, seed].abs().mean()
        torch.testing.assert_close(value[seed], q[picked, seed] / size)
        expected = (1 / size).detach().expand(8)
        torch.testing.assert_close(gradient[picked, seed], expected)
        assert (gradient[other, seed] == 0).all()


def test_both_critics_are_picked_about_equally_often() -> None:
    agent = build()
    picks = torch.stack([agent.draw_actor_noise(1).pick for _ in range(400)]).double()
    assert set(picks.unique().tolist()) == {0.0, 1.0}
    # The standard error of each share is 0.5 / sqrt(400) = 0.025.
    assert (picks.mean(dim=0) - 0.5).abs().max() < 5 * 0.025


@pytest.mark.parametrize("steps", [1, 4])
def test_cloning_loss_is_added_with_its_weight(steps: int) -> None:
    agent = build(diffusion_steps=steps, cloning_weight=2.5)
    online = build(diffusion_steps=steps)
    batch = make_batch(2, 16, 3, 2, torch.float64)
    noise = draw(agent, 16)

    abar = torch.tensor(plain_schedule(steps)[1], dtype=torch.float64)[noise.t].unsqueeze(-1)
    noised = abar.sqrt() * batch.action + (1 - abar).sqrt() * noise.cloning
    predicted = agent.denoiser(batch.observation, noised, noise.t)
    cloning = (predicted - noise.cloning).square().mean(dim=(1, 2))
    loss, _ = agent.actor_loss(batch, noise)
    plain, _ = online.actor_loss(batch, noise)
    torch.testing.assert_close(loss, plain + 2.5 * cloning, rtol=1e-6, atol=1e-7)
    for whole, climbing, cloned in zip(
        gradients(loss, agent.denoiser),
        gradients(plain, online.denoiser),
        gradients(2.5 * cloning, agent.denoiser),
        strict=True,
    ):
        torch.testing.assert_close(whole, climbing + cloned, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ema_target", [False, True])
def test_critic_learns_as_written(ema_target: bool) -> None:
    agent = build(ema_target=ema_target)
    perturb(agent.denoiser)
    assert (agent.target_denoiser is agent.denoiser) != ema_target
    assert_critic_learns_as_written(agent, agent.target_denoiser)


def test_ema_target_is_a_polyak_average_of_the_actor() -> None:
    agent = DiffusionQL(
        DiffusionQLConfig((16, 16), ema_target=True, polyak=0.25), 3, 2, (0, 1), CPU
    )
    perturb(agent.denoiser)
    old = [p.clone() for p in agent.target_denoiser.parameters()]
    agent.update(make_batch(2, 16, 3, 2, torch.float32))
    for average, before, actor in zip(
        agent.target_denoiser.parameters(), old, agent.denoiser.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * actor)


def test_the_actor_leaves_the_critic_alone() -> None:
    agent = build()
    before = [p.clone() for p in agent.critic.parameters()]
    batch = make_batch(2, 16, 3, 2, torch.float64)
    agent.actor_optimizer.minimize(agent.actor_loss(batch, draw(agent, 16))[0])
    for parameter, old in zip(agent.critic.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
