"""The floating-point operations that an update needs, from the shapes of its matrix products.

A product of [B, n] and [n, m] takes 2 B n m operations. Counted is what the mathematics asks for
and nothing else: products whose result nobody uses, element-wise work and optimizers are not in
it, so a share of the roofline computed from these numbers flatters nobody.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from agents.common.diffusion import FREQUENCIES, TIME_CODE
from agents.common.diffusion_agent import DiffusionConfig
from agents.common.mixture_entropy import EM_ROUNDS, NEAREST_ROUNDS
from agents.dacer import DACERConfig
from agents.diffusion_pg import DiffusionPGConfig
from agents.diffusion_ql import DiffusionQLConfig
from agents.dipo import DIPOConfig
from agents.dpmd import DPMDConfig
from agents.langevin import LangevinConfig
from agents.protocol import AgentConfig
from agents.qsm import QSMConfig
from agents.qvpo import QVPOConfig
from agents.sac import SACConfig
from agents.sdac import SDACConfig
from agents.td3 import TD3Config


def products(sizes: Sequence[int]) -> int:
    """Count the multiplications of one row through a multilayer perceptron."""
    return sum(a * b for a, b in itertools.pairwise(sizes))


class Work:
    """Operations of one seed's update: batch B of observations and actions of given sizes."""

    def __init__(self, config: AgentConfig, observation: int, action: int, batch: int) -> None:
        self.config = config
        self.rows = 2 * batch
        self.observation, self.action = observation, action
        self.hidden = list(config.hidden_sizes)
        code = 0
        if isinstance(config, LangevinConfig) and config.noise_levels > 1:
            code = config.noise_levels
        values = 2 if isinstance(config, DACERConfig) else 1
        self.critic_inputs = observation + code + action
        critic = [self.critic_inputs, *self.hidden, values]
        self.critic_forward = products(critic)
        self.critic_inner = products(critic[1:])
        """The operations from the value back to the first hidden layer."""
        self.critic_to_action = self.critic_inner + action * self.hidden[0]

    def per_update(self) -> float:
        """Count an update's operations: critic, actor and target together."""
        match self.config:
            case QSMConfig():
                rows = self.target() + self.score_matching()
            case DiffusionQLConfig():
                rows = self.target() + self.backpropagated_sampler()
            case DiffusionPGConfig():
                rows = self.target() + self.likelihood_ratio()
            case SDACConfig():
                rows = self.target() + self.weighted_draws(self.config)
            case QVPOConfig():
                rows = self.target() + self.imitated_best(self.config)
            case DPMDConfig():
                rows = self.target() + self.reweighted_samples(self.config)
            case LangevinConfig():
                rows = self.climbing_samples(self.config)
            case DIPOConfig():
                rows = self.target() + self.improved_actions(self.config)
            case DACERConfig():
                rows = self.target() + self.backpropagated_sampler() / self.config.policy_delay
                rows += self.entropy(self.config) / self.config.alpha_delay
            case SACConfig():
                rows = self.actor_critic(heads=2, critics=2, delay=1)
            case TD3Config():
                rows = self.actor_critic(heads=1, critics=1, delay=self.config.policy_delay)
            case _:
                raise TypeError(f"no count of operations for {type(self.config).__name__}")
        return self.rows * (rows + self.critic_update())

    def critic_update(self) -> float:
        """Count both critics forward and back to the weights, and both targets forward."""
        backward = self.critic_forward + self.critic_inner
        return 2 * (self.critic_forward + backward) + 2 * self.critic_forward

    # Diffusion policies

    @property
    def steps(self) -> int:
        assert isinstance(self.config, DiffusionConfig)
        return self.config.diffusion_steps

    @property
    def denoiser(self) -> int:
        """Count one call, with the observation's part of the first layer already there."""
        return products([self.action, *self.hidden, self.action])

    @property
    def denoiser_inner(self) -> int:
        return products([*self.hidden, self.action])

    @property
    def conditioning(self) -> int:
        return self.observation * self.hidden[0]

    @property
    def time_codes(self) -> float:
        """Count the time codes of all steps, which the whole batch shares."""
        once = products([2 * FREQUENCIES, TIME_CODE, TIME_CODE, self.hidden[0]])
        return self.steps * once / (self.rows / 2)

    def target(self) -> float:
        """Count the sampler's run for the next actions."""
        assert isinstance(self.config, DiffusionConfig)
        return self.samples(self.config.candidates_target)

    def samples(self, count: int) -> float:
        """Count the sampler's run for so many actions of a state, and the values of several."""
        values = 2 * self.critic_forward if count > 1 else 0
        shared = self.conditioning + self.time_codes
        return count * (self.steps * self.denoiser + values) + shared

    def regression(self, rows: int = 1) -> float:
        """Count a denoiser call for so many rows a state, forward and back to the weights."""
        shared = 2 * self.conditioning + 3 * self.time_codes
        return rows * (2 * self.denoiser + self.denoiser_inner) + shared

    def score_matching(self) -> float:
        """Count grad_a Q of both critics, and one denoiser call forward and back to the weights."""
        return self.ascent(1) + self.regression()

    def backpropagated_sampler(self) -> float:
        """Count the sampler forward, both critics, and the way back through every step."""
        climb = self.ascent(1)
        forward = self.steps * self.denoiser + self.conditioning + self.time_codes
        to_actions = self.steps * self.denoiser_inner + (
            (self.steps - 1) * self.action * self.hidden[0]
        )
        return climb + 2 * forward + to_actions + self.time_codes

    def likelihood_ratio(self) -> float:
        """Count K chains forward, their Q, and each step back to the weights."""
        assert isinstance(self.config, DiffusionPGConfig)
        chains = self.config.chains
        call = self.steps * (2 * self.denoiser + self.denoiser_inner)
        shared = 2 * self.conditioning + 3 * self.time_codes
        return chains * (call + 2 * self.critic_forward) + shared

    def weighted_draws(self, config: SDACConfig) -> float:
        """Count K draws' values, their gradients if asked for, and what else the settings ask."""
        draw = 2 * self.critic_forward
        if config.estimator != "noise":
            draw += 2 * self.critic_to_action
        total = config.samples * draw + self.regression()
        if config.noised_actions == "policy":
            total += self.samples(config.candidates_target)
        if config.entropy_draws:
            shared = self.conditioning + self.time_codes
            total += config.entropy_draws * self.steps * self.denoiser + shared
        return total

    def imitated_best(self, config: QVPOConfig) -> float:
        """Count the samples, their values, and the denoiser on the best and uniform actions."""
        return self.samples(config.samples) + self.regression(1 + config.uniform_samples)

    def reweighted_samples(self, config: DPMDConfig) -> float:
        """Count the samples of the copy, their values, and the denoiser on all of them."""
        return self.samples(config.samples) + self.regression(config.samples)

    # Policies without an actor

    def climbing_samples(self, config: LangevinConfig) -> float:
        """Count a sample's steps, and the critics' second regression if there are noise levels."""
        steps = config.noise_levels * self.ascent(config.langevin_steps)
        regression = 2 * (2 * self.critic_forward + self.critic_inner)
        return steps + (regression if config.noise_levels > 1 else 0)

    def ascent(self, steps: int) -> int:
        """Count so many times grad_a Q of both critics at one state."""
        state = (self.critic_inputs - self.action) * self.hidden[0]
        return 2 * (steps * (self.critic_forward - state + self.critic_to_action) + state)

    def improved_actions(self, config: DIPOConfig) -> float:
        """Count grad_a Q of both critics at each step, and the denoiser on what comes out."""
        return self.ascent(config.action_steps) + self.regression()

    def entropy(self, config: DACERConfig) -> float:
        """Count the samples that an entropy is estimated from, and the fits of a mixture to them.

        A round of a fit makes each component's means, covariances and whitened samples.
        """
        size = self.action
        rounds = NEAREST_ROUNDS + (1 + EM_ROUNDS) * (1 + size) + EM_ROUNDS * size
        shared = self.conditioning + self.time_codes
        return config.entropy_samples * (self.steps * self.denoiser + 3 * size * rounds) + shared

    # One-step policies

    def actor_critic(self, heads: int, critics: int, delay: int) -> float:
        """Count the next actions, and every ``delay``-th time the actor through so many critics."""
        actor = [self.observation, *self.hidden, heads * self.action]
        forward, inner = products(actor), products(actor[1:])
        climb = critics * (self.critic_forward + self.critic_to_action)
        return forward + (2 * forward + inner + climb) / delay


def update_flops(config: AgentConfig, observation: int, action: int, batch: int) -> float:
    """Count the floating-point operations of one seed's update."""
    return Work(config, observation, action, batch).per_update()


class ProductCounter(TorchDispatchMode):
    """Counts the operations of the matrix products that run within it."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.flops += 2 * args[0].numel() * args[1].shape[-1]
        assert name not in ("addmm", "baddbmm"), "not counted"
        return function(*args, **(kwargs or {}))
