"""Arguments of the functions that a Python user calls."""

import inspect
from collections.abc import Callable
from functools import cache, wraps
from numbers import Integral
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qsm_bench.errors import UserError, one_line

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def refusing_wrong_types(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Decorate ``function``: it raises UserError for an argument not of its annotated type."""
    signature = inspect.signature(function)
    # At the first call: some types are imported later than the function is defined.
    hints = cache(lambda: get_type_hints(function, include_extras=True))

    @wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Returned:
        for name, value in signature.bind(*given, **named).arguments.items():
            if fault := _fault(value, hints()[name]):
                raise UserError(f"{name}={one_line(repr(value))[:100]} is not right: {fault}")
        return function(*given, **named)

    return call


def _fault(value: Any, kind: Any) -> str | None:
    """What keeps a value from being of a type; None if nothing does. What is lazy is not read."""
    if isinstance(kind, type):
        right = isinstance(value, Integral if kind is int else kind)  # NumPy's numbers, too
        return None if right else f"it must be of type {kind.__name__}"
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
            value, strict=True
        )
    except ValidationError as error:
        # Of a type with alternatives each has its own fault, and any of them would be right.
        return " or ".join(dict.fromkeys(fault["msg"] for fault in error.errors()))
    return None
