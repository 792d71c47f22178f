"""What products in bfloat16 gain beside float32, eager and compiled: ``make bench``."""

from typing import Any

import pytest

from agents.registry import built_in_trainers
from agents.speed.precision import slows_down
from tests.benchmarks import precision
from tests.benchmarks.workload import BATCH, SIDE, SideBySide, new_agent, new_batch, note, seconds

GOALS = {"qsm": 1.5, "diffusion_ql": 1.5, "sac": 1.4, "td3": 1.4}
"""How many times as fast as float32 a compiled update is to be."""


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", built_in_trainers())
def test_bfloat16_beside_float32(benchmark: Any, name: str, compiled: bool) -> None:
    if compiled and benchmark.disabled:
        pytest.skip("compiled only to be measured")
    if not benchmark.disabled and (reason := slows_down(BATCH, (SIDE, SIDE))):
        pytest.skip(f"a run would refuse bfloat16 here: {reason}")
    batch = new_batch(1)
    plain = new_agent(name, 1, compiled=compiled)
    rounded = new_agent(name, 1, compiled=compiled, matmul_precision="bfloat16")
    goal = GOALS.get(name) if compiled else None
    # TD3 moves its actor at every second update, so two are one round.
    run = SideBySide(
        benchmark,
        lambda: (rounded.update(batch), rounded.update(batch)),
        rounds=100 if goal else 30,
    )
    run.also_measure("float32", lambda: seconds(lambda: plain.update(batch), 2))
    if run.run():
        per_update, in_float32 = run.median / 2, run.median_of("float32")
        note(
            benchmark,
            f"{name}, S = 1, {'compiled' if compiled else 'eager'}, bfloat16",
            f"{1 / per_update:.0f} seed-updates/s",
            in_float32 / per_update,
            f"times float32's {1 / in_float32:.0f}/s",
            str(goal or ""),
        )


@pytest.mark.parametrize("name", built_in_trainers())
def test_rounding_shows_in_the_gradients_of_every_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "DRAWS", 1)
    for network, errors in precision.gradient_errors(name).items():
        assert errors["float32"] < 1e-5, network
        if network != "temperature":  # one number, whose gradient hardly depends on products
            assert 10 * errors["float32"] < errors["bfloat16"] < 0.1, network
