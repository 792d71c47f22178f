"""The tasks: DeepMind Control, any Gymnasium id with Box actions, and small tasks of our own."""

from gymnasium import register

from envs.errors import EnvironmentDiedError, TaskError
from envs.lockstep import Environments, Lockstep, Step
from envs.parallel import ParallelLockstep
from envs.repetition import repeats_itself
from envs.tasks import Task, close, find_task, make, task_names

__all__ = [
    "EnvironmentDiedError",
    "Environments",
    "Lockstep",
    "ParallelLockstep",
    "Step",
    "Task",
    "TaskError",
    "close",
    "find_task",
    "make",
    "repeats_itself",
    "task_names",
]

register("qsm_bench/bimodal-bandit-v0", "envs.bimodal_bandit:BimodalBandit")
register("qsm_bench/four-goals-v0", "envs.four_goals:FourGoals", max_episode_steps=30)
register(
    "qsm_bench/linear-quadratic-v0", "envs.linear_quadratic:LinearQuadratic", max_episode_steps=50
)
