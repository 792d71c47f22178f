"""The options of commands that are fields of the protocol or of an executor, listed there."""

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from qsm_bench.executors import EXECUTORS
from qsm_bench.protocol import Protocol


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field, in place of its last two arguments.

    It is called with ``changes`` of the protocol and with the ``placement`` of the executor: what
    stands on the command line, and nothing else.
    """
    return _with_options(command, changes=[*_protocol_options()], placement=[*_executor_options()])


def placement_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the executors, in place of its last argument ``placement``."""
    return _with_options(command, placement=[*_executor_options()])


def _with_options(
    command: Callable[..., None], **groups: list[inspect.Parameter]
) -> Callable[..., None]:
    """Replace a command's last arguments, one for each group, by the options of that group."""
    signature = inspect.signature(command)
    own = [p for name, p in signature.parameters.items() if name not in groups]

    def called(**values: Any) -> None:
        typed: dict[str, dict[str, Any]] = {}
        for group, options in groups.items():
            given = {option.name: values.pop(option.name) for option in options}
            typed[group] = {k: v for k, v in given.items() if v is not None and v != []}
        command(**values, **typed)

    parameters = [*own, *(option for options in groups.values() for option in options)]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(called)["__signature__"] = signature.replace(parameters=parameters)
    return called


def _protocol_options() -> Iterator[inspect.Parameter]:
    for name, field in Protocol.model_fields.items():
        if name != "settings":
            default = f"Default: the suite's, or {field.default:,}."
            yield _option(name, field, int, f"{field.description} {default}")


def _executor_options() -> Iterator[inspect.Parameter]:
    """An option for each field; one that several executors have stands once."""
    fields = {name: field for cls in EXECUTORS.values() for name, field in cls.model_fields.items()}
    for name, field in fields.items():
        theirs = [kind for kind, cls in EXECUTORS.items() if name in cls.model_fields]
        type_ = list[str] if isinstance(field.default, tuple) else field.annotation
        yield _option(name, field, type_, f"{', '.join(theirs)}: {field.description}")


def _option(name: str, field: FieldInfo, type_: Any, help_: str) -> inspect.Parameter:
    least = max((bound.ge for bound in field.metadata if hasattr(bound, "ge")), default=None)
    most = min((bound.le for bound in field.metadata if hasattr(bound, "le")), default=None)
    annotation = Annotated[type_ | None, typer.Option(min=least, max=most, help=help_)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
