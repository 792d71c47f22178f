"""Whether a task repeats itself: what going on with an interrupted run takes of it."""

import numpy as np

from envs.lockstep import Lockstep
from envs.tasks import Task

STEPS = 10
"""Of each of the two episodes that are compared."""


def is_deterministic(task: str | Task) -> bool:
    """Whether two episodes from one seed, with the same actions, begin with the same numbers.

    A task that fails on the way is not judged here: it fails where it is used. Raises TaskError if
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
