"""What a training step costs beside its update: ``make bench``."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from envs import Lockstep
from qsm_bench.suites import SUITES
from tests.benchmarks.lockstep import prepared
from tests.benchmarks.workload import OBSERVATION, SideBySide, new_agent, new_batch, note, seconds

STEPS = 200


def test_acting(benchmark: Any) -> None:
    # Compiled, as in a long run.
    agent, batch = new_agent("qsm", 8, compiled=not benchmark.disabled), new_batch(8)
    observation = torch.randn(8, 1, OBSERVATION)
    run = SideBySide(benchmark, lambda: agent.act(observation, explore=True))
    run.also_measure("update", lambda: seconds(lambda: agent.update(batch)))
    if run.run():
        note(
            benchmark,
            "acting, qsm, T = 5, S = 8, one observation each",
            f"{1e3 * run.median:.2f} ms",
            run.median / (run.median + run.median_of("update")),
            "of acting and a compiled update",
            "under 0.15",
        )


class Clock:
    """The time of calls by name, without that of the counted calls inside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.spent: dict[str, float] = {}
        self._inside: list[float] = []

    def on(self, thing: Any, method: str, name: str) -> None:
        """Count the time of every call of a method."""
        call: Callable[..., Any] = getattr(thing, method)

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = perf_counter() - began
                self.spent[name] = self.spent.get(name, 0.0) + took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        self.monkeypatch.setattr(thing, method, timed)


QUICK = SUITES["quick"].protocol


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("task", "seeds", "sizes", "protocol"),
    [
        ("walker-walk", 4, "", {}),
        (
            "cartpole-balance",
            8,
            "2 x 64, batch 64, ",  # the quick suite's
            {"batch_size": QUICK.batch_size, "settings": QUICK.settings},
        ),
    ],
    ids=["usual", "small"],
)
def test_where_a_training_run_spends_its_time(
    benchmark: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    seeds: int,
    sizes: str,
    protocol: dict[str, Any],
    compiled: bool,
) -> None:
    if benchmark.disabled and compiled:
        pytest.skip("compiling takes long, and the parts are those of an eager run")
    training = prepared("qsm", task, seeds, 0, tmp_path / "cell", compiled=compiled, **protocol)
    clock = Clock(monkeypatch)
    environments = training.environments
    assert isinstance(environments, Lockstep)
    for environment in environments._envs:
        clock.on(environment.unwrapped, "step", "physics and its Gymnasium adapter")
    clock.on(environments, "finish", "flattening, rescaling and checking")
    clock.on(training.replay, "add", "replay: insert")
    clock.on(training.replay, "sample_several", "replay: sample")
    clock.on(training.agent, "act", "acting")
    clock.on(training, "_take_step", "the loop itself")
    if compiled:  # one program, which has no parts
        clock.on(training.agent, "update", "update")
    else:
        clock_the_update(clock, training.agent)
    rounds = 1 if benchmark.disabled else STEPS
    benchmark.pedantic(training._take_step, rounds=rounds)
    training.close()
    ours = ("flattening, rescaling and checking", "replay: insert", "replay: sample")
    environment_side = sum(clock.spent[name] for name in ours)
    if benchmark.stats is None:
        return
    total = sum(clock.spent.values())
    run = f"{task}, qsm, {sizes}S = {seeds}, {'compiled' if compiled else 'eager'}"
    note(benchmark, f"{run}: a step", f"{1e3 * total / STEPS:.2f} ms", 1.0, "of a step")
    for name, spent in sorted(clock.spent.items(), key=lambda item: -item[1]):
        measured = f"{1e3 * spent / STEPS:.2f} ms"
        note(benchmark, f"{run}: {name}", measured, spent / total, "of a step")
    note(
        benchmark,
        f"{run}: environment side (flatten, rescale, replay insert and sample)",
        f"{1e3 * environment_side / STEPS:.2f} ms",
        environment_side / total,
        "of a step",
        "" if sizes else "under 0.1",
    )


def clock_the_update(clock: Clock, wrapped: Any) -> None:
    """Count the parts of qsm's eager update."""
    agent = wrapped.bare
    clock.on(wrapped, "update", "update: the rest, noise and metrics")
    clock.on(agent, "next_action", "update: the sampler, for the critic's target")
    clock.on(agent.target_critic, "forward", "update: target critic")
    clock.on(agent.critic, "forward", "update: critic, forward and for grad_a Q")
    clock.on(agent.critic_optimizer, "descend", "update: critic, backward and step")
    clock.on(agent.actor_optimizer, "minimize", "update: actor, backward and step")
    clock.on(agent, "actor_loss", "update: actor, the rest of grad_a Q and its loss")
