"""An experiment: a grid of agents x tasks, each cell a job that trains all seeds in lockstep."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agents.protocol import AgentConfig
from agents.registry import AgentError, RegisteredAgent, find_agent
from envs import TaskError, find_task
from qsm_bench.errors import UserError, near

REPLAY_CAPACITY = 1_000_000


class Job(BaseModel):
    """Everything that decides a cell's results: two equal jobs give equal numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    """The label: the agent's name with the settings asked for, e.g. ``qsm[alpha=10]``."""
    agent_name: str
    settings: dict[str, Any]
    """Every setting of the agent, resolved for this task."""
    task: str
    gymnasium_id: str
    action_repeat: int
    score_range: tuple[float, float] | None
    seeds: tuple[int, ...]
    steps: int
    warmup_steps: int
    batch_size: int
    replay_capacity: int
    eval_every: int
    eval_episodes: int
    device: str
    compiled: bool = False
    """Updates run as compiled code: the same up to the order of floating-point operations."""

    @property
    def identity(self) -> str:
        """A text that another job does not have, wherever it is computed.

        Fields that come later leave it as it is.
        """
        where = {"device", "compiled"}
        content = self.model_dump(mode="json", exclude_defaults=True, exclude=where)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class AgentEntry:
    """One column of the report: a registered agent with the settings asked for."""

    registered: RegisteredAgent
    overrides: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The agent's name, with the overrides in brackets where there are any."""
        if not self.overrides:
            return self.registered.name
        pairs = (f"{key}={_shown(value)}" for key, value in sorted(self.overrides.items()))
        return f"{self.registered.name}[{','.join(pairs)}]"

    def config(self, task: str) -> AgentConfig:
        """All settings on ``task``: defaults, then the source's for that task, preset, overrides.

        Raises UserError for an unknown setting or a value of the wrong type or range.
        """
        agent = self.registered.agent
        settings: dict[str, Any] = {}
        for pattern, special in agent.task_settings.items():
            if fnmatch(task.lower(), pattern):
                settings |= special
        settings |= self.registered.preset
        settings |= self.overrides
        return validated(self.registered.name, agent.config_class, settings)


@dataclass(frozen=True)
class Experiment:
    """What was asked for: the grid and the protocol all its cells share."""

    name: str
    agents: tuple[AgentEntry, ...]
    tasks: tuple[str, ...]
    seeds: int
    steps: int
    warmup_steps: int
    batch_size: int
    eval_every: int
    eval_episodes: int
    device: str
    first_seed: int = 0
    compiled: bool = False
    replay_capacity: int | None = None
    """Transitions of each seed that are kept; None: all, up to ``REPLAY_CAPACITY``."""

    def __post_init__(self) -> None:
        """Raise UserError where the numbers do not fit together or a column stands twice."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", self.name):
            raise UserError(
                f"experiment name {self.name!r}: use up to 100 letters, digits, '.', '_', '+' "
                "and '-', beginning with a letter or digit (--name)"
            )
        for what, names in (("agent", [a.label for a in self.agents]), ("task", self.tasks)):
            twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
            too_long = [name for name in names if len(name) > 200]
            unreadable = [name for name in names if not name.isprintable()]
            if unreadable:
                raise UserError(f"{what} {unreadable[0]!r}: a label has printable characters alone")
            if too_long:
                raise UserError(f"{what} {too_long[0]!r}: no folder has so long a name")
            if twice:
                raise UserError(f"{what} {twice[0]!r} is named twice: name each once")
        if self.steps <= self.warmup_steps:
            raise UserError(
                f"--steps {self.steps} leaves nothing to learn after --warmup-steps "
                f"{self.warmup_steps}: give more steps or a shorter warm-up"
            )
        if self.warmup_steps < 1:
            raise UserError(f"--warmup-steps {self.warmup_steps}: at least 1 is needed")

    def jobs(self) -> Iterator[Job]:
        """The cells, task by task. Raises UserError for what does not resolve."""
        for name in self.tasks:
            try:
                task = find_task(name)
            except TaskError as error:
                raise UserError(str(error)) from error
            for entry in self.agents:
                yield Job(
                    agent=entry.label,
                    agent_name=entry.registered.key,
                    settings=as_json(entry.registered.name, entry.config(name)),
                    task=name,
                    gymnasium_id=task.gymnasium_id,
                    action_repeat=task.action_repeat,
                    score_range=task.score_range,
                    seeds=tuple(range(self.first_seed, self.first_seed + self.seeds)),
                    steps=self.steps,
                    warmup_steps=self.warmup_steps,
                    batch_size=self.batch_size,
                    replay_capacity=min(self.steps, self.replay_capacity or REPLAY_CAPACITY),
                    eval_every=self.eval_every,
                    eval_episodes=self.eval_episodes,
                    device=self.device,
                    compiled=self.compiled,
                )


def parse_agents(text: str, settings: Iterable[str] = ()) -> tuple[AgentEntry, ...]:
    """Read ``qsm,qsm[alpha=10]`` and overrides ``agent.setting=value`` for the agents in it.

    Raises UserError for an unknown agent or setting, or a value of the wrong type or range.
    """
    overrides = [_parse_setting(item) for item in settings]
    names = [re.sub(r"\[.*", "", item) for item in _split(text)]
    for agent, key, _ in overrides:
        if agent not in names:
            raise UserError(
                f"--set {agent}.{key}: agent {agent!r} is not in --agents; {near(agent, names)}"
            )
    entries = []
    for item in _split(text):
        match = re.fullmatch(r"([^\[\]]+?)(?:\[(.*)\])?", item)
        if not match:
            raise UserError(f"agent {item!r}: write it as name or name[setting=value,...]")
        name, inside = match.group(1).strip(), match.group(2)
        try:
            registered = find_agent(name)
        except AgentError as error:
            raise UserError(str(error)) from error
        asked = {key: value for agent, key, value in overrides if agent == name}
        for pair in _split(inside) if inside is not None else ():
            key, equals, value = pair.partition("=")
            if not equals:
                raise UserError(f"agent {item!r}: {pair!r} is not of the form setting=value")
            asked[key.strip()] = _parse_value(value)
        config = validated(name, registered.agent.config_class, {**registered.preset, **asked})
        for key in asked:
            _refuse_infinite(name, registered, key, getattr(config, key))
        # The label shows the value as it was understood: 1e1 and 10.0 are one column.
        entries.append(AgentEntry(registered, {key: getattr(config, key) for key in asked}))
    if not entries:
        raise UserError("--agents is empty: name at least one, e.g. qsm,sac,td3")
    return tuple(entries)


def validated(
    name: str, config_class: type[AgentConfig], settings: Mapping[str, Any]
) -> AgentConfig:
    """Build an agent's configuration. Raises UserError naming the setting, value and remedy."""
    known = [field.name for field in fields(config_class)]
    for key in settings:
        if key not in known:
            raise UserError(f"{name} has no setting {key!r}: {near(key, known)}")
    try:
        config = TypeAdapter(config_class).validate_python(dict(settings))
    except ValidationError as error:
        raise UserError(_first_fault(name, settings, error)) from error
    except Exception as error:  # of types that pydantic does not know, or of a __post_init__
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"settings of {name}: {config_class.__name__}: {reason[:300]}") from error
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"setting {field.name} of {name}: NaN is no number")
    return config


def as_json(name: str, config: AgentConfig) -> dict[str, Any]:
    """A configuration as a manifest holds it: an infinite number as "inf", a tuple as a list.

    Raises UserError for a value that would not read back as what it is.
    """
    settings = {}
    for key, value in asdict(config).items():
        try:
            settings[key] = _as_json(value)
            json.dumps(settings[key], ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(f"setting {key} of {name}: {value!r:.100} {UNFIT} ({error})") from error
    again = validated(name, type(config), json.loads(json.dumps(settings)))
    for key in settings:
        value, back = getattr(config, key), getattr(again, key)
        if value != back or isinstance(value, str) != isinstance(back, str):
            raise UserError(
                f"setting {key} of {name}: {value!r:.100} {UNFIT}: it reads back as {back!r:.100}"
            )
    return settings


UNFIT = "cannot be written into a manifest: use numbers, strings, booleans, None and tuples of them"


def _as_json(value: Any) -> Any:
    """A value in JSON's types. Raises ValueError for one of another type."""
    kind = type(value)
    if kind in (list, tuple):
        return [_as_json(entry) for entry in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: _as_json(entry) for key, entry in value.items()}
    if kind is float and not math.isfinite(value):
        if math.isnan(value):
            raise ValueError("NaN is no number")
        return str(value)
    if kind not in (str, int, float, bool, type(None)):
        raise ValueError(f"it is of type {kind.__name__}")
    return value


def _refuse_infinite(name: str, registered: RegisteredAgent, key: str, value: Any) -> None:
    """Raise UserError for a number that was asked to be infinite and is not so by itself."""
    usual = registered.preset.get(key, getattr(registered.agent.config_class, key))
    may_be = isinstance(usual, float) and math.isinf(usual)
    if isinstance(value, float) and math.isinf(value) and not may_be:
        raise UserError(f"setting {key} of {name}: {value} is not a finite number")


def _first_fault(name: str, settings: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not first["loc"]:
        # Of settings that do not fit together, which the configuration itself explains.
        return f"settings of {name}: {message}"
    key = str(first["loc"][0])
    return f"setting {key} of {name}: {settings[key]!r} is not right: {message}"


def _parse_setting(item: str) -> tuple[str, str, Any]:
    left, equals, value = item.partition("=")
    agent, dot, key = left.strip().rpartition(".")
    if not (equals and dot and agent and key):
        raise UserError(f"--set {item!r}: write it as agent.setting=value, e.g. qsm.alpha=10")
    return agent, key, _parse_value(value)


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


def _split(text: str) -> Sequence[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
