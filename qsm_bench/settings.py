"""An agent's settings: what the user wrote, checked, and as a manifest holds them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agents.protocol import AgentConfig
from qsm_bench.errors import UserError, did_you_mean, reason_of


def validated(
    name: str, config_class: type[AgentConfig], settings: Mapping[str, Any]
) -> AgentConfig:
    """Build an agent's configuration. Raises UserError naming the setting, value and remedy."""
    known = [field.name for field in fields(config_class)]
    for key in settings:
        if key not in known:
            raise UserError(f"{name} has no setting {key!r}: {did_you_mean(key, known)}")
    try:
        checker = _checker(config_class)  # type: ignore[arg-type]  # a class has a hash
        config: AgentConfig = checker.validate_python(dict(settings))
    except ValidationError as error:
        raise UserError(_first_fault(name, settings, error)) from error
    except Exception as error:  # of types that pydantic does not know, or of a __post_init__
        reason = reason_of(error)
        raise UserError(f"settings of {name}: {config_class.__name__}: {reason[:300]}") from error
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"setting {field.name} of {name}: NaN is no number")
    return config


@cache
def _checker(config_class: type[Any]) -> TypeAdapter[Any]:
    """Return what checks settings of a class. To make it takes longer than to check with it."""
    return TypeAdapter(config_class)


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


def _first_fault(name: str, settings: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not first["loc"]:
        # Of settings that do not fit together, which the configuration itself explains.
        return f"settings of {name}: {message}"
    key = str(first["loc"][0])
    if first["type"] == "tuple_type":
        message = "write a list, such as [256,256]"
    return f"setting {key} of {name}: {settings[key]!r} is not right: {message}"
