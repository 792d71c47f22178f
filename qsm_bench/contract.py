"""The agent protocol, checked where the harness meets an agent.

``Checked`` stands between the two: every call goes through it, and what comes back is looked at
for a few microseconds. A breach is an AgentError in one line: the agent, the method, what it did,
and what is right. See ``qsm_bench/rehearsal.py`` for what is tried before anything counts.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from agents.common.streams import SeedStreams
from agents.protocol import (
    Agent,
    Batch,
    ShowsActionValue,
    ShowsPolicy,
    ShowsScore,
    StateDict,
    UpdatesSeveral,
)
from agents.registry import AgentError
from qsm_bench import metrics
from qsm_bench.errors import reason_of

DEEPEST = 100
"""Levels of a state."""


class Checked:
    """An agent of S seeds whose promises are checked at every call."""

    def __init__(self, bare: Agent, name: str, seeds: int, action_size: int) -> None:
        self.bare = bare
        """The agent itself."""
        self.label = name
        self.seeds = seeds
        self.action_size = action_size

    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        """Call the agent's method, and check what it returns: see ``Agent.act``."""
        with self._unchanged("act", "observation", observation):
            action = self.bare.act(observation, explore=explore)
        shape = (*observation.shape[:2], self.action_size)
        self._check_tensor("act", "", action, shape, "[seeds, environments, action size]")
        self._check_box("act", action)
        return action

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Call the agent's method, and check what it returns: see ``Agent.update``."""
        with self._unchanged("update", "batch", *(x for x in batch if x is not None)):
            found = self.bare.update(batch)
        self._check_metrics("update", found, batch.reward.device)
        return found

    def update_several(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """Update with each batch, in one call if the agent has one: see ``UpdatesSeveral``."""
        at_once = self.several(len(batches))
        if at_once is None:
            return [self.update(batch) for batch in batches]
        given = (x for batch in batches for x in batch if x is not None)
        with self._unchanged("update_several", "batches", *given):
            found = at_once.update_several(batches)
        if not isinstance(found, list) or len(found) != len(batches):
            what = f"a list of {len(found)}" if isinstance(found, list) else _kind(found)
            raise self.breach(
                "update_several",
                f"returned {what}; it must return a list of {len(batches)} dicts of metrics, one "
                "for each batch",
            )
        for of_one in found:
            self._check_metrics("update_several", of_one, batches[0].reward.device)
        return found

    def call_of(self, updates: int) -> str:
        """Say which method of the agent so many updates at once call."""
        return "update_several(batches)" if self.several(updates) else "update(batch)"

    def several(self, updates: int) -> UpdatesSeveral | None:
        """Return the agent if it makes so many updates in one call."""
        return self.bare if updates > 1 and isinstance(self.bare, UpdatesSeveral) else None

    def state_dict(self) -> StateDict:
        """Call the agent's method, and check what it returns: see ``Agent.state_dict``."""
        state = self.bare.state_dict()
        if not isinstance(state, dict):
            raise self.breach("state_dict", f"returned {_kind(state)}; it must return a dict")
        for path, fault in _unreadable(state, "state_dict()", 0):
            raise self.breach(
                "state_dict",
                f"returned {path}, which is {fault}; a checkpoint holds tensors, numbers, strings, "
                "booleans and None, in dicts, lists and tuples",
            )
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Call the agent's method: see ``Agent.load_state_dict``."""
        self.bare.load_state_dict(state)

    @property
    def shows_action_value(self) -> bool:
        """Whether the agent has the optional method ``action_value``."""
        return isinstance(self.bare, ShowsActionValue)

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor | None:
        """Call and check the agent's method: see ``ShowsActionValue``. None if it has none."""
        if not isinstance(self.bare, ShowsActionValue):
            return None
        with self._unchanged("action_value", "observation or action", observation, action):
            value = self.bare.action_value(observation, action)
        self._check_tensor("action_value", "", value, action.shape[:2], "[seeds, actions]")
        return value

    def sample_policy(self, observation: Tensor, count: int, streams: SeedStreams) -> Tensor | None:
        """Call and check the agent's method: see ``ShowsPolicy``. None if it has none."""
        if not isinstance(self.bare, ShowsPolicy):
            return None
        with self._unchanged("sample_policy", "observation", observation):
            samples = self.bare.sample_policy(observation, count, streams)
        one = isinstance(samples, Tensor) and samples.dim() == 4 and samples.shape[2] == 1
        shape = (*observation.shape[:2], 1 if one else count, self.action_size)
        axes = "[seeds, states, samples, action size]"
        self._check_tensor("sample_policy", "", samples, shape, axes)
        self._check_box("sample_policy", samples)
        return samples

    def score_and_gradient(
        self, observation: Tensor, action: Tensor, streams: SeedStreams
    ) -> tuple[Tensor, Tensor] | None:
        """Call and check the agent's method: see ``ShowsScore``. None if it has none."""
        if not isinstance(self.bare, ShowsScore):
            return None
        with self._unchanged("score_and_gradient", "observation or action", observation, action):
            found = self.bare.score_and_gradient(observation, action, streams)
        if not isinstance(found, tuple) or len(found) != 2:
            raise self.breach(
                "score_and_gradient",
                f"returned {_kind(found)}; it must return two tensors, the score and the gradient",
            )
        for tensor in found:
            axes = "[seeds, actions, action size]"
            self._check_tensor("score_and_gradient", "", tensor, action.shape, axes)
        return found

    def _check_metrics(self, method: str, found: Any, device: torch.device) -> None:
        if type(found) is not dict:
            raise self.breach(
                method,
                f"returned {_kind(found)}; it must return a dict of metrics, which may be empty",
            )
        for name, value in found.items():
            fault = metrics.fault_of(name)
            if fault:
                raise self.breach(method, f"returned a metric named {name!r}: {fault}")
            self._check_tensor(method, f"metric {name!r} as ", value, (self.seeds,), "[seeds]")
            if value.device != device:
                raise self.breach(
                    method, f"returned metric {name!r} on {value.device}; it must be on {device}"
                )

    def _check_tensor(
        self, method: str, what: str, value: Any, shape: Sequence[int], axes: str
    ) -> None:
        """Raise AgentError unless ``value`` is a float tensor of that shape, without gradient."""
        if not isinstance(value, Tensor):
            got, right = _kind(value), "float tensor"
        elif value.shape != shape:
            got, right = f"a tensor of shape {list(value.shape)}", "float tensor"
        elif not value.is_floating_point():
            got, right = f"a tensor of {value.dtype}", "float tensor"
        elif what == "" and value.dtype != torch.float32:
            got, right = f"a tensor of {value.dtype}", "float32 tensor"
        elif value.requires_grad:
            got, right = "a tensor with a gradient", "detached tensor (use torch.no_grad())"
        else:
            return
        raise self.breach(
            method, f"returned {what}{got}; it must be a {right} of shape {axes} = {list(shape)}"
        )

    def _check_box(self, method: str, action: Tensor) -> None:
        """Raise AgentError unless all actions that are finite lie in [-1, 1]."""
        # A copy of a few numbers costs less than a torch operation on them.
        highest = abs(action.cpu().numpy()).max(initial=0.0)
        if not highest <= 1.0:  # a NaN, too: that seed has diverged, and the others may not have
            finite = action[action.isfinite()].abs()
            if finite.numel() and finite.max() > 1.0:
                raise self.breach(
                    method,
                    f"returned an action of size {finite.max():.6g}; actions lie in [-1, 1]: "
                    "squash or clamp them",
                )

    @contextmanager
    def _unchanged(self, method: str, what: str, *inputs: Tensor) -> Iterator[None]:
        """Raise AgentError if the method that is called within changes a tensor it was given."""
        versions = [tensor._version for tensor in inputs]
        yield
        if [tensor._version for tensor in inputs] != versions:
            raise self.breach(method, f"changed its {what} in place; it must work on a copy")

    def breach(self, method: str, did: str) -> AgentError:
        """Return the error that says what a method did, and what would be right."""
        return AgentError(f"agent {self.label!r}: {method} {did}")


def checked(build: Callable[[], Agent], name: str, seeds: int, action_size: int) -> Checked:
    """Build an agent, and check its promises from now on. Raises AgentError if it cannot be."""
    with told(name, "(config, observation_size, action_size, seeds, device)"):
        bare = build()
    return Checked(bare, name, seeds, action_size)


@contextmanager
def told(name: str, call: str) -> Iterator[None]:
    """Raise AgentError, in one line, for whatever is raised in a call of an agent."""
    try:
        yield
    except (AgentError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit(), too
        reason = reason_of(error)
        raise AgentError(f"agent {name!r}: {call} raised {reason}") from error


def _unreadable(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """The entries that ``torch.load(weights_only=True)`` would not read, and what they are."""
    kind = type(value)
    if depth > DEEPEST:
        yield path[:100], f"nested deeper than {DEEPEST} levels"
    elif kind in (dict, OrderedDict):
        for key, entry in value.items():
            if type(key) not in (str, int):
                yield path, f"a dict with the key {key!r}, neither a string nor an int"
            yield from _unreadable(entry, f"{path}[{key!r}]", depth + 1)
    elif kind in (list, tuple):
        for index, entry in enumerate(value):
            yield from _unreadable(entry, f"{path}[{index}]", depth + 1)
    elif kind not in (Tensor, Parameter, int, float, bool, str, type(None)):
        yield path, _kind(value)


def _kind(value: Any) -> str:
    """What a value is, as a line of text has it."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"a value of type {name}"
