"""Every promise of the agent protocol: kept, it goes unseen; broken, it is one clear line."""

import random
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.protocol import Batch
from agents.registry import AgentError
from qsm_bench.contract import Checked, checked
from qsm_bench.job_folder import JobFolder
from qsm_bench.protocol import Protocol
from qsm_bench.rehearsal import rehearse
from qsm_bench.training import Training
from tests.qsm_bench.jobs import make_job, train, uncut, written
from tests.qsm_bench.plain_agents import Plain, PlainConfig

CPU = torch.device("cpu")
SEEDS, OBS, ACT, BATCH = 2, 3, 2, 4


def build(agent: type[Any]) -> Checked:
    def bare() -> Any:
        return agent(PlainConfig(), OBS, ACT, tuple(range(SEEDS)), CPU)

    return checked(bare, agent.name, SEEDS, ACT)


def rehearsed(agent: type[Any], updates_per_step: int = 1, batch_size: int = BATCH) -> None:
    protocol = Protocol(batch_size=batch_size, updates_per_step=updates_per_step)
    rehearse(partial(build, agent), OBS, protocol, CPU)


def act_as(change: Callable[[Any], Any]) -> type[Plain]:
    class Odd(Plain):
        def act(self, observation: Any, *, explore: bool) -> Any:
            return change(super().act(observation, explore=explore))

    return Odd


def update_as(change: Callable[[Plain, Batch], Any]) -> type[Plain]:
    class Odd(Plain):
        def metrics(self, batch: Batch) -> Any:
            return change(self, batch)

    return Odd


def metric(value: Any, name: Any = "loss") -> type[Plain]:
    return update_as(lambda agent, batch: {name: value})


def state_with(entry: Any) -> type[Plain]:
    class Odd(Plain):
        def state_dict(self) -> Any:
            return {**super().state_dict(), "more": {"deep": [entry]}}

    return Odd


def act_in_place(observation: Any) -> type[Plain]:
    class Odd(Plain):
        def act(self, observation: Any, *, explore: bool) -> Any:
            in_place(observation)
            return super().act(observation, explore=explore)

    in_place = observation
    return Odd


def showing(**methods: Callable[..., Any]) -> type[Plain]:
    """Return a plug-in with optional methods."""
    return type("Odd", (Plain,), methods)


def right_value(self: Any, observation: Any, action: Any) -> Any:
    return torch.zeros(action.shape[:2])


def right_samples(self: Any, observation: Any, count: int, streams: Any) -> Any:
    shape = (observation.shape[1], count, ACT)
    return streams.uniform(*shape, low=-1.0)


def right_score(self: Any, observation: Any, action: Any, streams: Any) -> Any:
    return torch.ones_like(action), 1.0 * action


def value_as(change: Callable[[Any], Any]) -> type[Plain]:
    return showing(action_value=lambda *inputs: change(right_value(*inputs)))


def samples_as(change: Callable[[Any], Any]) -> type[Plain]:
    return showing(sample_policy=lambda *inputs: change(right_samples(*inputs)))


def score_as(change: Callable[[Any, Any], Any]) -> type[Plain]:
    return showing(score_and_gradient=lambda *inputs: change(*right_score(*inputs)))


def counts_looks(self: Any, *_: Any) -> Any:
    self.updates += 1
    return torch.zeros(SEEDS, SEEDS + 1)


def draws_its_own(self: Any, observation: Any, count: int, streams: Any) -> Any:
    return right_samples(self, observation, count, self.stream)


def edits_states(self: Any, observation: Any, *_: Any) -> Any:
    return observation.mul_(0)


def exits(*_: Any) -> None:
    sys.exit("done")


class Forgets(Plain):
    def load_state_dict(self, state: Any) -> None:
        pass


class ForgetsMomentum(Plain):
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state | {"momentum": torch.zeros(SEEDS)})


class GlobalNoise(Plain):
    def act(self, observation: Any, *, explore: bool) -> Any:
        return torch.rand(*observation.shape[:2], ACT)


class OneStream(Plain):
    """It evaluates with the noise of training."""

    def act(self, observation: Any, *, explore: bool) -> Any:
        return super().act(observation, explore=True)


class LearnsFromEvaluations(Plain):
    def act(self, observation: Any, *, explore: bool) -> Any:
        self.weight = self.weight + (not explore)
        return super().act(observation, explore=explore)


class CountsNowhere(Plain):
    """Its third exploration after it is built is another; no state has the number."""

    explored = 0

    def act(self, observation: Any, *, explore: bool) -> Any:
        self.explored += explore
        return super().act(observation, explore=explore) * (0.5 if self.explored >= 3 else 1.0)


class NeedsEight(Plain):
    """Its update takes batches in groups of eight, and of at least two groups."""

    def metrics(self, batch: Batch) -> Any:
        assert batch.reward.shape[1] >= 16
        return {"loss": batch.reward.unflatten(1, (-1, 8)).mean(dim=(1, 2))}


class Refuses(Plain):
    def load_state_dict(self, state: Any) -> None:
        raise KeyError("weights")


class NoRoom(Plain):
    def __init__(self, config: Any) -> None:
        pass


nan = torch.full((SEEDS,), float("nan"))
BREACHES: list[tuple[type[Any], str]] = [
    (act_as(lambda a: a[:, 0]), r"act returned a tensor of shape \[2, 2\].*= \[2, 1, 2\]"),
    (act_as(lambda a: a.transpose(0, 1)), r"act returned a tensor of shape \[1, 2, 2\]"),
    (act_as(lambda a: a[..., :1]), r"act returned a tensor of shape \[2, 1, 1\]"),
    (act_as(lambda a: a.numpy()), r"act returned a value of type numpy.ndarray"),
    (act_as(lambda a: None), r"act returned None"),
    (act_as(lambda a: a.double()), r"act returned a tensor of torch.float64.*float32"),
    (act_as(lambda a: a.long()), r"act returned a tensor of torch.int64"),
    (act_as(lambda a: a.requires_grad_() * 1.0), r"act returned a tensor with a gradient"),
    (act_as(lambda a: 8 + a), r"act returned an action of size [78]\.\d+; .*\[-1, 1\]"),
    (act_as(exits), r"act\(observation, explore=True\) raised SystemExit: done"),
    (act_in_place(lambda o: o.mul_(2)), r"act changed its observation in place"),
    (act_in_place(lambda o: o.numpy().fill(0)), r"act changed its observation in place"),
    (update_as(lambda a, b: None), r"update returned None; it must return a dict"),
    (update_as(lambda a, b: [("loss", 1)]), r"update returned a value of type list"),
    (update_as(lambda a, b: b.reward.mul_(0) and {}), r"update\(batch\) raised RuntimeError"),
    (update_as(lambda a, b: b.reward.mul_(0).new_zeros(0).tolist() or {}), r"its batch in place"),
    (metric(1.0), r"update returned metric 'loss' as a value of type float"),
    (metric(torch.ones(())), r"update returned metric 'loss' as a tensor of shape \[\]"),
    (metric(torch.ones(SEEDS, BATCH)), r"update returned metric 'loss' as a tensor of shape"),
    (metric(torch.ones(SEEDS).bool()), r"update returned metric 'loss' as a tensor of torch.bool"),
    (metric(torch.ones(SEEDS, requires_grad=True) * 1), r"metric 'loss' as a tensor with a grad"),
    (metric(torch.ones(SEEDS, device="meta")), r"metric 'loss' on meta; it must be on cpu"),
    *(
        (metric(torch.ones(SEEDS), name), r"update returned a metric named")
        for name in ("seed", "step", "agent", "task", "wall_clock", "training_return", "")
    ),
    (metric(torch.ones(SEEDS), 3), r"a metric named 3: its name must be a string"),
    (metric(torch.ones(SEEDS), "a\nb"), r"a metric named 'a\\nb': a name is 1 to 100 printable"),
    (metric(torch.ones(SEEDS), "=1+1"), r"a metric named '=1\+1': a spreadsheet"),
    *(
        (state_with(entry), rf"state_dict\(\)\['more'\]\['deep'\]\[0\], which is a .*{kind}")
        for entry, kind in [
            (Path("x"), "Path"),
            (np.ones(2), "numpy.ndarray"),
            (np.float64(1), "float64"),
            (PlainConfig(), "PlainConfig"),
            (random.Random(0), "Random"),
            (len, "builtin_function"),
            (defaultdict(int), "defaultdict"),
            ({1}, "set"),
        ]
    ),
    (state_with({(1, 2): 3}), r"a dict with the key \(1, 2\)"),
    (value_as(lambda v: v[:, :1]), r"action_value returned a tensor of shape \[2, 1\]; .*\[2, 3\]"),
    (value_as(lambda v: None), r"action_value returned None; it must be a float tensor"),
    (value_as(lambda v: v.double()), r"action_value returned a tensor of torch.float64"),
    (value_as(lambda v: v.requires_grad_() * 1), r"action_value returned a tensor with a gradient"),
    (value_as(lambda v: v / 0), r"action_value returned a number that is not finite"),
    (showing(action_value=right_samples), r"action_value\(observation, action\) raised TypeError"),
    (showing(action_value=counts_looks), r"changed the agent's state"),
    (showing(action_value=edits_states), r"action_value changed its observation or action in pl"),
    (samples_as(lambda a: a.transpose(1, 2)), r"sample_policy returned a tensor of shape"),
    (samples_as(lambda a: a[:, :, 0]), r"sample_policy returned a tensor of shape \[2, 3, 2\]"),
    (samples_as(lambda a: torch.cat([a, a], 2)), r"= \[2, 3, 2, 2\]"),
    (samples_as(lambda a: 8 + a), r"sample_policy returned an action of size"),
    (samples_as(lambda a: a * nan.view(-1, 1, 1, 1)), r"sample_policy .*not finite"),
    (samples_as(exits), r"sample_policy\(observation, count, streams\) raised SystemExit: done"),
    (showing(sample_policy=draws_its_own), r"changed the agent's state"),
    (showing(sample_policy=edits_states), r"sample_policy changed its observation in place"),
    (score_as(lambda s, g: s), r"score_and_gradient returned .*Tensor; it must return two tensors"),
    (score_as(lambda s, g: (s, g, g)), r"score_and_gradient returned a value of type tuple"),
    (score_as(lambda s, g: (s, g[0])), r"score_and_gradient returned a tensor of shape \[3, 2\]"),
    (score_as(lambda s, g: (s, g / 0)), r"score_and_gradient returned a number that is not fin"),
    (Forgets, r"load_state_dict\(state_dict\(\)\) does not make a new agent go on"),
    (ForgetsMomentum, r"load_state_dict\(state_dict\(\)\) does not make a new agent go on"),
    (GlobalNoise, r"load_state_dict\(state_dict\(\)\) does not make a new agent go on"),
    (OneStream, r"act\(observation, explore=False\) changes how the agent learns and explores"),
    (LearnsFromEvaluations, r"act\(observation, explore=False\) changes how the agent learns"),
    (Refuses, r"load_state_dict\(state_dict\(\)\) raised KeyError: 'weights'"),
    (NoRoom, r"\(config, observation_size, action_size, seeds, device\) raised TypeError"),
]


@pytest.mark.parametrize(("agent", "message"), BREACHES)
def test_a_breach_is_one_line_with_agent_method_and_remedy(agent: Any, message: str) -> None:
    with pytest.raises(AgentError, match=message) as breach:
        rehearsed(agent)
    assert str(breach.value).startswith("agent 'plain': ")
    assert "\n" not in str(breach.value)


def several_as(change: Callable[[Any, Any], Any]) -> type[Plain]:
    return showing(update_several=lambda self, batches: change(self, batches))


def scaled(factor: float, agent: Any, batches: Any) -> Any:
    return [{"weight": factor * agent.update(each)["weight"]} for each in batches]


def test_what_only_a_longer_run_shows_is_not_blamed_on_an_evaluation() -> None:
    rehearsed(CountsNowhere)


def test_an_agent_that_cannot_take_a_small_batch_is_rehearsed_with_its_own() -> None:
    rehearsed(NeedsEight, batch_size=32)
    with pytest.raises(AgentError, match=r"update\(batch\) raised RuntimeError"):
        rehearsed(NeedsEight, batch_size=20)


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (update_as(lambda a, b: 1 / 0), r"plain': update\(batch\) raised ZeroDivisionError"),
        (
            several_as(lambda a, b: None),
            r"update_several returned None; it must return a list",
        ),
        (several_as(lambda a, b: [a.update(b[0])]), r"must return a list of 2 dicts of metrics"),
        (several_as(lambda a, b: 1 / 0), r"update_several\(batches\) raised ZeroDivisionError"),
        (several_as(lambda a, b: [{"loss": 1.0}] * 2), r"update_several returned metric 'loss' as"),
        (GlobalNoise, r"load_state_dict\(state_dict\(\)\) does not make a new agent go on"),
        (
            several_as(lambda a, b: [a.update(b[0])] * 2),
            r"update_several\(batches\) does not do what as many calls of update do",
        ),
        (
            several_as(lambda a, b: [a.update(each) for each in reversed(b)]),
            r"update_several\(batches\) does not do what as many calls of update do",
        ),
        (
            several_as(partial(scaled, 2.0)),
            r"update_several\(batches\) does not do what as many calls of update do",
        ),
    ],
)
def test_several_updates_a_step_are_rehearsed(agent: Any, message: str) -> None:
    rehearsed(Plain, updates_per_step=40)
    rehearsed(several_as(partial(scaled, 1 + 1e-6)), updates_per_step=40)
    with pytest.raises(AgentError, match=message):
        rehearsed(agent, updates_per_step=40)


@pytest.mark.parametrize(
    "agent",
    [
        Plain,
        update_as(lambda agent, batch: {}),
        metric(nan),
        metric(torch.ones(SEEDS).double()),
        act_as(lambda a: a.sign()),
        showing(action_value=right_value, sample_policy=right_samples),
        showing(sample_policy=right_samples, score_and_gradient=right_score),
        samples_as(lambda a: a[:, :, :1]),
        act_as(lambda a: a * float("nan")),
        state_with(OrderedDict(a=None, b=(1, 2.0, True, "x"), c=torch.nn.Parameter(nan))),
    ],
)
def test_what_keeps_the_protocol_goes_unseen(agent: Any) -> None:
    rehearsed(agent)


def test_an_infinite_action_is_divergence_and_hides_no_other_breach() -> None:
    inf = torch.full((SEEDS, 1, ACT), float("inf"))
    observation = torch.zeros(SEEDS, 1, OBS)
    assert build(act_as(lambda a: inf)).act(observation, explore=True) is inf
    both = torch.stack([inf[0], torch.full((1, ACT), -1.5)])
    with pytest.raises(AgentError, match=r"size 1\.5"):
        build(act_as(lambda a: both)).act(observation, explore=True)


def test_a_state_that_never_ends_is_refused() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(AgentError, match="nested deeper than 100 levels"):
        rehearsed(state_with(state))


def test_a_breach_after_the_rehearsal_is_found_at_the_step_it_comes(tmp_path: Path) -> None:
    training = Training(
        make_job("tests.qsm_bench.plain_agents:Plain"), JobFolder(tmp_path), checkpoint_every=1000
    )
    act = training.agent.bare.act

    def late(observation: Any, *, explore: bool) -> Any:
        return act(observation, explore=explore) * (1 if training.step < 15 else 5)

    training.agent.bare.act = late  # type: ignore[method-assign]
    with pytest.raises(AgentError, match="actions lie in"):
        training.run()
    assert training.step == 15
    training.close()


def test_the_rehearsal_is_not_seen_in_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    monkeypatch.setattr("qsm_bench.training.rehearse", lambda *_: None)
    assert train(job, tmp_path)
    monkeypatch.undo()
    assert written(tmp_path) == uncut(job.model_dump_json())
