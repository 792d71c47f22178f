"""The tasks: DeepMind Control, any Gymnasium id with Box actions, and small tasks of our own."""

from gymnasium import register

from envs.determinism import is_deterministic
from envs.errors import EnvironmentDiedError, TaskError
from envs.lockstep import Environments, Lockstep, StepResult
from envs.parallel import ParallelLockstep
from envs.tasks import Task, close, find_task, make, task_names

__all__ = [
    "EnvironmentDiedError",
    "Environments",
    "Lockstep",
    "ParallelLockstep",
    "StepResult",
    "Task",
    "TaskError",
    "close",
    "find_task",
    "is_deterministic",
    "make",
    "task_names",
]

register("qsm_bench/bimodal-bandit-v0", "envs.bimodal_bandit:BimodalBandit")
register("qsm_bench/four-goals-v0", "envs.four_goals:FourGoals", max_episode_steps=30)
register(
    "qsm_bench/linear-quadratic-v0", "envs.linear_quadratic:LinearQuadratic", max_episode_steps=50
)
