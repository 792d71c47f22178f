"""Arguments of the functions that a Python user calls."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qsm_bench.errors import UserError

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def refusing_wrong_types(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Decorate ``function``: it raises UserError for an argument not of its annotated type."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Returned:
        hints = get_type_hints(function, include_extras=True)
        for name, value in signature.bind(*given, **named).arguments.items():
            if fault := _fault(value, hints[name]):
                raise UserError(f"{name}={value!r:.100} is not right: {fault}")
        return function(*given, **named)

    return call


def _fault(value: Any, kind: Any) -> str | None:
    """What keeps a value from being of a type; None if nothing does. What is lazy is not read."""
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
            value, strict=True
        )
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return None
