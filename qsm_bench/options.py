"""The options of ``run`` that come from the protocol's fields: a field is listed there alone."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from qsm_bench.protocol import Protocol


def protocol_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field, in place of its ``**changes``.

    It is called with the options that stand on the command line only.
    """
    signature = inspect.signature(command)
    *own, _ = signature.parameters.values()
    fields = {name: field for name, field in Protocol.model_fields.items() if name != "settings"}

    def called(**values: Any) -> None:
        changes = {name: values.pop(name) for name in fields}
        command(**values, **{name: value for name, value in changes.items() if value is not None})

    parameters = [*own, *(_option(name, field) for name, field in fields.items())]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(called)["__signature__"] = signature.replace(parameters=parameters)
    return called


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    least = max(bound.ge for bound in field.metadata if hasattr(bound, "ge"))
    most = min(bound.le for bound in field.metadata if hasattr(bound, "le"))
    help_ = f"{field.description} Default: the suite's, or {field.default:,}."
    annotation = Annotated[int | None, typer.Option(min=least, max=most, help=help_)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
