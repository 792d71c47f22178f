"""An experiment: a grid of agents x tasks; each cell is a job for each group of its seeds."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from agents.protocol import AgentConfig
from agents.registry import RegisteredAgent, find_agent
from envs import Task, find_task
from qsm_bench.errors import UserError, did_you_mean
from qsm_bench.groups import Groups, listed_seeds
from qsm_bench.protocol import Protocol
from qsm_bench.settings import as_json, validated
from qsm_bench.stages import Stages

EXTERNAL_FOLDER = "external"
"""Of an experiment: it holds what was imported, so no agent may have this label."""


class Job(BaseModel):
    """Everything that decides a job's results: two equal jobs give equal numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    """The label: the agent's name with the settings asked for, e.g. ``qsm[alpha=10]``."""
    agent_name: str
    settings: dict[str, Any]
    """Every setting of the agent, resolved for this task."""
    task: str
    gymnasium_id: str
    score_range: tuple[float, float] | None
    seeds: tuple[int, ...]
    protocol: Protocol
    device: str
    """The kind of device: cpu or cuda. Where it runs decides which of its kind."""
    compiled: bool = False
    """Updates run as compiled code: the same up to the order of floating-point operations."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, content: Any) -> Any:
        """Up to November 2026 a GPU had its number, and the protocol's fields were the job's."""
        if isinstance(content, dict) and str(content.get("device")).startswith("cuda:"):
            content = content | {"device": "cuda"}
        if not isinstance(content, dict) or "protocol" in content:
            return content
        known = {name: content[name] for name in Protocol.model_fields if name in content}
        own = {name: value for name, value in content.items() if name not in known}
        own["settings"] = known.pop("settings", None)
        if known.get("replay_capacity") == known.get("steps"):
            # It was noted as the room that a run needs, whatever the buffer might hold.
            known.pop("replay_capacity", None)
        return own | {"protocol": known}

    @property
    def environment(self) -> Task:
        """The task as the job's environments are made from it."""
        return Task(self.task, self.gymnasium_id, self.score_range, self.protocol.action_repeat)

    @property
    def identity(self) -> str:
        """A text that another job does not have, wherever it is computed.

        How long the job is does not matter: a checkpoint of a shorter one is one of its own. What
        the protocol sets for every agent stands among the settings.
        """
        where = {"device": True, "compiled": True}
        content = self.model_dump(mode="json", exclude={**where, "protocol": {"steps", "settings"}})
        return _digest(content)

    @property
    def earlier_identity(self) -> str:
        """The identity that checkpoints up to November 2026 name."""
        content = self.model_dump(mode="json", exclude={"protocol", "device", "compiled"})
        content |= self.protocol.model_dump(
            include={"steps", "warmup_steps", "batch_size", "eval_every", "eval_episodes"}
            | {"action_repeat"}
        )
        content["replay_capacity"] = self.protocol.replay_size
        return _digest(content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class AgentEntry:
    """One column of the report: a registered agent with the settings asked for."""

    registered: RegisteredAgent
    overrides: Mapping[str, Any]

    def config(self, task: str, shared: Mapping[str, Any]) -> AgentConfig:
        """All settings on ``task``. Later ones replace earlier ones: defaults, the settings that
        the protocol gives every agent, the source's for that task, preset, overrides.

        Raises UserError for an unknown setting or a value of the wrong type or range.
        """
        agent = self.registered.agent
        settings = {**shared, **settings_on(task, agent.task_settings)}
        settings |= self.registered.preset
        settings |= self.overrides
        config = validated(self.registered.name, agent.config_class, settings)
        for key in self.overrides:
            self._refuse_infinite(key, getattr(config, key))
            if key in config.without_effect:
                raise UserError(
                    f"setting {key} of {self.registered.name}: {self.overrides[key]!r} has no "
                    f"effect: {config.without_effect[key]}"
                )
        return config

    def label(self, config: AgentConfig) -> str:
        """The agent's name, with the overrides in brackets where there are any.

        A value is shown as it was understood: 1e1 and 10.0 are one column. The precision of matrix
        products stands there too if it is not the usual one, whoever has asked for it: numbers of
        two precisions never have one label.
        """
        unusual = {"matmul_precision"} if config.matmul_precision != "float32" else set()
        shown = sorted({*self.overrides, *unusual})
        pairs = [f"{key}={_shown(getattr(config, key))}" for key in shown]
        return f"{self.registered.name}[{','.join(pairs)}]" if pairs else self.registered.name

    def _refuse_infinite(self, key: str, value: Any) -> None:
        """Raise UserError for a number that was asked to be infinite and is not so by itself."""
        name, usual = self.registered.name, getattr(self.registered.agent.config_class, key)
        usual = self.registered.preset.get(key, usual)
        may_be = isinstance(usual, float) and math.isinf(usual)
        if isinstance(value, float) and math.isinf(value) and not may_be:
            raise UserError(f"setting {key} of {name}: {value} is not a finite number")


@dataclass(frozen=True)
class Experiment:
    """What was asked for: the grid, and the protocol that all its cells share."""

    name: str
    agents: tuple[AgentEntry, ...]
    tasks: tuple[str, ...]
    groups: Groups
    """The seeds of each cell, a group for each of its jobs."""
    protocol: Protocol
    device: str = "cpu"
    compiled: bool = False
    stages: Stages | None = None
    """The plan by which its seeds are added, if it has stages."""

    def __post_init__(self) -> None:
        """Raise UserError or TaskError for what does not resolve, or a column that stands twice."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", self.name):
            raise UserError(
                f"experiment name {self.name!r}: use up to 100 letters, digits, '.', '_', '+' "
                "and '-', beginning with a letter or digit (--name)"
            )
        listed_seeds(self.seeds)
        validated("every agent", AgentConfig, self.protocol.settings)
        first_task = self.jobs[: len(self.agents) * len(self.groups)]
        columns = [job.agent for job in first_task[:: len(self.groups)]]
        for what, names in (("agent", columns), ("task", self.tasks)):
            twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
            too_long = [name for name in names if len(name) > 200]
            unreadable = [name for name in names if not name.isprintable()]
            if unreadable:
                raise UserError(f"{what} {unreadable[0]!r}: a label has printable characters alone")
            if too_long:
                raise UserError(f"{what} {too_long[0]!r}: no folder has so long a name")
            if what == "agent" and EXTERNAL_FOLDER in names:
                raise UserError(
                    f"agent {EXTERNAL_FOLDER!r}: imported curves are kept under this name: choose "
                    "another"
                )
            if twice:
                raise UserError(f"{what} {twice[0]!r} is named twice: name each once")

    @property
    def seeds(self) -> list[int]:
        """The seeds of each cell."""
        return [seed for group in self.groups for seed in group]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs: cell by cell, task by task."""
        return tuple(
            job for task in self.tasks for entry in self.agents for job in self._cell(task, entry)
        )

    @property
    def labels(self) -> list[str]:
        """The agents' labels, in their order."""
        return list(dict.fromkeys(job.agent for job in self.jobs))

    def _cell(self, name: str, entry: AgentEntry) -> list[Job]:
        """The jobs of one cell: settings are resolved once for all of them."""
        task = find_task(name)
        config = entry.config(name, self.protocol.settings)
        cell = Job(
            agent=entry.label(config),
            agent_name=entry.registered.key,
            settings=as_json(entry.registered.name, config),
            task=name,
            gymnasium_id=task.gymnasium_id,
            score_range=task.score_range,
            seeds=(),
            protocol=self.protocol,
            device=self.device,
            compiled=self.compiled,
        )
        return [cell.model_copy(update={"seeds": tuple(group)}) for group in self.groups]


Settings = Mapping[str, Mapping[str, Any]]
"""The settings that the user has set, by agent."""


def settings_on(task: str, by_task: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of all task name patterns that ``task`` matches; later ones replace earlier."""
    found: dict[str, Any] = {}
    for pattern, settings in by_task.items():
        if fnmatch(task.lower(), pattern):
            found |= settings
    return found


def parse_settings(items: Iterable[str]) -> tuple[dict[str, Any], Settings]:
    """Read ``setting=value``, which is for every agent, and ``agent.setting=value``.

    Raises UserError for what is neither, and for two values of one setting.
    """
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for item in items:
        left, equals, value = item.partition("=")
        agent, dot, key = left.strip().rpartition(".")
        if not (equals and key and (agent or not dot)):
            raise UserError(
                f"--set {item!r}: write it as agent.setting=value, e.g. qsm.alpha=10, or for every "
                "agent as setting=value, e.g. learning_rate=0.001"
            )
        there = own.setdefault(agent, {}) if dot else shared
        _give(there, key, _parse_value(value), f"setting {left.strip()}")
    return shared, own


def parse_agents(text: str, settings: Settings | None = None) -> tuple[AgentEntry, ...]:
    """Read ``qsm,qsm[alpha=10]``; ``settings`` are for the agents named in it.

    Raises UserError for text of another form, and AgentError for an unknown agent.
    """
    settings = settings or {}
    parsed = [_parse_agent(item) for item in split_outside_brackets(text)]
    names = [name for name, _ in parsed]
    for agent, own in settings.items():
        if agent not in names:
            raise UserError(
                f"--set {agent}.{next(iter(own))}: agent {agent!r} is not in --agents; "
                f"{did_you_mean(agent, names)}"
            )
    if not parsed:
        raise UserError("--agents is empty: name at least one, e.g. qsm,sac,td3")
    return tuple(
        AgentEntry(find_agent(name), {**settings.get(name, {}), **own}) for name, own in parsed
    )


def _parse_agent(item: str) -> tuple[str, dict[str, Any]]:
    """Read ``qsm[alpha=10]``: the name and the settings. Raises UserError for another form."""
    match = re.fullmatch(r"([^\[\]]+?)(?:\[(.*)\])?", item)
    if not match:
        raise UserError(f"agent {item!r}: write it as name or name[setting=value,...]")
    name, inside = match.group(1).strip(), match.group(2)
    if name.startswith("__main__:"):
        raise UserError(
            f"agent {name!r}: each job is a process of its own, which cannot find the class in "
            "this program: put it in a module"
        )
    own: dict[str, Any] = {}
    for pair in split_outside_brackets(inside or ""):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"agent {item!r}: {pair!r} is not of the form setting=value")
        _give(own, key.strip(), _parse_value(value), f"agent {item!r}: {key.strip()}")
    return name, own


def _give(settings: dict[str, Any], key: str, value: Any, what: str) -> None:
    """Put a value among settings. Raises UserError if ``what`` has another one already."""
    if key in settings and _shown(settings[key]) != _shown(value):
        raise UserError(
            f"{what} is given as {_shown(settings[key])} and as {_shown(value)}: give one of them"
        )
    settings[key] = value


def _parse_value(text: str) -> Any:
    """Numbers, lists and booleans as JSON has them; anything else is a string."""
    text = text.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of too many digits, or lists too deep
        return text


def _shown(value: Any) -> str:
    """A value in the shortest form that ``_parse_value`` reads back."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def split_outside_brackets(text: str) -> Sequence[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
