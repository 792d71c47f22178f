"""The hooks of ``DiffusionAgent``: a trainer that overrides each of them is what it says."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from agents.common.diffusion import DiffusionPolicy
from agents.common.diffusion_agent import ActionNoise, DiffusionAgent, DiffusionConfig
from agents.common.optimizer import polyak_update
from agents.protocol import AgentConfig, Batch
from agents.speed import seed_by_seed
from agents.speed.acceleration import accelerate
from agents.speed.compiled_function import CompiledFunction
from agents.speed.seed_by_seed import SeedBySeed
from agents.speed.toolchain import why_not_compiled
from tests.agents.fixed_critics import CPU, fix_critic, make_batch, tensors

SEEDS, OBS, ACT, BATCH, CANDIDATES = (3, 4), 3, 2, 16, 8


class CriticNoise(NamedTuple):
    action: ActionNoise
    target: Tensor


class Hooked(DiffusionAgent[DiffusionConfig]):
    """The best of K candidates of an averaged actor, a target with noise, an absolute error."""

    name = "hooked"
    promises_pure_update = True
    config_class: ClassVar[type[AgentConfig]] = DiffusionConfig
    parts = (*DiffusionAgent.parts, "average")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.average_policy = DiffusionPolicy(self.average, self.schedule)

    def draw_critic_noise(self, batch_size: int) -> CriticNoise:
        return CriticNoise(
            self.draw_action_noise(CANDIDATES * batch_size, self.update_stream),
            self.update_stream.normal(batch_size),
        )

    def critic_loss(self, batch: Batch, noise: CriticNoise) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            next_action = self.next_action(batch.next_observation, noise.action)
            next_q = self.target_critic(batch.next_observation, next_action).mean(dim=0)
            target = batch.reward + batch.discount * next_q + 0.1 * noise.target
        error = (self.critic(batch.observation, batch.action) - target).abs()
        return error.mean(dim=-1).sum(dim=0), {"error": error.detach().amax(dim=(0, 2))}

    def next_action(self, observation: Tensor, noise: ActionNoise) -> Tensor:
        return self.best(observation, noise, self.average_policy, self.target_critic)

    def draw_actor_noise(self, batch_size: int) -> Tensor:
        return self.update_stream.normal(batch_size, ACT)

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = self.denoiser(batch.observation, batch.action + noise, 1)
        return (predicted - noise).square().mean(dim=(1, 2)), {}

    def after_update(self, metrics: dict[str, Tensor]) -> None:
        polyak_update(self.average, self.denoiser, 0.25)

    def pure_training_action(self, observation: Tensor, noise: ActionNoise) -> Tensor:
        action = self.policy.sample(observation, noise.chain)
        return self.chosen(observation, action, self.critic)

    def pure_evaluation_action(self, observation: Tensor, noise: Tensor) -> Tensor:
        action = self.policy.sample(observation, noise)
        return action.view(-1, CANDIDATES, observation.shape[1], ACT).amax(dim=1)

    def best(
        self,
        observation: Tensor,
        noise: ActionNoise,
        policy: DiffusionPolicy,
        critic: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The candidate of the highest value, [S, B, act]."""
        action = self.exploring_action(policy, observation, noise)
        return self.chosen(observation, action, critic)

    def chosen(
        self,
        observation: Tensor,
        action: Tensor,
        critic: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The action of the highest value among candidates [S, K B, act]."""
        q = critic(observation.repeat(1, CANDIDATES, 1), action).amin(dim=0)
        rows = observation.shape[1]
        chosen = q.view(-1, CANDIDATES, rows).argmax(dim=1).view(-1, 1, rows, 1)
        candidates = action.view(-1, CANDIDATES, rows, ACT)
        return candidates.gather(1, chosen.expand(-1, -1, -1, ACT)).squeeze(1)


def build(seeds: tuple[int, ...] = SEEDS) -> Hooked:
    config = DiffusionConfig(
        hidden_sizes=(12, 10), candidates_act=CANDIDATES, candidates_evaluate=CANDIDATES
    )
    return Hooked(config, OBS, ACT, seeds, CPU)


def batches(count: int) -> list[Batch]:
    torch.manual_seed(0)
    return [make_batch(len(SEEDS), BATCH, OBS, ACT, torch.float32) for _ in range(count)]


def test_the_critics_loss_is_the_trainers_own_with_its_own_noise_and_metrics() -> None:
    agent, (batch,) = build(), batches(1)
    noise = agent.draw_critic_noise(BATCH)
    expected, _ = agent.critic_loss(batch, noise)
    again = build()
    metrics = again.update(batch)
    torch.testing.assert_close(metrics["critic_loss"], expected.detach())
    assert list(metrics) == ["critic_loss", "actor_loss", "actor_gradient_norm", "error"]


def test_the_target_takes_the_best_candidate_of_the_average() -> None:
    agent = build()
    fix_critic(agent, lambda s, a: a[..., 0])
    noise = agent.draw_critic_noise(BATCH).action
    observation = torch.randn(len(SEEDS), BATCH, OBS)
    candidates = agent.exploring_action(agent.average_policy, observation, noise)
    by_candidate = candidates.view(len(SEEDS), CANDIDATES, BATCH, ACT)
    best = agent.next_action(observation, noise)
    assert torch.equal(best[..., 0], by_candidate[..., 0].amax(dim=1))
    assert (best[..., 1] != by_candidate[..., 1].amax(dim=1)).any()


def test_candidate_k_of_observation_b_is_in_row_k_b_plus_b() -> None:
    agent = build()
    observation = torch.randn(len(SEEDS), 5, OBS)
    noise = agent.draw_action_noise(3 * 5, agent.update_stream)
    together = agent.policy.sample(observation, noise.chain)
    for k in range(3):
        alone = agent.policy.sample(observation, noise.chain[:, :, 5 * k : 5 * k + 5])
        torch.testing.assert_close(together[:, 5 * k : 5 * k + 5], alone)


def test_executing_and_evaluating_have_a_hook_and_a_stream_each() -> None:
    agent, other = build(), build()
    fix_critic(agent, lambda s, a: a[..., 0])
    fix_critic(other, lambda s, a: -a[..., 0])
    observation = torch.randn(len(SEEDS), 4, OBS)
    high, low = (each.act(observation, explore=True) for each in (agent, other))
    assert (high[..., 0] > low[..., 0]).all()
    highest = agent.act(observation, explore=False)
    again = build()
    noise = again.sample_stream.normal(again.config.diffusion_steps, CANDIDATES * 4, ACT)
    samples = again.policy.sample(observation, noise).view(len(SEEDS), CANDIDATES, 4, ACT)
    assert torch.equal(highest, samples.amax(dim=1))
    assert not highest.requires_grad


def test_what_comes_after_an_update_sees_the_moved_actor() -> None:
    agent, (batch,) = build(), batches(1)
    old = [p.clone() for p in agent.average.parameters()]
    agent.update(batch)
    triples = list(zip(agent.average.parameters(), old, agent.denoiser.parameters(), strict=True))
    assert any(not torch.equal(before, actor) for _, before, actor in triples)
    for average, before, actor in triples:
        torch.testing.assert_close(average, 0.75 * before + 0.25 * actor)


def assert_same_as_plain(fast: Hooked) -> None:
    plain = build()
    for batch in batches(4):
        expected, metrics = plain.update(batch), fast.update(batch)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-4)
    pairs = zip(tensors(plain.state_dict()), tensors(fast.state_dict()), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


def test_an_update_with_every_hook_runs_seed_by_seed() -> None:
    fast = build()
    fast.pure_update = SeedBySeed(fast, len(SEEDS), lambda one: one.pure_update)  # type: ignore[assignment]
    assert_same_as_plain(fast)


@pytest.mark.slow
@pytest.mark.skipif(why_not_compiled() is not None, reason="nothing can be compiled here")
@pytest.mark.parametrize("in_turn", [False, True])
def test_an_update_with_every_hook_is_compiled(
    in_turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_turn:
        monkeypatch.setattr(seed_by_seed, "LARGE", 0)
    fast = build()
    accelerate(fast, CPU, seeds=len(SEEDS), compiled=True)
    assert isinstance(fast.pure_update, SeedBySeed if in_turn else CompiledFunction)
    assert_same_as_plain(fast)
