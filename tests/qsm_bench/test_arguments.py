"""An argument of the wrong type is one line, wherever a Python user hands one in."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import PositiveInt

import qsm_bench
from qsm_bench import UserError
from qsm_bench.arguments import refusing_wrong_types

ENTRIES = (
    qsm_bench.load_policy,
    qsm_bench.load_record,
    qsm_bench.load_results,
    qsm_bench.place_beside,
    qsm_bench.run_experiment,
    qsm_bench.write_report,
)


@refusing_wrong_types
def example(
    name: str,
    count: int = 1,
    size: PositiveInt | None = None,
    *,
    rows: Iterable[int] = (),
    at_once: int | Literal["auto"] = "auto",
) -> list[Any]:
    return [name, count, size, list(rows)]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_function_for_python_users_names_the_argument(entry: Callable[..., Any]) -> None:
    required = [
        name
        for name, parameter in inspect.signature(entry).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    with pytest.raises(UserError, match=rf"^{required[0]}=<object .*> is not right: ") as refused:
        entry(*(object() for _ in required))
    assert "\n" not in str(refused.value)


def test_what_is_right_comes_through_as_it_is() -> None:
    rows = iter([1, 2])
    assert example("a", np.int64(3), 2, rows=rows) == ["a", 3, 2, [1, 2]]  # type: ignore[arg-type]
    assert example(name="a") == ["a", 1, None, []]
    assert example.__name__ == "example"


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        ((5,), {}, "name=5 is not right: it must be of type str"),
        (("a", "b"), {}, "count='b' is not right: it must be of type int"),
        (("a", 1, 0), {}, "size=0 is not right: Input should be greater than 0"),
        (("a",), {"size": "2"}, "size='2' is not right: Input should be a valid integer"),
        (
            ("a",),
            {"at_once": "all"},
            "at_once='all' is not right: Input should be a valid integer or Input should be 'auto'",
        ),
        (("a",), {"rows": 5}, "rows=5 is not right: Input should be iterable"),
        (
            (np.zeros((3, 3)),),
            {},
            "name=array([[0., 0., 0.], [0., 0., 0.], [0., 0., 0.]]) is not "
            "right: it must be of type str",
        ),
        (("a" * 500, None), {}, "count=None is not right: it must be of type int"),
    ],
)
def test_what_is_wrong_is_named(given: Any, named: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        example(*given, **named)
    assert str(refused.value) == message


def test_a_wrong_number_of_arguments_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        example()  # type: ignore[call-arg]
