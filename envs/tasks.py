"""Tasks by name, made into one shape: flat float32 observations, actions in [-1, 1]^A."""

import difflib
import warnings
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers

from envs.small import SMALL_TASKS

DMC_PREFIX, SMALL_PREFIX, VERSION = "dm_control/", "qsm_bench/", "-v0"

# D4RL's reference scores (Fu et al. 2020, arXiv 2004.07219): a random and an expert policy.
D4RL_RANGES = {
    "HalfCheetah": (-280.18, 12135.0),
    "Hopper": (-20.27, 3234.3),
    "Walker2d": (1.63, 4592.3),
    "Ant": (-325.6, 3879.7),
}


class TaskError(ValueError):
    """A task that cannot be trained on; the message is one line that says why."""


@dataclass(frozen=True)
class Task:
    """A task and how its returns are read."""

    name: str
    """As on the command line: ``cartpole-swingup`` or a Gymnasium id."""
    gymnasium_id: str
    score_range: tuple[float, float] | None
    """Returns that count as scores 0 and 1; None where there is no accepted range."""
    action_repeat: int = 1
    """Environment steps per decision; every task here has one."""


def find_task(name: str) -> Task:
    """The task of a DMC name, of a small task's name, or of any registered Gymnasium id.

    Raises TaskError, with the nearest names, if there is none.
    """
    _register()
    for prefix in (DMC_PREFIX, SMALL_PREFIX):
        if f"{prefix}{name}{VERSION}" in gym.registry:
            return Task(name, f"{prefix}{name}{VERSION}", _score_range(f"{prefix}{name}{VERSION}"))
    try:
        gym.spec(name)
    except gym.error.Error as error:
        close = difflib.get_close_matches(name, [*task_names(), *gym.registry], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else "see 'list tasks' for names"
        raise TaskError(f"unknown task {name!r}: {hint}") from error
    except ModuleNotFoundError as error:
        raise TaskError(f"task {name!r}: no module named {error.name!r}") from error
    return Task(name, name, _score_range(name))


def task_names() -> list[str]:
    """Every name with a short form: the DeepMind Control suite's and the small tasks'."""
    _register()
    return [
        key.removeprefix(prefix).removesuffix(VERSION)
        for prefix in (DMC_PREFIX, SMALL_PREFIX)
        for key in gym.registry
        # shimmy's general adapter is registered beside the tasks but is none.
        if key.startswith(prefix) and key != "dm_control/compatibility-env-v0"
    ]


def make(task: str | Task, *, render_mode: str | None = None) -> gym.Env:
    """Build an environment: observations float32 [obs], actions float32 in [-1, 1]^A.

    Dictionary observations are flattened in the dictionary's order; the action box, whatever its
    bounds and shape, is rescaled to [-1, 1] and flattened. Raises TaskError for a task whose
    spaces do not allow that, or that cannot be built.
    """
    task = find_task(task) if isinstance(task, str) else task
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gym.make(task.gymnasium_id, disable_env_checker=True, render_mode=render_mode)
    except Exception as error:
        # Whatever a third party's constructor raises, the user is told which task and why.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise TaskError(f"task {task.name!r} cannot be made: {why}") from error
    try:
        return _reshaped(env, task.name)
    except TaskError:
        env.close()
        raise


def _reshaped(env: gym.Env, name: str) -> gym.Env:
    action_space = env.action_space
    if not isinstance(action_space, spaces.Box):
        raise TaskError(f"task {name!r} has actions {action_space}: a Box is needed")
    if not np.issubdtype(action_space.dtype, np.floating):
        raise TaskError(
            f"task {name!r} has actions of type {action_space.dtype}: floats are needed"
        )
    if not action_space.is_bounded("both") or not (action_space.low < action_space.high).all():
        raise TaskError(
            f"task {name!r} has action bounds {action_space.low.tolist()} to "
            f"{action_space.high.tolist()}: each must be finite, the lower below the upper"
        )
    try:
        flat = spaces.flatten_space(env.observation_space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, spaces.Box) or flat.shape[0] == 0:
        raise TaskError(
            f"task {name!r} has observations {env.observation_space}, which cannot be flattened "
            "into one array of numbers"
        )
    one, dtype = np.ones(action_space.shape, np.float32), np.float32
    env = wrappers.RescaleAction(env, -one, one)
    if len(action_space.shape) != 1:
        shape = action_space.shape
        env = wrappers.TransformAction(
            env,
            lambda action: action.reshape(shape),
            spaces.Box(-1.0, 1.0, (int(np.prod(shape)),), dtype),
        )
    # Outermost, so that what comes out is one flat array whatever the task hands out.
    return wrappers.DtypeObservation(wrappers.FlattenObservation(env), dtype)


def _score_range(gymnasium_id: str) -> tuple[float, float] | None:
    if gymnasium_id.startswith(DMC_PREFIX):
        # At most 1 a step for 1000 steps (Tassa et al. 2018, arXiv 1801.00690).
        return (0.0, 1000.0)
    if gymnasium_id.startswith(SMALL_PREFIX):
        name = gymnasium_id.removeprefix(SMALL_PREFIX).removesuffix(VERSION)
        return SMALL_TASKS[name].score_range
    return D4RL_RANGES.get(gymnasium_id.partition("-v")[0])


def _register() -> None:
    """Register the tasks with Gymnasium, once; loading MuJoCo waits until a task is asked for."""
    for name, small in SMALL_TASKS.items():
        key = f"{SMALL_PREFIX}{name}{VERSION}"
        if key not in gym.registry:
            gym.register(key, small.entry_point, max_episode_steps=small.max_episode_steps)
    if not any(key.startswith(DMC_PREFIX) for key in gym.registry):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import shimmy

            gym.register_envs(shimmy)
