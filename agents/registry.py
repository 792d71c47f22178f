"""Agents by name: built in, installed as a plug-in, or ``module:Class`` of an outside author."""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from agents.protocol import Agent

BUILT_IN = (
    "agents.qsm:QSM",
    "agents.diffusion_ql:DiffusionQL",
    "agents.diffusion_pg:DiffusionPG",
    "agents.sac:SAC",
    "agents.td3:TD3",
)
PLUGIN_GROUP = "qsm_bench.agents"


class AgentError(ValueError):
    """A name that stands for no agent; the message is one line that names it and its neighbours."""


@dataclass(frozen=True)
class RegisteredAgent:
    """What a name stands for: an agent's class and the settings its preset changes."""

    name: str
    """As reports show it."""
    key: str
    """As ``find_agent`` finds it: the name, or ``module:Class``."""
    agent: type[Agent]
    preset: Mapping[str, Any]


def registered_agents() -> dict[str, RegisteredAgent]:
    """Every agent and preset, built in or installed under the entry point group, by name."""
    plugins = [entry.value for entry in entry_points(group=PLUGIN_GROUP)]
    return {
        entry.name: entry for path in (*BUILT_IN, *plugins) for entry in _with_presets(_load(path))
    }


def find_agent(name: str) -> RegisteredAgent:
    """The agent of that name, or of that ``module:Class`` path. Raises AgentError if none is."""
    if ":" in name:
        agent = _load(name)
        return RegisteredAgent(agent.name, name, agent, {})
    agents = registered_agents()
    if name not in agents:
        near = difflib.get_close_matches(name, agents, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?"
        if not near:
            hint = f"it must be one of {', '.join(agents)}, or module:Class"
        raise AgentError(f"unknown agent {name!r}: {hint}")
    return agents[name]


def _with_presets(agent: type[Agent]) -> list[RegisteredAgent]:
    variants = {agent.name: {}, **agent.presets}
    return [RegisteredAgent(name, name, agent, preset) for name, preset in variants.items()]


def _load(path: str) -> type[Agent]:
    """Import ``module:Class``. Raises AgentError if there is no agent to be had there."""
    module_name, _, class_name = path.partition(":")
    if not class_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise AgentError(f"agent {path!r}: write it as module:Class")
    try:
        agent = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        raise AgentError(f"agent {path!r}: no module named {error.name!r}") from error
    except AttributeError as error:
        raise AgentError(f"agent {path!r}: {module_name} has no {class_name!r}") from error
    except Exception as error:  # whatever an outside author's module raises
        raise AgentError(f"agent {path!r}: {module_name} cannot be imported: {error}") from error
    missing = [
        attribute
        for attribute in (
            "name",
            "config_class",
            "presets",
            "task_settings",
            "act",
            "update",
            "state_dict",
            "load_state_dict",
        )
        if not hasattr(agent, attribute)
    ]
    if missing:
        raise AgentError(
            f"agent {path!r} does not keep the protocol: it lacks {', '.join(missing)}"
        )
    loaded: type[Agent] = agent
    return loaded
