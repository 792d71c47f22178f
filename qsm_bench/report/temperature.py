"""The effective temperature of each agent, in units of the task's own reward.

It is what the agent's class says, see ``StatesTemperature`` in ``agents.protocol``, of the settings
and the metrics that were recorded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from agents.protocol import StatesTemperature
from agents.registry import AgentError, find_agent
from qsm_bench.errors import UserError, reason_of
from qsm_bench.report.wording import NONE, number
from qsm_bench.results import TRAINING_COLUMNS, Results
from qsm_bench.settings import validated

ROW = "effective temperature (units of reward)"
"""What the table of settings calls it."""
EXPLAINED = (
    "The effective temperature tau is what makes trainers comparable: at a fixed critic, the loss "
    "of the agent asks for a policy whose score is grad_a Q / tau, which has the density "
    "exp(Q / tau). Of a diffusion it is that of the last noisy action, a^1. It is the mean over "
    "seeds at the end of training; in brackets its range over training, if it changes. 0: the "
    f"loss climbs Q alone, and asks for no randomness. {NONE}: the agent states none, or what it "
    "follows from was not recorded. Exploration noise is not counted."
)


def temperature_text(results: Results, cell: Mapping[str, Any]) -> str:
    """The effective temperature of a cell as the table of settings shows it."""
    values = temperatures(results, cell)["temperature"]
    if values.empty:
        return NONE
    last, low, high = float(values.iloc[-1]), float(values.min()), float(values.max())
    if high == 0:
        return "0 (climbs Q)"
    return number(last) if low == high else f"{number(last)} ({number(low)} to {number(high)})"


def temperatures(results: Results, cell: Mapping[str, Any]) -> pd.DataFrame:
    """The effective temperature in training, where it is known. Columns: step, temperature.

    Raises AgentError if the agent's method is wrong.
    """
    agent = _agent_of(cell)
    if agent is None:
        return pd.DataFrame(columns=["step", "temperature"], dtype=float)
    config = validated(str(cell["agent_name"]), agent.config_class, cell["settings"])
    metrics = _metrics(results, cell)
    rows = [
        (step, _stated(agent, config, {str(name): value for name, value in row.dropna().items()}))
        for step, row in metrics.iterrows()
    ]
    table = pd.DataFrame(rows, columns=["step", "temperature"]).astype(float)
    return table.replace([np.inf, -np.inf], np.nan).dropna(ignore_index=True)


def _agent_of(cell: Mapping[str, Any]) -> Any:
    """The class of a cell's agent, if it states a temperature and its settings are still known.

    A report imports no module that results name: an agent given as module:Class is not asked.
    """
    name = str(cell["agent_name"])
    if ":" in name:
        return None
    try:
        agent = find_agent(name).agent
        validated(name, agent.config_class, cell["settings"])
    except (AgentError, UserError):
        return None
    return agent if isinstance(agent, StatesTemperature) else None


def _metrics(results: Results, cell: Mapping[str, Any]) -> pd.DataFrame:
    """The metrics of a cell, averaged over its seeds: a row for each step with any.

    If there is none, there is one row without metrics, of the cell's last step.
    """
    table = results.training
    rows = table[(table["agent"] == cell["agent"]) & (table["task"] == cell["task"])]
    named = rows.drop(columns=["agent", "task", *TRAINING_COLUMNS], errors="ignore")
    known = named.apply(pd.to_numeric, errors="coerce").groupby(rows["step"]).mean()
    known = known.dropna(how="all")
    return known if len(known) else pd.DataFrame(index=[cell["step"]])


def _stated(agent: Any, config: Any, metrics: Mapping[str, float]) -> float:
    """What the agent states, NaN if it does not know. Raises AgentError if it is no number."""
    try:
        found = agent.effective_temperature(config, metrics)
        return np.nan if found is None else float(found)
    except Exception as error:
        reason = reason_of(error)
        raise AgentError(
            f"agent {agent.name!r}: effective_temperature(config, metrics) raised {reason}"
        ) from error
