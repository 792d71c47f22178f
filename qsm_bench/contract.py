"""The agent protocol, checked where the harness meets an agent.

``Checked`` stands between the two: every call goes through it, and what comes back is looked at
for a few microseconds. ``rehearse`` tries, before anything counts, whether an agent that is saved
and loaded goes on as it would have. A breach is an AgentError in one line: the agent, the method,
what it did, and what is right.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
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
from qsm_bench.protocol import Protocol

DEEPEST = 100
"""Levels of a state."""
FURTHER_CALLS = 2
"""Calls for updates after loading: only the second shows what the optimizer remembers."""
SEVERAL = 2
"""Updates of a step that are rehearsed at most."""


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
        if len(batches) == 1 or not isinstance(self.bare, UpdatesSeveral):
            return [self.update(batch) for batch in batches]
        given = (x for batch in batches for x in batch if x is not None)
        with self._unchanged("update_several", "batches", *given):
            found = self.bare.update_several(batches)
        if not isinstance(found, list) or len(found) != len(batches):
            raise self._breach(
                "update_several",
                f"returned {_kind(found)}; it must return a list of {len(batches)} dicts of "
                "metrics, one for each batch",
            )
        for of_one in found:
            self._check_metrics("update_several", of_one, batches[0].reward.device)
        return found

    def state_dict(self) -> StateDict:
        """Call the agent's method, and check what it returns: see ``Agent.state_dict``."""
        state = self.bare.state_dict()
        if not isinstance(state, dict):
            raise self._breach("state_dict", f"returned {_kind(state)}; it must return a dict")
        for path, fault in _unreadable(state, "state_dict()", 0):
            raise self._breach(
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
            raise self._breach(
                "score_and_gradient",
                f"returned {_kind(found)}; it must return two tensors, the score and the gradient",
            )
        for tensor in found:
            axes = "[seeds, actions, action size]"
            self._check_tensor("score_and_gradient", "", tensor, action.shape, axes)
        return found

    def _check_metrics(self, method: str, found: Any, device: torch.device) -> None:
        if type(found) is not dict:
            raise self._breach(
                method,
                f"returned {_kind(found)}; it must return a dict of metrics, which may be empty",
            )
        for name, value in found.items():
            fault = metrics.fault_of(name)
            if fault:
                raise self._breach(method, f"returned a metric named {name!r}: {fault}")
            self._check_tensor(method, f"metric {name!r} as ", value, (self.seeds,), "[seeds]")
            if value.device != device:
                raise self._breach(
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
        raise self._breach(
            method, f"returned {what}{got}; it must be a {right} of shape {axes} = {list(shape)}"
        )

    def _check_box(self, method: str, action: Tensor) -> None:
        """Raise AgentError unless all actions that are finite lie in [-1, 1]."""
        # A copy of a few numbers costs less than a torch operation on them.
        highest = abs(action.cpu().numpy()).max(initial=0.0)
        if not highest <= 1.0:  # a NaN, too: that seed has diverged, and the others may not have
            finite = action[action.isfinite()].abs()
            if finite.numel() and finite.max() > 1.0:
                raise self._breach(
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
            raise self._breach(method, f"changed its {what} in place; it must work on a copy")

    def _breach(self, method: str, did: str) -> AgentError:
        return AgentError(f"agent {self.label!r}: {method} {did}")


def checked(build: Callable[[], Agent], name: str, seeds: int, action_size: int) -> Checked:
    """Build an agent, and check its promises from now on. Raises AgentError if it cannot be."""
    with told(name, "(config, observation_size, action_size, seeds, device)"):
        bare = build()
    return Checked(bare, name, seeds, action_size)


def rehearse(
    build: Callable[[], Checked],
    observation_size: int,
    protocol: Protocol,
    device: torch.device,
) -> None:
    """Try on agents of their own what a run will ask for; raise AgentError where it fails.

    One agent acts and learns, a second is loaded with the state of the first, and both go on: on
    a CPU they must do so bit for bit, or a run that is interrupted would not be what it was. Then
    the second is evaluated once more than the first, which must change nothing in what comes after.
    """
    batch_size, updates = protocol.batch_size, min(protocol.updates_per_step, SEVERAL)
    first = build()
    seeds = first.seeds
    stream = SeedStreams(range(seeds), "rehearsal", device)

    def act(agent: Checked, count: int, *, explore: bool) -> Tensor:
        observation = stream.normal(count, observation_size)
        before = observation.clone()
        with told(agent.label, f"act(observation, explore={explore})"):
            action = agent.act(observation, explore=explore)
        if not torch.equal(observation, before):
            raise agent._breach("act", "changed its observation in place; it must work on a copy")
        return action

    def draw_batch(action_size: int) -> Batch:
        return Batch(
            stream.normal(batch_size, observation_size),
            stream.uniform(batch_size, action_size, low=-1.0),
            stream.normal(batch_size),
            torch.full((seeds, batch_size), 0.99, device=device),
            stream.normal(batch_size, observation_size),
            torch.arange(batch_size, device=device).repeat(seeds, 1),
        )

    def learn(agent: Checked) -> list[dict[str, Tensor]]:
        batches = [draw_batch(agent.action_size) for _ in range(updates)]
        with told(agent.label, "update(batch)" if updates == 1 else "update_several(batches)"):
            return agent.update_several(batches)

    def look(agent: Checked) -> None:
        """Call the optional methods that the agent has, on more states than there are seeds."""
        before = deepcopy(agent.state_dict())
        observation = stream.normal(seeds + 1, observation_size)
        with told(agent.label, "sample_policy(observation, count, streams)"):
            samples = agent.sample_policy(observation, 2, stream)
        action = stream.uniform(seeds + 1, agent.action_size, low=-1.0)
        with told(agent.label, "action_value(observation, action)"):
            value = agent.action_value(observation, action)
        with told(agent.label, "score_and_gradient(observation, action, streams)"):
            near = agent.score_and_gradient(observation, action, stream)
        for method, shown in (
            ("sample_policy", (samples,)),
            ("action_value", (value,)),
            ("score_and_gradient", near or ()),
        ):
            if not all(x is None or x.isfinite().all() for x in shown):
                raise agent._breach(method, "returned a number that is not finite")
        if not _same(agent.state_dict(), before):
            raise agent._breach(
                "sample_policy, action_value or score_and_gradient",
                "changed the agent's state; looking at an agent must not change it",
            )

    act(first, 1, explore=True)
    learn(first)
    look(first)
    # As many environments as no seeds are: axes in the wrong order are then seen.
    act(first, seeds + 1, explore=False)
    with told(first.label, "state_dict()"):
        state = deepcopy(first.state_dict())
    second = build()
    with told(second.label, "load_state_dict(state_dict())"):
        second.load_state_dict(deepcopy(state))

    def alike(*calls: Callable[[Checked], Any]) -> bool:
        """Whether both agents, given the same, do the same; a GPU may round in another way."""
        drawn, found = deepcopy(stream.state_dict()), []
        for agent in (first, second):
            stream.load_state_dict(drawn)
            found.append([call(agent) for call in calls])
        return device.type != "cpu" or _same(*found)

    explore, evaluate = partial(act, count=1, explore=True), partial(act, count=2, explore=False)
    if not alike(*[learn] * FURTHER_CALLS, explore, evaluate):
        raise first._breach(
            "load_state_dict(state_dict())",
            "does not make a new agent go on as this one does: the state must hold all that acting "
            "and updating depend on, networks, optimizers, counters and random streams",
        )
    evaluate(second)
    if not alike(learn, explore):
        raise first._breach(
            "act(observation, explore=False)",
            "changes how the agent learns and explores from then on; evaluating must not change "
            "training: draw its random numbers from a stream of their own",
        )


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


def _same(one: Any, other: Any) -> bool:
    """Whether two states or results are equal bit for bit, NaN with NaN."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.allclose(other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))


def _kind(value: Any) -> str:
    """What a value is, as a line of text has it."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"a value of type {name}"
