"""A linear-quadratic task: bring a point on a line to rest at the origin.

The best controller, its return and the return of a random policy are known exactly.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

TIME_STEP = 0.1
HORIZON = 50
STATE_COST = np.diag([1.0, 0.1])
ACTION_COST = np.array([[1.0]])
# s' = A s + B a for s = (position, velocity) and acceleration a.
A = np.array([[1.0, TIME_STEP], [0.0, 1.0]])
B = np.array([[0.0], [TIME_STEP]])

START_COVARIANCE = np.diag([1.0 / 3.0, 0.0])
"""The covariance of the start: position ~ U[-1, 1], velocity 0."""


def riccati() -> tuple[list[Matrix], list[Matrix]]:
    """The optimal controller by backward recursion.

    Returns:
        gains K_0 .. K_{H-1}, each [1, 2]: the best action at step t is -K_t s_t;
        costs P_0 .. P_H, each [2, 2]: the best return from s at step t is -s' P_t s.
    """
    gains: list[Matrix] = []
    costs = [np.zeros((2, 2))]
    for _ in range(HORIZON):
        next_cost = costs[-1]
        gain = np.linalg.solve(TIME_STEP * ACTION_COST + B.T @ next_cost @ B, B.T @ next_cost @ A)
        closed_loop = A - B @ gain
        cost = TIME_STEP * (STATE_COST + gain.T @ ACTION_COST @ gain)
        gains.append(gain)
        costs.append(cost + closed_loop.T @ next_cost @ closed_loop)
    return gains[::-1], costs[::-1]


def optimal_return(start: Matrix | None = None) -> float:
    """The best return, -s' P_0 s, from the state `start` [2], or its mean over starts."""
    second_moment = START_COVARIANCE if start is None else np.outer(start, start)
    return -float(np.trace(riccati()[1][0] @ second_moment))


def random_return() -> float:
    """The expected return of actions drawn from U[-1, 1], whose variance is 1/3.

    From the second moment of the state: S_{t+1} = A S_t A' + B B' / 3.
    """
    total, moment = 0.0, START_COVARIANCE
    for _ in range(HORIZON):
        total -= TIME_STEP * float(np.trace(STATE_COST @ moment) + np.trace(ACTION_COST) / 3.0)
        moment = A @ moment @ A.T + B @ B.T / 3.0
    return total


OPTIMAL_RETURN = optimal_return()
RANDOM_RETURN = random_return()


class LinearQuadratic(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observation: position and velocity [2]. Action: acceleration [1] in [-1, 1].

    Reward: -(s' Q s + a' R a) TIME_STEP at the state the action is taken in. Truncated after
    HORIZON steps. From every possible start the best action stays inside (-1, 1), so the bounds
    never bind. The best controller depends on the time that is left, which is not observed. The
    best controller that does not know it loses 0.3 % (its return is -0.51656, found numerically).
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._state = np.array([self.np_random.uniform(-1.0, 1.0), 0.0])
        return self._state.astype(np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        state, control = self._state, np.asarray(action, np.float64)
        cost = state @ STATE_COST @ state + control @ ACTION_COST @ control
        self._state = A @ state + B @ control
        return self._state.astype(np.float32), -TIME_STEP * float(cost), False, False, {}
