"""What a trainer is: the methods that every agent has, the batch it learns from, its settings.

The seed axis S leads every tensor: S independent learners with S separate replay buffers run as
one batched program, and S = 1 is not a special case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from agents.common.streams import SeedStreams

StateDict = dict[str, Any]
"""Tensors, numbers, strings, booleans and None in nested dicts, lists and tuples.

That is what ``torch.load(weights_only=True)`` reads; anything else is refused.
"""

NamedSettings = Mapping[str, Mapping[str, Any]]
"""Settings by the name of a preset, or by a pattern of task names."""

Initialization = Literal["uniform", "xavier"]
"""The kinds of initial weights: see ``AgentConfig.initialization``."""

MatmulPrecision = Literal["float32", "bfloat16", "tf32"]
"""The precisions of matrix products: see ``AgentConfig.matmul_precision``."""


class Batch(NamedTuple):
    """A batch of replayed transitions, B for each of S seeds.

    ``reward`` and ``discount`` already hold the n-step return, so no agent computes one:
    the target of every critic is ``reward + discount * value(next_observation)``.
    """

    observation: Tensor
    """The observation, [S, B, obs] float32."""
    action: Tensor
    """The action taken there, [S, B, act] float32 in [-1, 1]."""
    reward: Tensor
    """The discounted sum of the n rewards from here on, [S, B]."""
    discount: Tensor
    """g^n, [S, B]; 0 where the episode terminated within the n steps (a time limit is no end)."""
    next_observation: Tensor
    """The observation n steps later, [S, B, obs]."""
    number: Tensor | None = None
    """The number of each transition among those of its seed, counted from 0: [S, B] int64.

    No two transitions have the same one, so what an agent remembers of a transition by its number
    is never applied to another. None if a batch is not from a replay buffer, or is for a pure
    update, which depends on what transitions are and not on which they are.
    """


class NetworkOptions(NamedTuple):
    """What all networks of an agent have in common but their sizes."""

    initialization: Initialization = "uniform"
    matmul_precision: MatmulPrecision = "float32"


PLAIN = NetworkOptions()
"""Networks made with the defaults."""


@dataclass(frozen=True)
class AgentConfig:
    """Settings every agent has, with the same defaults, so that trainers alone are compared."""

    hidden_sizes: Annotated[
        tuple[Annotated[int, Field(gt=0)], ...],
        Field(min_length=1, description="Widths of the hidden layers of every network."),
    ] = (256, 256)
    initialization: Annotated[
        Initialization,
        Field(
            description="Initial weights of every network, with i inputs and o outputs of a layer. "
            "uniform: weights and biases in +-1/sqrt(i) (torch's own). xavier: weights in "
            "+-sqrt(6/(i + o)), biases zero."
        ),
    ] = "uniform"
    matmul_precision: Annotated[
        MatmulPrecision,
        Field(
            description="What the factors of a matrix product are rounded to; sums are float32. "
            "bfloat16: between two hidden layers, forwards and backwards, and the result, too, on "
            "a processor or GPU that is faster with it. tf32: every product, on a GPU. See "
            "docs/precision.md."
        ),
    ] = "float32"
    learning_rate: Annotated[
        float, Field(gt=0, description="Adam's step size, for every network.")
    ] = 3e-4
    actor_learning_rate: Annotated[
        float | None, Field(gt=0, description="Adam's step size for the actor, if another.")
    ] = None
    discount: Annotated[float, Field(ge=0, le=1, description="Discount factor g.")] = 0.99
    polyak: Annotated[
        float,
        Field(gt=0, le=1, description="Share of the online network in each target update."),
    ] = 0.005
    n_step: Annotated[
        int, Field(gt=0, description="Steps n of the return R_n in the critic's target.")
    ] = 1
    candidates_evaluate: Annotated[
        int,
        Field(
            gt=0,
            description="Samples of the policy at each decision of an evaluation; the one of the "
            "highest value, the smaller of the critics', is the action. 1: nothing is selected.",
        ),
    ] = 1

    @property
    def without_effect(self) -> Mapping[str, str]:
        """The settings that the others leave without effect, each with the reason.

        To set one of them is refused: its runs would be those without it, under another label.
        """
        return {}

    @property
    def networks(self) -> NetworkOptions:
        """What every network is made with."""
        return NetworkOptions(self.initialization, self.matmul_precision)

    @property
    def actor_step_size(self) -> float:
        """Adam's step size for the actor."""
        return self.actor_learning_rate or self.learning_rate


REFERENCE: Mapping[str, Any] = {
    "initialization": "xavier",
    "learning_rate": 3e-4,
    "actor_learning_rate": None,
    "discount": 0.99,
    "polyak": 0.005,
    "n_step": 1,
    "candidates_evaluate": 1,
}
"""The settings that all trainers in the code of Q-score matching's authors have in common."""


class Agent(Protocol):
    """A trainer of S independent policies in lockstep.

    Constructed as ``Agent(config, observation_size, action_size, seeds, device)``. A class that
    says ``promises_pure_update = True`` has its method ``pure_update`` compiled, or captured in a
    CUDA graph, and promises what ``agents.speed.acceleration`` asks of it.
    """

    name: ClassVar[str]
    """The name on the command line and in reports; no other agent or preset has it.

    Up to 64 letters, digits, spaces and '_', '.', '+', '-', beginning with a letter or digit.
    """
    config_class: ClassVar[type[AgentConfig]]
    """A frozen dataclass: its fields and defaults are the agent's settings, listed nowhere else.

    Each field has a default: a number (not NaN), string, boolean, None, or a tuple of them.
    """
    presets: ClassVar[NamedSettings]
    """Named variants: preset name -> settings that differ from the defaults."""
    task_settings: ClassVar[NamedSettings]
    """Settings the source gives for certain tasks only: task name pattern -> settings."""

    def __init__(
        self,
        config: Any,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None: ...

    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Draw one action per observation: [S, N, obs] -> [S, N, act], float32 in [-1, 1].

        The observation is not to be edited, and the action carries no gradient. A seed whose
        action is not finite has diverged; one outside [-1, 1] is an error.

        With ``explore``, the action to take while training; without, one sample of the policy.
        The two draw from separate streams, so evaluating never changes training.
        """
        ...

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one gradient update of every seed; return metrics, float tensors of shape [S].

        The batch is not to be edited, and metrics carry no gradient. A metric that has no value
        in this update is left out: a table shows the mean over the updates that gave it. A seed
        with a non-finite metric that has "loss" in its name has diverged; any other is written
        as it is.
        """
        ...

    def state_dict(self) -> StateDict:
        """Return everything that a later ``load_state_dict`` needs to go on bit for bit.

        Random streams, optimizers and counters belong to it: before a run begins, an agent that
        was loaded is compared with the one that was saved.
        """
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what ``state_dict`` returned. Raises if it belongs to other shapes or seeds."""
        ...


# What follows is optional.


@runtime_checkable
class UpdatesSeveral(Protocol):
    """An agent that makes several updates in one call faster than in as many."""

    def update_several(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Make an update with each batch, in order; return the metrics of each: see ``update``.

        Except for rounding it is what as many calls of ``update`` are.
        """
        ...


# The harness measures an agent by each of the next three methods that it has, at every evaluation:
# see ``qsm_bench.diagnostics``. None of them may change the agent, or draw from its streams; what
# they return carries no gradient. Reports ask the last one.


@runtime_checkable
class ShowsActionValue(Protocol):
    """An agent whose critic can be asked for the value of any action."""

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the critics' value of actions: [S, B, obs] and [S, B, act] -> [S, B] float32."""
        ...


@runtime_checkable
class ShowsPolicy(Protocol):
    """An agent whose policy can be sampled with random numbers that are not its own."""

    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor:
        """Sample the policy ``count`` times at each state, without exploration noise.

        The states are [S, N, obs], and the actions [S, N, count, act] float32 in [-1, 1]. All
        random numbers come from ``streams``. A deterministic policy returns its one action,
        [S, N, 1, act].
        """
        ...


@runtime_checkable
class ShowsScore(Protocol):
    """An agent whose policy has a score that can be compared with the critic's action gradient."""

    def score_and_gradient(
        self, observation: Tensor, action: Tensor, streams: SeedStreams
    ) -> tuple[Tensor, Tensor]:
        """Return the policy's score and the critic's action gradient at a place near each action.

        The states are [S, B, obs], the actions are samples of the policy, [S, B, act], and both
        results are [S, B, act]. The agent chooses the places: near an action its policy may have
        a score where it has none at the action itself. All random numbers come from ``streams``.
        """
        ...


@runtime_checkable
class StatesTemperature(Protocol):
    """An agent that says how random the policy is that it learns for a given critic."""

    @classmethod
    def effective_temperature(cls, config: Any, metrics: Mapping[str, float]) -> float | None:
        """Return tau in units of the task's own reward; None if it is not known.

        The policy that the agent's loss asks for, at a fixed critic, has the score grad_a Q / tau,
        so that its density is exp(Q / tau) up to a factor: of the executed action, or of the least
        noised one, a^1, in a diffusion. tau is 0 if the agent climbs Q and its loss asks for no
        randomness. An agent that scales rewards divides by its scale.

        ``metrics`` are those of ``update``, averaged over a stretch of training. A report asks the
        class alone: there is no agent then.
        """
        ...
