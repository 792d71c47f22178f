"""A plug-in that keeps the protocol, for tests to break one promise at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qsm_bench import AgentConfig, Batch, SeedStreams


@dataclass(frozen=True)
class PlainConfig(AgentConfig):
    scale: Annotated[float, Field(gt=0, description="Half width.")] = 1.0


class Plain:
    """An agent that acts at random; its one weight follows the reward with momentum."""

    name: ClassVar[str] = "plain"
    config_class: ClassVar[type[AgentConfig]] = PlainConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    task_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        config: Any,
        observation_size: int,
        action_size: int,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.config, self.action_size, self.seeds = config, action_size, seeds
        self.stream = SeedStreams(seeds, "explore", device)
        self.evaluation_stream = SeedStreams(seeds, "evaluate", device)
        self.weight = torch.zeros(len(seeds), device=device)
        self.momentum = torch.zeros(len(seeds), device=device)
        self.updates = 0

    def act(self, observation: Tensor, *, explore: bool) -> Any:
        half = self.config.scale
        stream = self.stream if explore else self.evaluation_stream
        return stream.uniform(observation.shape[1], self.action_size, low=-half, high=half)

    def update(self, batch: Batch) -> Any:
        self.updates += 1
        self.momentum = 0.9 * self.momentum + batch.reward.mean(dim=1)
        self.weight = self.weight + self.momentum
        return self.metrics(batch)

    def metrics(self, batch: Batch) -> Any:
        return {"weight": self.weight}

    def state_dict(self) -> Any:
        return {
            "stream": self.stream.state_dict(),
            "evaluation_stream": self.evaluation_stream.state_dict(),
            "weight": self.weight,
            "momentum": self.momentum,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Any) -> None:
        self.stream.load_state_dict(state["stream"])
        self.evaluation_stream.load_state_dict(state["evaluation_stream"])
        self.weight, self.momentum = state["weight"], state["momentum"]
        self.updates = state["updates"]


class Late(Plain):
    """An agent that logs an actor's loss at every second update from the 20th on."""

    name = "late"

    def metrics(self, batch: Batch) -> Any:
        metrics = {"critic_loss": self.weight * 0 + 7.0}
        if self.updates <= 5:
            metrics = {"pretraining": self.weight * 0 + 3.0, **metrics}
        if self.updates >= 20 and self.updates % 2 == 0:
            metrics["actor_loss"] = self.weight * 0 + 10.0
        return metrics
