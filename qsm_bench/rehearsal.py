"""What a run will ask of an agent, tried before anything counts."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from agents.common.streams import SeedStreams
from agents.protocol import Batch, StateDict
from agents.registry import AgentError
from qsm_bench.contract import Checked, told
from qsm_bench.protocol import Protocol

SMALL = 8
"""The size of a batch that most agents can take, and learn from in no time."""
SEVERAL = 2
"""Updates of a step that are rehearsed at most."""
ROUNDING = 1e-3
"""How far several updates in one call may lie from as many calls, in parts and in size."""
FURTHER_CALLS = 2
"""Calls for updates after loading: only the second shows what the optimizer remembers."""


def rehearse(
    build: Callable[[], Checked], observation_size: int, protocol: Protocol, device: torch.device
) -> None:
    """Try on agents of their own what a run will ask for; raise AgentError where it fails.

    One agent acts, learns and is saved, and goes on. A second is loaded with its state: on a CPU it
    must go on bit for bit, or a run that is interrupted would not be what it was. A third is loaded
    and evaluated before it goes on, which must change nothing in what it learns. Where a step has
    several updates in one call, a fourth makes them one at a time, and must learn the same.

    Batches are small, so this takes seconds where the run's own would take minutes. They are the
    run's own for an agent that cannot take small ones.
    """
    updates = min(protocol.updates_per_step, SEVERAL)
    if protocol.batch_size > SMALL:
        with suppress(AgentError):
            return _Rehearsal(build, observation_size, SMALL, updates, device).play()
    return _Rehearsal(build, observation_size, protocol.batch_size, updates, device).play()


class _Rehearsal:
    def __init__(
        self,
        build: Callable[[], Checked],
        observation_size: int,
        batch_size: int,
        updates: int,
        device: torch.device,
    ) -> None:
        self.build = build
        self.observation_size = observation_size
        self.batch_size = batch_size
        self.updates = updates
        self.device = device

    def play(self) -> None:
        """Raise AgentError where the agent breaks a promise; there is one agent at a time."""
        first = self.build()
        self.seeds = first.seeds
        self.stream = SeedStreams(range(first.seeds), "rehearsal", self.device)
        state = self._begin(first)
        self.drawn = deepcopy(self.stream.state_dict())
        *learned, policy = self._go_on(first)
        del first
        again = self._go_on(self._loaded(state))
        evaluated = self._loaded(state)
        self._act(evaluated, 2, explore=False)
        *after, _ = self._go_on(evaluated)
        if self.device.type != "cpu":
            return  # its sums may be rounded in another way each time
        if not _same([*learned, policy], again):
            raise evaluated.breach(
                "load_state_dict(state_dict())",
                "does not make a new agent go on as this one does: the state must hold all that "
                "acting and updating depend on, networks, optimizers, counters and random streams",
            )
        if not _same(learned, after):
            raise evaluated.breach(
                "act(observation, explore=False)",
                "changes how the agent learns and explores from then on; evaluating must not "
                "change training: draw its random numbers from a stream of their own",
            )
        if evaluated.several(self.updates):
            in_turn = self._go_on(self._loaded(state), at_once=False)
            if not _same([*learned, policy], in_turn, ROUNDING):
                raise evaluated.breach(
                    evaluated.call_of(self.updates),
                    "does not do what as many calls of update do; except for rounding it must "
                    "learn the same, from the same random numbers, and return the same metrics",
                )

    def _begin(self, agent: Checked) -> StateDict:
        """Let the agent act, learn and be looked at, and return a copy of its state."""
        self._act(agent, 1, explore=True)
        self._learn(agent)
        self._look(agent)
        # As many environments as no seeds are: axes in the wrong order are then seen.
        self._act(agent, self.seeds + 1, explore=False)
        with told(agent.label, "state_dict()"):
            return deepcopy(agent.state_dict())

    def _loaded(self, state: StateDict) -> Checked:
        agent = self.build()
        with told(agent.label, "load_state_dict(state_dict())"):
            agent.load_state_dict(deepcopy(state))
        return agent

    def _go_on(self, agent: Checked, *, at_once: bool = True) -> list[Any]:
        """Return what the agent learns and how it explores from here on, and its policy."""
        self.stream.load_state_dict(self.drawn)
        learned = [self._learn(agent, at_once=at_once) for _ in range(FURTHER_CALLS)]
        return [*learned, self._act(agent, 1, explore=True), self._act(agent, 2, explore=False)]

    def _act(self, agent: Checked, count: int, *, explore: bool) -> Tensor:
        observation = self.stream.normal(count, self.observation_size)
        before = observation.clone()
        with told(agent.label, f"act(observation, explore={explore})"):
            action = agent.act(observation, explore=explore)
        if not torch.equal(observation, before):
            raise agent.breach("act", "changed its observation in place; it must work on a copy")
        return action

    def _learn(self, agent: Checked, *, at_once: bool = True) -> list[dict[str, Tensor]]:
        batches = [self._draw_batch(agent.action_size) for _ in range(self.updates)]
        if not at_once:
            with told(agent.label, agent.call_of(1)):
                return [agent.update(batch) for batch in batches]
        with told(agent.label, agent.call_of(self.updates)):
            return agent.update_several(batches)

    def _draw_batch(self, action_size: int) -> Batch:
        size, device = self.batch_size, self.device
        return Batch(
            self.stream.normal(size, self.observation_size),
            self.stream.uniform(size, action_size, low=-1.0),
            self.stream.normal(size),
            torch.full((self.seeds, size), 0.99, device=device),
            self.stream.normal(size, self.observation_size),
            torch.arange(size, device=device).repeat(self.seeds, 1),
        )

    def _look(self, agent: Checked) -> None:
        """Call the optional methods that the agent has, on more states than there are seeds."""
        before = deepcopy(agent.state_dict())
        observation = self.stream.normal(self.seeds + 1, self.observation_size)
        with told(agent.label, "sample_policy(observation, count, streams)"):
            samples = agent.sample_policy(observation, 2, self.stream)
        action = self.stream.uniform(self.seeds + 1, agent.action_size, low=-1.0)
        with told(agent.label, "action_value(observation, action)"):
            value = agent.action_value(observation, action)
        with told(agent.label, "score_and_gradient(observation, action, streams)"):
            near = agent.score_and_gradient(observation, action, self.stream)
        for method, shown in (
            ("sample_policy", (samples,)),
            ("action_value", (value,)),
            ("score_and_gradient", near or ()),
        ):
            if not all(x is None or x.isfinite().all() for x in shown):
                raise agent.breach(method, "returned a number that is not finite")
        if not _same(agent.state_dict(), before):
            raise agent.breach(
                "sample_policy, action_value or score_and_gradient",
                "changed the agent's state; looking at an agent must not change it",
            )


def _same(one: Any, other: Any, rounding: float = 0.0) -> bool:
    """Whether two states or results are equal, NaN with NaN: bit for bit, or but for rounding."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.allclose(
            other, rtol=rounding, atol=rounding, equal_nan=True
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key], rounding) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(
            _same(*pair, rounding) for pair in zip(one, other, strict=True)
        )
    return bool(one == other or (one != one and other != other))
