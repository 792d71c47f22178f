"""Describe an agent in text: its source, equations and settings."""

import inspect
import sys
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic.fields import FieldInfo

from agents.registry import find_agent


def describe_agent(name: str) -> str:
    """A description of an agent or preset. Raises AgentError if there is none of that name."""
    registered = find_agent(name)
    agent = registered.agent
    lines = [f"{registered.name}: {agent.__module__}:{agent.__name__}", ""]
    lines += (inspect.getdoc(sys.modules[agent.__module__]) or "").splitlines()
    lines += ["", "Settings:"]
    hints = get_type_hints(agent.config_class, include_extras=True)
    for field in fields(agent.config_class):
        value = registered.preset.get(field.name, field.default)
        changed = (
            f" (default of {agent.name}: {field.default})"
            if field.name in registered.preset
            else ""
        )
        lines.append(f"  {field.name} = {value}{changed}")
        lines.append(f"      {_meaning(hints[field.name])}")
    for pattern, settings in agent.task_settings.items():
        pairs = ", ".join(f"{key} = {value}" for key, value in settings.items())
        lines += ["", f"On tasks {pattern}, unless set: {pairs}"]
    for preset, settings in agent.presets.items():
        pairs = ", ".join(f"{key} = {value}" for key, value in settings.items())
        lines += ["", f"Preset {preset}: {pairs}"]
    return "\n".join(lines)


def _meaning(hint: Any) -> str:
    """The description of a setting, from the annotation of its field."""
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    return "not documented"
