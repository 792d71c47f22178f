"""The tasks: DeepMind Control through shimmy, any Gymnasium id with Box spaces, and suites."""

from envs.lockstep import Lockstep, Step
from envs.suites import DEFAULT_PROTOCOL, SUITES, Suite, find_suite
from envs.tasks import Task, TaskError, find_task, make, task_names

__all__ = [
    "DEFAULT_PROTOCOL",
    "SUITES",
    "Lockstep",
    "Step",
    "Suite",
    "Task",
    "TaskError",
    "find_suite",
    "find_task",
    "make",
    "task_names",
]
