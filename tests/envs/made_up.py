"""An environment with whatever spaces a test needs, registered with Gymnasium while it is used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)


class MadeUp(gymnasium.Env[Any, Any]):
    """Its observations are samples of their space; the k-th step of an episode earns k."""

    def __init__(
        self,
        observation_space: spaces.Space[Any] = UNIT,
        action_space: spaces.Space[Any] = UNIT,
        length: int = 10,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.length = length
        self.actions: list[Any] = []
        self.observation: Any = None
        self.closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.actions = []
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.observation = self.observation_space.sample()
        steps = len(self.actions)
        return self.observation, float(steps), steps == self.length, False, {}

    def close(self) -> None:
        self.closed = True


def made_up(env: gymnasium.Env[Any, Any]) -> MadeUp:
    """Return the environment inside its wrappers."""
    inner = env.unwrapped
    assert isinstance(inner, MadeUp)
    return inner


def register(name: str, make: Callable[..., gymnasium.Env[Any, Any]], **options: Any) -> None:
    """Register `make`, a class of environments or a function that makes one, with Gymnasium.

    Gymnasium's own types want a constructor of keyword arguments alone.
    """
    gymnasium.register(name, make, **options)


@contextmanager
def registered(
    make: Callable[..., gymnasium.Env[Any, Any]] = MadeUp, name: str = "MadeUp-v0", **kwargs: Any
) -> Iterator[str]:
    """Register `make(**kwargs)` with Gymnasium for a while, and yield its id."""
    register(name, make, kwargs=kwargs)
    try:
        yield name
    finally:
        del gymnasium.registry[name]
