"""Agents by name: built in, installed as a plug-in, or ``module:Class`` of an outside author.

A name stands for one agent: a built-in agent or preset keeps its name, and so does the plug-in
that comes first in the order of their paths. Plug-ins are imported only where a name is looked for
that is not built in, or all are listed; one that is broken is left out with a line of warning.
"""

import contextlib
import difflib
import importlib
import io
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache, reduce
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any

from agents.protocol import Agent, AgentConfig

BUILT_IN = (
    "agents.qsm:QSM",
    "agents.diffusion_ql:DiffusionQL",
    "agents.diffusion_pg:DiffusionPG",
    "agents.sdac:SDAC",
    "agents.qvpo:QVPO",
    "agents.dipo:DIPO",
    "agents.dacer:DACER",
    "agents.dpmd:DPMD",
    "agents.langevin:Langevin",
    "agents.sac:SAC",
    "agents.td3:TD3",
)
"""The trainers of this package. With a line here a trainer is listed, described and run, and
``regress`` and the speed gate watch it."""
PLUGIN_GROUP = "qsm_bench.agents"
NAME = re.compile(r"[^\W_]([\w.+ -]{0,62}[\w.+-])?")
METHODS = ("act", "update", "state_dict", "load_state_dict")
ATTRIBUTES = ("name", "config_class", "presets", "task_settings")


class AgentError(ValueError):
    """Something is wrong with an agent or its name; the message is one line that says what."""


@dataclass(frozen=True)
class RegisteredAgent:
    """What a name stands for: an agent's class and the settings its preset changes."""

    name: str
    """The name that reports show."""
    key: str
    """What ``find_agent`` finds it by: the name, or ``module:Class``."""
    agent: type[Agent]
    preset: Mapping[str, Any]


def registered_agents() -> dict[str, RegisteredAgent]:
    """Return every agent and preset, built in or installed as a plug-in, by name."""
    return built_in_agents() | _plugins()


@cache
def built_in_agents() -> dict[str, RegisteredAgent]:
    """Return the agents of this package and their presets, by name."""
    return {entry.name: entry for path in BUILT_IN for entry in _with_presets(_load(path))}


def built_in_trainers() -> tuple[str, ...]:
    """Return the names of the trainers of this package, in their order, without presets."""
    return tuple(_load(path).name for path in BUILT_IN)


def find_agent(name: str) -> RegisteredAgent:
    """Find an agent by its name or ``module:Class`` path. Raises AgentError if there is none."""
    if ":" in name:
        agent = _load(name)
        built_in = agent.name in built_in_agents() and name not in BUILT_IN
        if built_in or set(_plugin_paths(agent.name)) - {name}:
            owner = "a built-in agent" if built_in else "a plug-in"
            raise AgentError(
                f"agent {name!r}: its name {agent.name!r} is taken by {owner}; give the class "
                "another name"
            )
        return RegisteredAgent(agent.name, name, agent, {})
    if name in built_in_agents():
        for path in _plugin_paths(name):
            _warn(path, f"the name {name!r} is taken by a built-in agent")
        return built_in_agents()[name]
    agents = registered_agents()
    if name not in agents:
        similar = difflib.get_close_matches(name, agents, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, similar))}?"
        if not similar:
            hint = f"it must be one of {', '.join(agents)}, or module:Class"
        raise AgentError(f"unknown agent {name!r}: {hint}")
    return agents[name]


@cache
def _plugins() -> dict[str, RegisteredAgent]:
    """Load the agents of installed plug-ins and their presets; warn of those that are left out."""
    found: dict[str, RegisteredAgent] = {}
    for path in _plugin_paths():
        try:
            with _quiet():
                entries = _with_presets(_load(path))
        except AgentError as error:
            _warn(path, str(error).removeprefix(f"agent {path!r}: "))
            continue
        taken = [e.name for e in entries if e.name in built_in_agents() or e.name in found]
        if taken:
            owner = "a built-in agent" if taken[0] in built_in_agents() else "another plug-in"
            _warn(path, f"the name {taken[0]!r} is taken by {owner}")
            continue
        found |= {entry.name: entry for entry in entries}
    return found


def _plugin_paths(name: str | None = None) -> list[str]:
    """Return the sorted ``module:Class`` paths of installed plug-ins; only those under ``name``."""
    return sorted({path for announced, path in _announced() if name in (None, announced)})


@cache
def _announced() -> list[tuple[str, str]]:
    """Return the name and path of each installed plug-in.

    All that is installed is looked through, which takes longer than all else in finding an agent.
    """
    # An entry may name extras of its package in brackets.
    return [
        (entry.name, entry.value.partition("[")[0].replace(" ", ""))
        for entry in entry_points(group=PLUGIN_GROUP)
    ]


@cache
def _warn(path: str, fault: str) -> None:
    """Warn, once, that a plug-in is left out."""
    print(f"warning: the plug-in {path!r} is left out: {fault}", file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what a module prints to stderr, or nowhere if it cannot be imported."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield
    sys.stderr.write(printed.getvalue())


def _with_presets(agent: type[Agent]) -> list[RegisteredAgent]:
    variants = {agent.name: {}, **agent.presets}
    return [RegisteredAgent(name, name, agent, preset) for name, preset in variants.items()]


def _load(path: str) -> type[Agent]:
    """Import ``module:Class``. Raises AgentError if there is no agent of that path."""
    module_name, _, class_name = path.partition(":")
    if not class_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise AgentError(f"agent {path!r}: write it as module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AgentError(f"agent {path!r}: no module named {error.name!r}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever an outside author's module raises, sys.exit() too
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise AgentError(f"agent {path!r}: {module_name} cannot be imported: {reason}") from error
    try:
        agent = reduce(getattr, class_name.split("."), module)
    except AttributeError as error:
        raise AgentError(f"agent {path!r}: {module_name} has no {class_name!r}") from error
    fault = _fault(agent)
    if fault:
        raise AgentError(f"agent {path!r}: {fault}")
    loaded: type[Agent] = agent  # type: ignore[assignment]
    return loaded


def _fault(agent: Any) -> str | None:
    """Say what keeps a class from being an agent; None if the class alone shows nothing."""
    if not isinstance(agent, type):
        return f"it is of type {type(agent).__name__}, and must be a class"
    missing = [what for what in (*ATTRIBUTES, *METHODS) if not hasattr(agent, what)]
    if missing:
        return f"it does not keep the protocol: it lacks {', '.join(missing)}"
    for method in METHODS:
        if not callable(getattr(agent, method)):
            return f"{method} is {getattr(agent, method)!r}, and must be a method"
    promises = vars(agent).get("promises_pure_update")
    if promises and not isinstance(getattr(agent, "pure_update", None), FunctionType):
        return "it says promises_pure_update, and has no plain method pure_update"
    for what in ("presets", "task_settings"):
        value = getattr(agent, what)
        if not isinstance(value, Mapping) or not all(
            isinstance(key, str) and isinstance(settings, Mapping)
            for key, settings in value.items()
        ):
            return f"{what} must be a mapping from names to mappings of settings"
    name, presets = agent.name, agent.presets  # type: ignore[attr-defined]
    for each in (name, *presets):
        if not isinstance(each, str) or not NAME.fullmatch(each):
            return (
                f"the name {each!r} cannot stand in a label: use up to 64 letters, digits, spaces "
                "and '_', '.', '+', '-', beginning with a letter or digit"
            )
    if name in presets:
        return f"its preset {name!r} has its own name"
    return _config_fault(agent.config_class)  # type: ignore[attr-defined]


def _config_fault(config_class: Any) -> str | None:
    if not (isinstance(config_class, type) and issubclass(config_class, AgentConfig)):
        return f"config_class must derive from AgentConfig, and is {config_class!r}"
    if "__dataclass_fields__" not in vars(config_class):
        return f"config_class {config_class.__name__} lacks @dataclass(frozen=True)"
    for field in fields(config_class):
        if field.default is MISSING or not field.init:
            return (
                f"setting {field.name} of {config_class.__name__} must have a plain default: a "
                "number, string, boolean, None, or a tuple of them"
            )
    return None
