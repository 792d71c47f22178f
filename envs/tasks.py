"""Tasks by name, and environments made from them.

Three kinds of name are understood: tasks of the DeepMind Control Suite ('walker-walk'), the small
tasks of this package ('four-goals'), and any registered Gymnasium id ('HalfCheetah-v5', or
'package.module:Name-v0' for one that a module registers when it is imported).
"""

import importlib
import logging
import sys
import warnings
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium

from envs import bimodal_bandit, four_goals, linear_quadratic
from envs.adapters import Env, RepeatAction, flat_observations, unit_actions
from envs.errors import TaskError, pass_on_ctrl_c, unknown_name
from envs.signals import kept_signals


@dataclass(frozen=True)
class Task:
    """A task that an agent is trained on.

    Attributes:
        name: the short name where there is one, otherwise the Gymnasium id.
        gymnasium_id: what `gymnasium.make` is given.
        score_range: the returns that count as 0 and 1 once normalized; None where no convention
            exists.
        action_repeat: environment steps for each decision; `find_task` leaves it at 1.
        source: where `score_range` comes from.
    """

    name: str
    gymnasium_id: str
    score_range: tuple[float, float] | None = None
    action_repeat: int = 1
    source: str = ""


_SMALL_TASKS = {
    name: Task(
        name, f"qsm_bench/{name}-v0", (module.RANDOM_RETURN, module.OPTIMAL_RETURN), 1, source
    )
    for name, module, source in (
        ("bimodal-bandit", bimodal_bandit, "random and optimal policy, both in closed form"),
        ("four-goals", four_goals, "random policy by Monte Carlo, straight-line policy"),
        ("linear-quadratic", linear_quadratic, "random and optimal policy, both in closed form"),
    )
}

_D4RL = "return of a random policy and of an expert, as D4RL has them (for the -v2 environments)"
_GYMNASIUM_TASKS = {
    name: Task(name, name, score_range, 1, _D4RL)
    for name, score_range in {
        "HalfCheetah-v5": (-280.178953, 12135.0),
        "Hopper-v5": (-20.272305, 3234.3),
        "Walker2d-v5": (1.629008, 4592.3),
        "Ant-v5": (-325.6, 3879.7),
    }.items()
}

_DMC_SOURCE = "1000 steps of a reward in [0, 1]"


def find_task(name: str) -> Task:
    """The task called `name`: a short name or a Gymnasium id.

    Raises:
        TaskError: no such task; the message suggests similar names.
    """
    module, _, gymnasium_id = name.rpartition(":")
    if module:
        _import(module, name)
    short = gymnasium_id.removeprefix("qsm_bench/").removesuffix("-v0")
    if gymnasium_id in (short, f"qsm_bench/{short}-v0") and short in _SMALL_TASKS:
        return _SMALL_TASKS[short]
    if gymnasium_id in _GYMNASIUM_TASKS:
        return _GYMNASIUM_TASKS[gymnasium_id]
    # A name must mean the same before and after shimmy has registered its ids.
    if gymnasium_id not in gymnasium.registry or gymnasium_id.startswith("dm_control/"):
        short = gymnasium_id.removeprefix("dm_control/").removesuffix("-v0")
        if gymnasium_id in (short, f"dm_control/{short}-v0") and short in _dmc_tasks():
            return _dmc_tasks()[short]
    if gymnasium_id in gymnasium.registry:
        return Task(name, name)
    known = [id_ for id_ in gymnasium.registry if not id_.startswith(("dm_control/", "qsm_bench/"))]
    raise unknown_name(
        "task",
        name,
        [*task_names(), *known],
        "it must be a DeepMind Control task such as 'walker-walk', one of"
        f" {', '.join(_SMALL_TASKS)}, or a registered Gymnasium id such as 'HalfCheetah-v5'",
    )


def task_names() -> list[str]:
    """The short names: the tasks of the DeepMind Control Suite and of this package."""
    return [*sorted(_dmc_tasks()), *_SMALL_TASKS]


@kept_signals()
def make(task: str | Task, *, render_mode: str | None = None) -> Env:
    """Make an environment with 1-D float32 observations and float32 actions in [-1, 1]^A.

    Raises:
        TaskError: the task is unknown, fails to construct, or has spaces that cannot be brought
            into that form.
    """
    if isinstance(task, str):
        task = find_task(task)
    if task.gymnasium_id.startswith("dm_control/"):
        _dmc_tasks()
    # Not every environment's constructor knows render_mode, so it is passed only when wanted.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        # A constructor may change the working directory; relative paths of the caller must hold.
        with chdir("."):
            env: gymnasium.Env[Any, Any] = gymnasium.make(
                task.gymnasium_id, disable_env_checker=True, **rendering
            )
    except BaseException as error:  # whatever a third party's constructor raises
        pass_on_ctrl_c(error)
        reason = str(error) or type(error).__name__
        raise TaskError(f"task {task.name!r} cannot be constructed: {reason}") from error
    try:
        adapted = unit_actions(flat_observations(env, task.name), task.name)
    except TaskError:
        close(env)
        raise
    return RepeatAction(adapted, task.action_repeat) if task.action_repeat > 1 else adapted


def close(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment. Errors that it raises are ignored."""
    try:
        env.close()
    except BaseException as error:
        pass_on_ctrl_c(error)


@cache
def _dmc_tasks() -> dict[str, Task]:
    """The DeepMind Control Suite by short name; importing it takes most of a second.

    The suite's 'lqr' tasks are left out: their actions are unbounded and their episodes endless.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW warns where there is no display
        _import("shimmy", "dm_control")  # registers the tasks with Gymnasium
        suite = _import("dm_control.suite", "dm_control")
    # MuJoCo calls attributes of the suite's own models deprecated, at every construction.
    logging.getLogger("absl").addFilter(lambda record: "is deprecated" not in record.getMessage())
    names = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS if domain != "lqr"]
    ids = {name: f"dm_control/{name}-v0" for name in names}
    return {
        name: Task(name, id_, (0.0, 1000.0), 1, _DMC_SOURCE)
        for name, id_ in ids.items()
        if id_ in gymnasium.registry
    }


def _import(module: str, name: str) -> Any:
    try:
        with chdir("."):
            return sys.modules.get(module) or importlib.import_module(module)
    except BaseException as error:  # e.g. AttributeError where MuJoCo's version does not fit
        pass_on_ctrl_c(error)
        raise TaskError(f"task {name!r}: module {module!r} cannot be imported: {error}") from error
