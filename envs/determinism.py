"""Check whether a task is deterministic, so that interrupted runs can be resumed."""

import numpy as np

from envs.lockstep import Lockstep
from envs.tasks import Task

STEPS = 10
"""The number of steps of each of the two episodes that are compared."""


def is_deterministic(task: str | Task) -> bool:
    """Whether the same seed and the same actions give the same numbers, in two short episodes.

    True, too, if the task fails in them: it will fail again where it is used. Raises TaskError if
    it cannot be constructed.
    """
    environments = Lockstep(task, 1)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (STEPS, 1, environments.action_size))
    episodes = []
    for _ in range(2):
        seen = [environments.reset(0, 0)]
        for action in actions.astype(np.float32):
            if environments.faults:
                break
            step = environments.step(action)
            seen += [part[0] for part in step]
            if step.terminated[0] or step.truncated[0]:
                break
        episodes.append(b"".join(np.asarray(part).tobytes() for part in seen))
    environments.close()
    return bool(environments.faults) or episodes[0] == episodes[1]
