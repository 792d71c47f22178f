"""Several updates in one call are as many calls of one, however they are run."""

import copy
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._inductor import output_code

from agents.protocol import Batch
from agents.registry import BUILT_IN, find_agent
from agents.speed import seed_by_seed
from agents.speed.acceleration import accelerate
from agents.speed.compiled_function import CompiledFunction, DirectCall
from agents.speed.program import Call, Program
from agents.speed.seed_by_seed import SeedBySeed
from agents.speed.toolchain import why_not_compiled
from agents.td3 import TD3, TD3Config
from tests.agents.fixed_critics import CPU, make_batch, tensors

SEEDS, COUNT = (3, 4), 5
SMALLER: dict[str, dict[str, Any]] = {
    "agents.sdac:SDAC": {"samples": 4, "entropy_draws": 2},
    "agents.qvpo:QVPO": {"samples": 4, "uniform_samples": 2, "ema_target": True},
}

each_trainer = pytest.mark.parametrize("path", BUILT_IN)
needs_compiler = pytest.mark.skipif(
    why_not_compiled() is not None, reason=why_not_compiled() or "it compiles"
)


def build(path: str) -> Any:
    agent = find_agent(path).agent
    config = agent.config_class(hidden_sizes=(24, 24), **SMALLER.get(path, {}))
    return agent(config, 3, 2, SEEDS, CPU)


def batches(size: int = 16) -> list[Batch]:
    """Return batches that lie in one tensor of packed transitions, as the replay buffer's do."""
    torch.manual_seed(0)
    together = make_batch(len(SEEDS), COUNT * size, 3, 2, torch.float32)
    fields = [x.split(size, dim=1) for x in together if x is not None]
    return [Batch(*of_one) for of_one in zip(*fields, strict=True)]


def course(agent: Any, learn: Callable[[], Sequence[dict[str, Tensor]]]) -> list[Any]:
    """Return the metrics of the updates, and the agent's state after them."""
    metrics = [dict(of_one) for of_one in learn()]
    return [*metrics, copy.deepcopy(agent.state_dict())]


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    """Check that two courses are the same to the last bit."""
    assert [list(metrics) for metrics in ours[:-1]] == [list(metrics) for metrics in theirs[:-1]]
    assert len(ours) == COUNT + 1
    assert all(map(torch.equal, tensors(ours), tensors(theirs)))
    assert len(tensors(ours)) == len(tensors(theirs))


@each_trainer
@pytest.mark.parametrize("in_turn", [False, True])
def test_several_are_as_many_bit_for_bit(path: str, in_turn: bool) -> None:
    one, several = build(path), build(path)
    if in_turn:
        for agent in (one, several):
            agent.pure_update = SeedBySeed(agent, len(SEEDS), lambda alone: alone.pure_update)
    given = batches()
    assert_equal(
        course(several, lambda: several.update_several(given)),
        course(one, lambda: [one.update(batch) for batch in given]),
    )


def compiled(path: str) -> tuple[Any, list[CompiledFunction]]:
    agent = build(path)
    accelerate(agent, CPU, seeds=len(SEEDS), compiled=True)
    each: list[CompiledFunction] = getattr(agent.pure_update, "updates", [agent.pure_update])
    return agent, each


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("path", "in_turn"), [("qsm", False), ("td3", False), ("td3", True)])
def test_direct_calls_are_calls_of_the_program_bit_for_bit(
    path: str, in_turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two of each kind are recorded, and the others are called directly.

    That every trainer's direct calls are its update as written is in ``test_parity``.
    """
    if in_turn:
        monkeypatch.setattr(seed_by_seed, "LARGE", 0)
    agent, updates = compiled(path)
    start, given = copy.deepcopy(agent.state_dict()), batches()

    def again(learn: Callable[[], Sequence[dict[str, Tensor]]]) -> list[Any]:
        agent.load_state_dict(copy.deepcopy(start))
        return course(agent, learn)

    def one_by_one() -> list[dict[str, Tensor]]:
        return [agent.update(batch) for batch in given]

    program = updates[0].program
    monkeypatch.setattr(program, "can_be_recorded", False)
    expected = again(one_by_one)
    assert not any(update.direct for update in updates)
    monkeypatch.setattr(program, "can_be_recorded", True)
    recorded = again(one_by_one)
    assert all(update.direct and all(update.direct.values()) for update in updates)
    monkeypatch.setattr(program, "program", None)
    assert_equal(recorded, expected)
    assert_equal(again(one_by_one), expected)
    assert_equal(again(lambda: agent.update_several(given)), expected)

    plain = build(path)
    uncompiled = course(plain, lambda: plain.update_several(given))
    for mine, theirs in zip(tensors(uncompiled), tensors(expected), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_batches_of_another_size_are_not_given_to_the_kernels_of_the_first() -> None:
    agent, (update,) = compiled("td3")
    plain = build("td3")
    for given in (
        batches(),
        [Batch(*(x[:, :7] for x in batch if x is not None)) for batch in batches()],
        batches(),
    ):
        ours, theirs = agent.update_several(given), plain.update_several(given)
        for mine, its in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-4)
    assert len(update.direct) == 4  # two sizes, with the actor and without


class Extended(TD3):
    """A trainer that keeps a mean of rewards beside each update."""

    name = "extended"
    promises_pure_update = True
    seen: Sequence[float] = ()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.seen = [*self.seen, float(batch.reward.mean())]
        return super().update(batch)


class Unpromised(TD3):
    """A trainer whose update draws what nobody knows of."""

    name = "unpromised"

    def pure_update(self, *inputs: Any) -> dict[str, Tensor]:
        drawn = self.update_stream.normal()
        return super().pure_update(*inputs) | {"drawn": drawn}


@pytest.mark.parametrize("agent", [Extended, Unpromised])
def test_an_agent_with_more_in_its_update_makes_one_after_the_other(agent: type[TD3]) -> None:
    one, several = (agent(TD3Config(hidden_sizes=(8,)), 3, 2, SEEDS, CPU) for _ in "12")
    given = batches()
    assert_equal(
        course(several, lambda: several.update_several(given)),
        course(one, lambda: [one.update(batch) for batch in given]),
    )
    if isinstance(several, Extended):
        assert several.seen == [float(batch.reward.mean()) for batch in given]


class Rebinding(TD3):
    """A trainer that breaks its promise: it puts another tensor in the place of one it has."""

    name = "rebinding"
    promises_pure_update = True

    def draw_inputs(self, batch_size: int) -> tuple[Any, ...]:
        inputs = super().draw_inputs(batch_size)
        self.drawn = torch.full((len(SEEDS),), float(self.updates.value))
        return inputs

    def pure_update(self, *inputs: Any) -> dict[str, Tensor]:
        return super().pure_update(*inputs) | {"drawn": self.drawn.clone()}


@pytest.mark.slow
@needs_compiler
def test_an_update_that_reads_other_tensors_each_time_is_not_called_directly() -> None:
    agent = Rebinding(TD3Config(hidden_sizes=(24, 24)), 3, 2, SEEDS, CPU)
    accelerate(agent, CPU, seeds=len(SEEDS), compiled=True)
    drawn = [float(agent.update(batch)["drawn"][0]) for batch in [*batches(), *batches()]]
    assert drawn == list(range(1, 2 * COUNT + 1))
    update: Any = agent.pure_update
    assert list(update.direct.values()) == [None, None]


def test_where_torch_calls_its_programs_by_other_names_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Renamed:
        """A program as torch may have it one day, without its kernels at hand."""

        def __call__(self, arguments: list[Any]) -> list[Any]:
            return arguments

    def update(agent: Any, *inputs: Any) -> Any:
        return output_code.CompiledFxGraph.__call__(Renamed(), list(inputs))  # type: ignore[arg-type]

    program = Program(cast(FunctionType, update), CPU)
    program.program = update
    monkeypatch.setattr(output_code, "CompiledFxGraph", Renamed)
    assert program.record(None, 3) == ([3], [])
    monkeypatch.delattr(output_code, "CompiledFxGraph")
    program.program = lambda agent, *inputs: list(inputs)
    assert program.record(None, 3) == ([3], [])


INPUT, PARAMETER, METRIC = torch.ones(2, 3), torch.zeros(2, 4), torch.ones(2)


def recorded(
    arguments: Sequence[Any] = (PARAMETER, INPUT),
    results: Sequence[Any] = (PARAMETER.view(-1), METRIC),
    calls: int = 1,
    given: Tensor = INPUT,
) -> DirectCall | None:
    call = Call(lambda given: [*given, METRIC], list(arguments), list(results))
    return DirectCall.of([call] * calls, [given, True], {"loss": METRIC})


def test_a_recorded_call_is_made_again_with_other_inputs() -> None:
    direct = recorded()
    assert direct
    other = torch.zeros(2, 3)
    given = direct.arguments_of([other, True])
    assert given[0] is PARAMETER
    assert given[1] is other
    assert direct.result_of([None, METRIC]) == {"loss": METRIC}


def test_calls_are_alike_if_all_but_their_inputs_are_the_same_objects() -> None:
    first, other_input = recorded(), INPUT.clone()
    second = recorded((PARAMETER, other_input), given=other_input)
    moved = PARAMETER.clone()
    third = recorded((moved, INPUT), (moved.view(-1), METRIC))
    fourth = recorded((INPUT, PARAMETER))
    assert first
    assert second
    assert third
    assert fourth
    assert second.repeats(first)
    assert not third.repeats(first)
    assert not fourth.repeats(first)


@pytest.mark.parametrize(
    "differs",
    [
        {"calls": 0},
        {"calls": 2},
        {"arguments": (PARAMETER, INPUT, 7)},
        {"arguments": (PARAMETER, INPUT[:1])},  # part of an input would be that of the first
        {"results": (PARAMETER,)},  # the metric was made of the results
        {"results": (METRIC, torch.zeros(2, 4))},  # a result that is copied afterwards
        {"results": (METRIC, INPUT)},
    ],
)
def test_a_call_that_is_not_all_of_an_update_is_not_made_again(differs: dict[str, Any]) -> None:
    assert recorded(**differs) is None
