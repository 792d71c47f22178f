"""stable-baselines3's SAC and TD3 (github.com/DLR-RM/stable-baselines3), as two agents beside ours.

They show whether a trainer of this project is as good as one that others have written.

    equal to ours       the protocol: replay buffer, batches, warm-up, updates a step, evaluation;
                        and the shared settings: hidden sizes, step size, discount, Polyak rate,
                        n-step returns
    the library's       networks and their initial weights, losses, optimizers, and every update:
                        its own ``train`` makes it, from a batch of ours
    the library's too   every other setting, at its default. Its TD3 explores only if it is given
                        noise, so it is given the paper's: Gaussian, of standard deviation 0.1
    evaluation          one sample of SAC's policy; TD3's has no noise

S seeds are S models that are updated one after the other. Nothing is compiled.
They need stable-baselines3 2.7 or later: pip install 'qsm_bench[sb3]'
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution

from agents.common.streams import derive_seed
from agents.protocol import AgentConfig, Batch, StateDict
from agents.registry import AgentError

NO_METRICS = ("train/learning_rate", "train/n_updates")
"""What the library logs and every table knows anyway."""


@dataclass(frozen=True)
class PeerConfig(AgentConfig):
    """The settings that a peer shares with every agent."""

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that the library does not have."""
        if self.initialization != "uniform":
            raise ValueError("stable-baselines3 has uniform initial weights alone")
        if self.matmul_precision != "float32":
            raise ValueError("stable-baselines3 has float32 products alone")
        if self.actor_learning_rate is not None:
            raise ValueError("stable-baselines3 has one learning_rate for all networks")
        if self.candidates_evaluate > 1:
            raise ValueError("stable-baselines3 evaluates one action: candidates_evaluate is 1")


@dataclass(frozen=True)
class PeerTD3Config(PeerConfig):
    """The settings of stable-baselines3's TD3."""

    exploration_noise: Annotated[
        float, Field(ge=0, description="Standard deviation of the noise added while training.")
    ] = 0.1


class Samples(NamedTuple):
    """One seed's batch under the names that the library's ``train`` reads."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    dones: Tensor
    rewards: Tensor
    discounts: Tensor


class Replay:
    """Stands in the place of a model's replay buffer and hands out the batch it was given."""

    samples: Samples

    def sample(self, batch_size: int, env: object = None) -> Samples:
        """Return the batch, whatever size is asked for: it is the protocol's."""
        return self.samples


class Spaces(gymnasium.Env[Any, Any]):
    """What a model is told of its environment; it never steps one."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_size,))
        self.action_space = spaces.Box(-1.0, 1.0, (action_size,))


class RandomNumbers:
    """A stream of one model's own, which takes the place of torch's global one while it works."""

    def __init__(self, seed: int, purpose: str, device: torch.device) -> None:
        own = torch.Generator(device).manual_seed(derive_seed(seed, purpose))
        self.state = own.get_state()
        self.device = device

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let torch draw from this stream in here."""
        shared = torch.default_generator
        if self.device.type == "cuda":
            index = self.device.index
            shared = torch.cuda.default_generators[
                torch.cuda.current_device() if index is None else index
            ]
        before = shared.get_state()
        shared.set_state(self.state)
        try:
            yield
        finally:
            self.state = shared.get_state()
            shared.set_state(before)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Let a distribution's mean be NaN: a seed that has diverged must not end the others."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


class Peer:
    """One of the library's off-policy algorithms: a model for each seed, behind the protocol."""

    name: ClassVar[str]
    algorithm: ClassVar[str]
    """The name of its class in the library."""
    variables: ClassVar[tuple[str, ...]] = ()
    """Names of a model's tensors that learn and belong to no network."""
    config_class: ClassVar[type[AgentConfig]] = PeerConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    task_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        config: PeerConfig,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        """Raise AgentError if the library is not installed."""

        def streams(purpose: str) -> list[RandomNumbers]:
            return [RandomNumbers(seed, purpose, device) for seed in seeds]

        self.config = config
        self.device = device
        self.models = []
        for seed in seeds:
            with RandomNumbers(seed, "weights", torch.device("cpu")).used():
                self.models.append(self._build(Spaces(observation_size, action_size)))
        self.streams = {name: streams(name) for name in ("explore", "evaluate", "update")}

    def _build(self, environment: Spaces) -> Any:
        try:
            import stable_baselines3
            from stable_baselines3.common.logger import Logger
        except ImportError as error:
            raise AgentError(
                f"agent {self.name!r} needs stable-baselines3 ({error}): "
                "pip install 'qsm_bench[sb3]'"
            ) from error
        model = getattr(stable_baselines3, self.algorithm)(
            "MlpPolicy",
            environment,
            learning_rate=self.config.learning_rate,
            tau=self.config.polyak,
            gamma=self.config.discount,
            buffer_size=1,  # its own is not used
            policy_kwargs={"net_arch": list(self.config.hidden_sizes)},
            device=self.device,
        )
        model.replay_buffer = Replay()
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Sample every seed's policy: [S, N, obs] -> [S, N, act]."""
        streams = self.streams["explore" if explore else "evaluate"]
        actions = []
        with torch.no_grad(), _unvalidated():
            for row, model, stream in zip(observation, self.models, streams, strict=True):
                model.policy.set_training_mode(False)
                with stream.used():
                    action = model.policy(row, deterministic=False)
                    actions.append(self._explored(action) if explore else action)
        return torch.stack(actions)

    def _explored(self, action: Tensor) -> Tensor:
        """Return the action to take while training for one that the policy has drawn."""
        return action

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Let every model make one update by its own ``train``; return what it logs, [S] each."""
        size = batch.reward.shape[1]
        logged = []
        for row, (model, stream) in enumerate(
            zip(self.models, self.streams["update"], strict=True)
        ):
            discount = batch.discount[row].unsqueeze(-1)
            model.replay_buffer.samples = Samples(
                batch.observation[row],
                batch.action[row],
                batch.next_observation[row],
                torch.zeros_like(discount),  # the discount is 0 where an episode has terminated
                batch.reward[row].unsqueeze(-1),
                discount,
            )
            with stream.used(), _unvalidated():
                model.train(gradient_steps=1, batch_size=size)
            logged.append(dict(model.logger.name_to_value))
            model.logger.dump()  # forgets them
        names = [name for name in logged[0] if name not in NO_METRICS]
        return {
            name.removeprefix("train/"): torch.tensor(
                [float(values[name]) for values in logged], device=self.device
            )
            for name in names
        }

    def state_dict(self) -> StateDict:
        """Return networks, optimizers, counters and random streams of every model."""
        return {
            "models": [
                {
                    "parameters": model.get_parameters(),
                    "variables": {name: getattr(model, name).detach() for name in self.variables},
                    "updates": model._n_updates,
                }
                for model in self.models
            ],
            "streams": {
                name: [stream.state for stream in streams] for name, streams in self.streams.items()
            },
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what ``state_dict`` returned. Raises an error if it is of other shapes."""
        for model, saved in zip(self.models, state["models"], strict=True):
            model.set_parameters(saved["parameters"], device=self.device)
            for name in self.variables:
                getattr(model, name).data.copy_(saved["variables"][name])
            model._n_updates = saved["updates"]
        for name, streams in self.streams.items():
            for stream, drawn in zip(streams, state["streams"][name], strict=True):
                stream.state = drawn.cpu()


class PeerSAC(Peer):
    """SAC of stable-baselines3 (needs the extra qsm_bench[sb3])."""

    name: ClassVar[str] = "sb3_sac"
    algorithm: ClassVar[str] = "SAC"
    variables: ClassVar[tuple[str, ...]] = ("log_ent_coef",)


class PeerTD3(Peer):
    """TD3 of stable-baselines3 (needs the extra qsm_bench[sb3])."""

    name: ClassVar[str] = "sb3_td3"
    algorithm: ClassVar[str] = "TD3"
    config_class: ClassVar[type[AgentConfig]] = PeerTD3Config
    config: PeerTD3Config

    def _explored(self, action: Tensor) -> Tensor:
        noise = torch.randn_like(action)
        return (action + self.config.exploration_noise * noise).clamp(-1.0, 1.0)
