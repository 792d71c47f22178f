"""The errors of the three packages are one family, and a Python user catches one of them."""

from collections.abc import Callable

import pytest

import qsm_bench
from agents.registry import AgentError, find_agent
from envs import EnvironmentDiedError, TaskError, find_task
from qsm_bench.errors import UserError, as_user_error, user_errors
from qsm_bench.manifest import LaterFormatError


def no_such_agent() -> None:
    find_agent("no_such_agent")


def no_such_task() -> None:
    find_task("no-such-task")


def died() -> None:
    raise EnvironmentDiedError("its process died")


@pytest.mark.parametrize("call", [no_such_agent, no_such_task, died])
def test_what_another_package_raises_is_a_user_error_with_its_line(
    call: Callable[[], None],
) -> None:
    with pytest.raises((AgentError, TaskError)) as own:
        call()
    with pytest.raises(qsm_bench.UserError) as told:
        as_user_error()(call)()
    assert str(told.value) == str(own.value)
    assert isinstance(told.value.__cause__, type(own.value))
    assert isinstance(own.value, user_errors())


@pytest.mark.parametrize(
    "error",
    [UserError("wrong"), LaterFormatError("later"), ValueError("a bug"), KeyboardInterrupt()],
)
def test_everything_else_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, as_user_error():
        raise error
    assert passed.value is error
