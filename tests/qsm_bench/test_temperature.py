"""The effective temperature in the table of settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.protocol import StatesTemperature
from agents.registry import AgentError, RegisteredAgent, built_in_agents
from agents.td3 import TD3
from qsm_bench.report import temperature
from qsm_bench.report.document import Table
from qsm_bench.report.runs import what_ran
from qsm_bench.report.temperature import EXPLAINED, ROW, temperatures
from qsm_bench.report.wording import NONE
from qsm_bench.results import Results
from tests.qsm_bench.synthetic import make_results

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "qsm": {"alpha": 50.0},
    "qsm_normalized": {"target_scale": "normalized"},
}


def make(*agents: str, tasks: tuple[str, ...] = ("a",), **settings: Any) -> Results:
    """Results of these agents; the metric "temperature" is 5 + seed, 10 + seed and 15 + seed."""
    results = make_results(agents, tasks, seeds=3, evaluations=3, metrics=("temperature",))
    cells = [
        cell | {"settings": {"discount": 0.99, **SETTINGS.get(cell["agent_name"], {}), **settings}}
        for cell in results.cells
    ]
    return replace(results, cells=cells)


def shown(results: Results) -> dict[str, str]:
    """The row of the report, by agent; nothing if there is none."""
    for block in what_ran(results).blocks:
        if isinstance(block, Table) and "setting" in block.cells:
            rows = block.cells.set_index("setting")
            if ROW in rows.index:
                return {str(agent): str(column[ROW]) for agent, column in rows.items()}
    return {}


def test_every_trainer_that_is_built_in_states_one() -> None:
    results = make(
        "qsm",
        "qsm_normalized",
        "sdac",
        "qvpo",
        "dpmd",
        "langevin",
        "sac",
        "diffusion_ql",
        "diffusion_pg",
        "dipo",
        "dacer",
        "td3",
    )
    assert shown(results) == {
        "qsm": "0.00885",  # sqrt(1 - exp(-0.218)) / 50
        "qsm_normalized": "16.0 (6.00 to 16.0)",  # the mean over seeds 0, 1 and 2
        "sdac": "0.0200",
        "qvpo": NONE,
        "dpmd": NONE,
        "langevin": "0.0200",
        "sac": "16.0 (6.00 to 16.0)",
        "diffusion_ql": "0 (climbs Q)",
        "diffusion_pg": "0 (climbs Q)",
        "dipo": "0 (climbs Q)",
        "dacer": "0 (climbs Q)",
        "td3": "0 (climbs Q)",
    }
    assert EXPLAINED in str(what_ran(results).blocks)
    assert all(isinstance(entry.agent, StatesTemperature) for entry in built_in_agents().values())


@given(st.floats(1e-3, 1e3), st.integers(1, 30))
def test_that_of_qsm_falls_as_alpha_grows_and_lies_below_1_over_alpha(
    alpha: float, steps: int
) -> None:
    results = make("qsm", alpha=alpha, diffusion_steps=steps)
    found = temperatures(results, results.cells[0])["temperature"]
    exact = (1 - np.exp(-0.1 / steps - 4.95 / steps**2)) ** 0.5 / alpha
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_with_cloning_there_is_none() -> None:
    results = make("diffusion_ql", "qsm")
    results.cells[0]["settings"]["cloning_weight"] = 0.5
    assert shown(results)["diffusion_ql"] == NONE


def test_a_task_with_another_is_named() -> None:
    results = make("qsm", tasks=("a", "b", "c"))
    results.cells[2]["settings"]["alpha"] = 5.0
    assert shown(results) == {"qsm": "0.00885 (0.0885 on c)"}


def test_what_was_not_recorded_is_a_dash() -> None:
    results = make("sac", "qsm")
    without = replace(results, training=results.training.drop(columns="temperature"))
    assert shown(without) == {"sac": NONE, "qsm": "0.00885"}
    blank = results.training.assign(temperature=np.nan)
    assert shown(replace(results, training=blank)) == {"sac": NONE, "qsm": "0.00885"}
    nothing = pd.DataFrame(columns=results.training.columns)
    assert shown(replace(results, training=nothing)) == {"sac": NONE, "qsm": "0.00885"}


def test_agents_of_which_none_is_known_have_no_row() -> None:
    results = make("nobody")
    assert shown(results) == {}
    assert EXPLAINED not in str(what_ran(results).blocks)


def test_settings_that_the_agent_no_longer_has_are_a_dash() -> None:
    assert shown(make("qsm", "td3", alpha=1.0)) == {"qsm": "0.443", "td3": NONE}


def test_no_module_is_imported_because_results_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> RegisteredAgent:
        raise AssertionError(f"{name} was looked for")

    results = make("x.y:Z")
    monkeypatch.setattr(temperature, "find_agent", refuse)
    assert shown(results) == {}


class Stating(TD3):
    """An outside agent with a temperature of its own."""

    @classmethod
    def effective_temperature(cls, config: Any, metrics: Mapping[str, float]) -> float | None:
        return metrics["temperature"] / 2


def test_an_installed_agent_of_somebody_elses_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = RegisteredAgent("outside", "outside", Stating, {})
    monkeypatch.setattr(temperature, "find_agent", lambda name: entry)
    results = make("outside")
    assert shown(results) == {"outside": "8.00 (3.00 to 8.00)"}
    without = replace(results, training=results.training.drop(columns="temperature"))
    with pytest.raises(AgentError, match="raised KeyError: 'temperature'"):
        shown(without)
