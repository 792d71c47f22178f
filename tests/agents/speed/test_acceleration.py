"""Compiled and captured updates give the numbers of plain ones."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from agents.common import streams
from agents.protocol import Agent
from agents.qsm import QSM, QSMConfig
from agents.registry import BUILT_IN, find_agent
from agents.speed.acceleration import accelerate
from agents.speed.captured_update import CapturedUpdate
from agents.speed.toolchain import why_not_compiled
from tests.agents.fixed_critics import CPU, make_batch, tensors
from tests.agents.speed import fake_cuda

SEEDS = (3, 4)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a GPU")
needs_compiler = pytest.mark.skipif(
    why_not_compiled() is not None, reason=why_not_compiled() or "it compiles"
)


def build(path: str, device: torch.device = CPU, **settings: Any) -> Any:
    """Build an agent whose parts, which no protocol names, a test may look into."""
    agent = find_agent(path).agent
    asked = {"hidden_sizes": (24, 24), **settings}
    # Each step of a chain is compiled anew: two have all that more of them have.
    for chain in ("diffusion_steps", "action_steps"):
        if hasattr(agent.config_class, chain):
            asked = {chain: 2, **asked}
    config = agent.config_class(**asked)
    return agent(config, 3, 2, SEEDS, device)


def assert_same_course(plain: Agent, fast: Agent, device: torch.device = CPU) -> None:
    """Check that eight updates give the same metrics and states, except for rounding."""
    torch.manual_seed(0)
    for _ in range(8):
        batch = make_batch(len(SEEDS), 32, 3, 2, torch.float32)
        batch = tree_map(lambda x: x.to(device), batch)
        expected, metrics = plain.update(batch), fast.update(batch)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-4)
    pairs = zip(tensors(plain.state_dict()), tensors(fast.state_dict()), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("path", BUILT_IN)
def test_compiled_updates_are_the_plain_ones_but_for_rounding(path: str) -> None:
    plain, fast = build(path), build(path)
    accelerate(fast, CPU, seeds=len(SEEDS), compiled=True)
    assert_same_course(plain, fast)


@pytest.mark.slow
@needs_compiler
def test_agents_of_one_class_do_not_share_a_program() -> None:
    """They may be of other sizes, or settings, in one process."""
    for settings in ({}, {"polyak": 0.5}, {"hidden_sizes": (8,)}):
        plain, fast = (build("td3", **settings) for _ in range(2))
        accelerate(fast, CPU, seeds=len(SEEDS), compiled=True)
        assert_same_course(plain, fast)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_update_takes_the_learning_rate_down_as_a_plain_one_does() -> None:
    """What changes from update to update is not frozen into the code."""
    plain, fast = (build("qsm", actor_decay_updates=6, learning_rate=1e-2) for _ in range(2))
    accelerate(fast, CPU, seeds=len(SEEDS), compiled=True)
    assert_same_course(plain, fast)
    before = [p.clone() for p in fast.denoiser.parameters()]
    fast.update(make_batch(len(SEEDS), 32, 3, 2, torch.float32))
    now = list(fast.denoiser.parameters())
    assert all(map(torch.equal, before, now))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("path", "settings", "explore"),
    [
        ("qsm", {"candidates_act": 2}, True),
        ("dacer", {}, True),
        ("dipo", {"evaluation": "mean", "candidates_evaluate": 2}, False),
        ("langevin", {}, True),
    ],
)
def test_compiled_actions_are_the_plain_ones_of_the_newest_weights(
    path: str, settings: dict[str, Any], explore: bool
) -> None:
    plain, fast = build(path, **settings), build(path, **settings)
    accelerate(fast, CPU, seeds=len(SEEDS), compiled=True)
    observation = torch.randn(len(SEEDS), 2, 3)
    seen = []
    for _ in range(4):
        plain.update(make_batch(len(SEEDS), 32, 3, 2, torch.float32))
        fast.load_state_dict(plain.state_dict())
        seen.append(plain.act(observation, explore=explore))
        torch.testing.assert_close(fast.act(observation, explore=explore), seen[-1])
        states = [tensors(agent.state_dict()) for agent in (plain, fast)]
        assert all(map(torch.equal, *states))
    assert not any(map(torch.equal, seen, seen[1:]))
    compiled = fast.pure_training_action if explore else fast.pure_evaluation_action
    assert list(map(bool, compiled.direct.values())) == [True]


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("path", BUILT_IN)
def test_captured_updates_are_the_plain_ones(path: str, compiled: bool) -> None:
    device = torch.device("cuda")
    plain, fast = build(path, device), build(path, device)
    accelerate(fast, device, seeds=len(SEEDS), compiled=compiled)
    assert isinstance(fast.pure_update, CapturedUpdate)
    assert_same_course(plain, fast, device)


@pytest.mark.parametrize("path", BUILT_IN)
def test_a_recorded_update_is_given_new_numbers_at_every_replay(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of a GPU, counter-based streams included, on graphs of a CPU."""
    graphs = fake_cuda.use(monkeypatch)
    monkeypatch.setattr(streams, "Generators", streams.Counters)
    plain, fast = build(path), build(path)
    accelerate(fast, torch.device("cuda"), seeds=len(SEEDS), compiled=False)
    assert_same_course(plain, fast)
    assert sum(graph.replays for graph in graphs) == 8
    expected = tensors(plain.state_dict())
    assert all(map(torch.equal, tensors(fast.state_dict()), expected))


class Counting(TorchDispatchMode):
    """Counts the operations that are given to the device."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", BUILT_IN)
def test_random_numbers_on_a_gpu_cost_no_launch_for_each_seed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "Generators", streams.Counters)
    agent_class = find_agent(path).agent
    config = agent_class.config_class(hidden_sizes=(8,))
    counts = []
    for seeds in (1, 7):
        agent: Any = agent_class(config, 3, 2, tuple(range(seeds)), CPU)
        with Counting() as mode:
            agent.draw_inputs(16)
        counts.append(mode.count)
    assert counts[0] == counts[1] > 0


def test_without_being_asked_the_cpu_runs_the_update_as_it_stands() -> None:
    agent = build("td3")
    update = agent.pure_update
    accelerate(agent, CPU, seeds=len(SEEDS), compiled=False)
    assert agent.pure_update == update


def test_only_a_class_that_promises_a_pure_update_is_touched() -> None:
    """What a subclass adds may not be: a Python number that changes would be frozen."""

    class Derived(QSM):
        pass

    class Bare:
        pure_update = pure_training_action = 7

    impure: list[Any] = [Derived(QSMConfig(hidden_sizes=(8,)), 3, 2, SEEDS, CPU), Bare()]
    for agent in impure:
        update, action = agent.pure_update, agent.pure_training_action
        accelerate(agent, CPU, seeds=len(SEEDS), compiled=True)
        assert (agent.pure_update, agent.pure_training_action) == (update, action)


def test_restoring_a_state_moves_no_parameter_or_moment_to_other_memory() -> None:
    """A captured graph goes on writing where they lay."""
    for path in BUILT_IN:
        agent = build(path)
        agent.update(make_batch(len(SEEDS), 8, 3, 2, torch.float32))
        state = copy.deepcopy(agent.state_dict())
        parts = {k: v for k, v in agent.state_dict().items() if not k.endswith("stream")}
        places = [x.data_ptr() for x in tensors(parts)]
        agent.update(make_batch(len(SEEDS), 8, 3, 2, torch.float32))
        agent.load_state_dict(state)
        parts = {k: v for k, v in agent.state_dict().items() if not k.endswith("stream")}
        assert [x.data_ptr() for x in tensors(parts)] == places
        for mine, theirs in zip(tensors(agent.state_dict()), tensors(state), strict=True):
            assert torch.equal(mine, theirs)
