"""Critics of known form in the place of learned ones, and the agents' formulas written plainly."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agents.common.diffusion import Denoiser
from agents.common.diffusion_agent import ActionNoise, Noise
from agents.common.optimizer import FIRST_DECAY, Adam
from agents.protocol import Batch

CPU = torch.device("cpu")
AgentT = TypeVar("AgentT", bound=Any)
Value = Callable[[Tensor, Tensor], Tensor]
"""Q(s, a): ([S, B, obs], [S, B, act]) -> [S, B]."""


class FixedCritic(nn.Module):
    """Twin critics that are two known functions, the same for every seed."""

    def __init__(self, first: Value, second: Value | None = None) -> None:
        super().__init__()
        self.values = (first, second or first)
        # The target network's update needs a parameter to move.
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.stack([value(observation, action) for value in self.values])

    def at_observation(self, observation: Tensor, twins: int = 2) -> Callable[[Tensor], Tensor]:
        return lambda action: self(observation, action)[:twins]


class NoOptimizer:
    """An optimizer that counts its updates and changes nothing."""

    def __init__(self) -> None:
        self.updates = 0

    def minimize(self, loss: Tensor) -> Tensor:
        self.updates += 1
        return torch.zeros_like(loss)

    descend = minimize


def fix_critic(agent: Any, first: Value, second: Value | None = None) -> None:
    """Make known functions the agent's critic, for good."""
    agent.critic = agent.target_critic = FixedCritic(first, second)
    agent.critic_optimizer = NoOptimizer()


def first_gradients(optimizer: Adam) -> list[Tensor]:
    """Return the gradients of an optimizer's first step; its first moments are a tenth of them."""
    assert optimizer.updates == 1
    return [moment / (1 - FIRST_DECAY) for moment in optimizer.first_moments]


def in_float64(agent: AgentT) -> AgentT:
    """Convert the agent's networks and noise schedule to float64, and return the agent."""
    for part in (getattr(agent, name) for name in agent.parts):
        if isinstance(part, nn.Module):
            part.double()
        elif isinstance(part, Adam):
            for moments in (part.first_moments, part.second_moments):
                moments[:] = [moment.double() for moment in moments]
    if hasattr(agent, "schedule"):
        abar = plain_schedule(agent.config.diffusion_steps, agent.config.schedule)[1]
        agent.schedule.abar = torch.tensor(
            abar, dtype=torch.float64, device=agent.schedule.abar.device
        )
    return agent


def doubled(noise: Any) -> Any:
    """Return a tensor, or a named tuple of them, with its real numbers in float64."""
    if isinstance(noise, tuple):
        return type(noise)(*map(doubled, noise))
    real = isinstance(noise, Tensor) and noise.is_floating_point()
    return noise.double() if real else noise


def central_differences(
    agent: Any, batch: Batch, noise: Any, gradient: Sequence[Tensor]
) -> Iterator[tuple[float, float]]:
    """Along four random directions: the ``gradient`` of the actor's loss, and its differences."""
    parameters, h = list(agent.denoiser.parameters()), 1e-6
    for _ in range(4):
        direction = [torch.randn_like(p) for p in parameters]
        values = []
        for distance in (h, -2 * h, h):
            with torch.no_grad():
                for parameter, step in zip(parameters, direction, strict=True):
                    parameter.add_(distance * step)
            values.append(agent.actor_loss(batch, noise)[0].sum().item())
        along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        yield along, (values[0] - values[1]) / (2 * h)


def perturb(network: nn.Module, scale: float = 0.3) -> None:
    """Add noise to every parameter, so that a network differs from the one it is a copy of."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def tensors(state: Any) -> list[Tensor]:
    """Return the tensors of a nested state, in its order."""
    return [value for value in pytree.tree_leaves(state) if isinstance(value, Tensor)]


def make_batch(
    seeds: int, size: int, observation_size: int, action_size: int, dtype: torch.dtype
) -> Batch:
    """Draw uniform actions, normal observations and rewards, and some terminations."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, size, *shape, dtype=dtype)

    return Batch(
        observation=normal(observation_size),
        action=2 * torch.rand(seeds, size, action_size, dtype=dtype) - 1,
        reward=normal(),
        discount=0.99 * (normal() > -1).to(dtype),
        next_observation=normal(observation_size),
        number=torch.arange(size).repeat(seeds, 1),
    )


def plain_schedule(steps: int, kind: str = "vp") -> tuple[list[float], list[float]]:
    """Return alpha_t and abar_t for t = 0..T."""

    def cosine(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha = [1.0]
    for t in range(1, steps + 1):
        if kind == "vp":
            alpha.append(math.exp(-0.1 / steps - (10 - 0.1) * (2 * t - 1) / (2 * steps**2)))
        elif kind == "cosine":
            alpha.append(max(cosine(t) / cosine(t - 1), 0.001))
        else:
            share = (t - 1) / (steps - 1) if steps > 1 else 0.0
            alpha.append(1 - 0.8 * (1e-4 + share * (0.999 - 1e-4)))
    return alpha, [math.prod(alpha[: t + 1]) for t in range(steps + 1)]


def plain_mean(action: Tensor, predicted: Tensor, t: int, steps: int) -> Tensor:
    """Return mu = (a^t - beta_t / sqrt(1 - abar_t) e) / sqrt(alpha_t)."""
    alpha, abar = plain_schedule(steps)
    return (action - (1 - alpha[t]) / math.sqrt(1 - abar[t]) * predicted) / math.sqrt(alpha[t])


def plain_sample(denoiser: Denoiser, steps: int, observation: Tensor, noise: Tensor) -> Tensor:
    """Run a^{t-1} = clip(mu + [t > 1] sqrt(beta_t) z, -1, 1) from a^T = noise[:, 0]."""
    alpha, _ = plain_schedule(steps)
    denoise = denoiser.at_observation(observation)
    action = noise[:, 0]
    for t in range(steps, 0, -1):
        action = plain_mean(action, denoise(action, t), t, steps)
        if t > 1:
            action = action + math.sqrt(1 - alpha[t]) * noise[:, steps + 1 - t]
        action = action.clamp(-1, 1)
    return action


def plain_critic_loss(
    agent: Any, batch: Batch, next_action: Tensor, bonus: Tensor | float = 0.0
) -> Tensor:
    """Return both critics' squared error against R_n + g^n m (min_i Qbar_i + bonus), [S]."""
    first, second = agent.critic(batch.observation, batch.action)
    one, two = agent.target_critic(batch.next_observation, next_action)
    y = batch.reward + batch.discount * (torch.minimum(one, two) + bonus)
    loss: Tensor = (first - y).square().mean(dim=-1) + (second - y).square().mean(dim=-1)
    return loss


def assert_critic_learns_as_written(agent: Any, next_denoiser: Denoiser | None = None) -> None:
    """Check that the critic has the target of the text, and that its target network follows."""
    in_float64(agent)
    perturb(agent.target_critic)
    batch = make_batch(2, 16, 3, 2, torch.float64)
    steps = agent.config.diffusion_steps
    chain = torch.randn(2, steps, 16, 2, dtype=torch.float64)
    exploration = 3 * torch.randn(2, 16, 2, dtype=torch.float64)
    noise = Noise(ActionNoise(chain, exploration), doubled(agent.draw_actor_noise(16)))
    with torch.no_grad():
        next_action = plain_sample(
            next_denoiser or agent.denoiser, steps, batch.next_observation, chain
        )
        next_action = (next_action + 0.1 * exploration).clamp(-1, 1)
        expected = plain_critic_loss(agent, batch, next_action)
    old_target = [p.clone() for p in agent.target_critic.parameters()]
    old_critic = [p.clone() for p in agent.critic.parameters()]

    metrics = agent.pure_update(batch, noise)

    torch.testing.assert_close(metrics["critic_loss"], expected)
    for target, old, new, before in zip(
        agent.target_critic.parameters(),
        old_target,
        agent.critic.parameters(),
        old_critic,
        strict=True,
    ):
        assert not torch.equal(new, before)
        torch.testing.assert_close(target, 0.995 * old + 0.005 * new)
