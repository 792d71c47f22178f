"""Small Markov decision processes solved exactly, and the two iterations that section 4.3 compares.

QSM's is pi <- softmax(alpha Q^pi) with the standard Q (eq. 20). Soft policy iteration has the soft
Q in its place, which also counts the entropy of all later actions, each worth 1 / alpha.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

TOLERANCE = 1e-10
"""Policies that differ by no more in any probability count as the same."""
LIMIT = 2_000
"""The number of updates after which a policy that still changes has not come to a fixed point."""
LONGEST_CYCLE = 20


@dataclass(frozen=True)
class Process:
    """A Markov decision process with S states and A actions."""

    transition: Array
    """The probability of the next state, P[s, a, s']: [S, A, S]."""
    reward: Array
    """[S, A]."""
    discount: float

    @property
    def uniform(self) -> Array:
        """The policy that takes all actions equally often: [S, A]."""
        return np.full_like(self.reward, 1 / self.reward.shape[1])


@dataclass(frozen=True)
class Ending:
    """How an iteration of policies ended."""

    policy: Array
    iterations: int
    period: int | None
    """1 at a fixed point, more in a cycle of so many policies; None if it was neither."""


def state_values(process: Process, policy: Array, bonus: Array | None = None) -> Array:
    """V of a policy [S, A], the solution of V = r_pi + bonus + discount P_pi V: [S].

    ``bonus`` [S] is paid for each step that starts in a state.
    """
    step = np.einsum("sa,sat->st", policy, process.transition)
    paid = (policy * process.reward).sum(axis=1)
    if bonus is not None:
        paid = paid + bonus
    return np.linalg.solve(np.eye(len(step)) - process.discount * step, paid)


def action_values(process: Process, values: Array) -> Array:
    """Q of each action if the next state is worth ``values`` [S]: [S, A]."""
    return process.reward + process.discount * process.transition @ values


def standard_q(process: Process, policy: Array) -> Array:
    """Q^pi: the discounted reward, and nothing else, [S, A]."""
    return action_values(process, state_values(process, policy))


def soft_values(process: Process, policy: Array, alpha: float) -> Array:
    """The discounted sum of reward and entropy / alpha, that of the first action included: [S]."""
    return state_values(process, policy, entropy(policy) / alpha)


def soft_q(process: Process, policy: Array, alpha: float) -> Array:
    """The soft Q of a policy: the reward now, and the soft value of the next state, [S, A]."""
    return action_values(process, soft_values(process, policy, alpha))


def boltzmann(q: Array, alpha: float) -> Array:
    """The policy softmax(alpha Q), [S, A]."""
    policy: Array = special.softmax(alpha * q, axis=1)
    return policy


def entropy(policy: Array) -> Array:
    """The entropy of a policy in each state, in nats: [S]."""
    each: Array = special.entr(policy).sum(axis=1)
    return each


def qsm(process: Process, alpha: float, start: Array) -> Ending:
    """QSM's iteration, eq. 20.

    Some policy is a fixed point (Brouwer: the update is continuous), but it can be one of several,
    and the iteration need not come to one: see how it ended.
    """
    return iterate(lambda policy: boltzmann(standard_q(process, policy), alpha), start)


def soft_policy_iteration(process: Process, alpha: float, start: Array) -> Ending:
    """The iteration whose fixed point maximizes reward and entropy / alpha."""
    return iterate(lambda policy: boltzmann(soft_q(process, policy, alpha), alpha), start)


def iterate(improve: Callable[[Array], Array], start: Array) -> Ending:
    """Improve a policy until it stays as it is, LIMIT times at most."""
    recent = [start]
    for iteration in range(1, LIMIT + 1):
        recent = [*recent[-LONGEST_CYCLE:], improve(recent[-1])]
        if same(recent[-1], recent[-2]):
            return Ending(recent[-1], iteration, 1)
    return Ending(recent[-1], LIMIT, _period(recent))


def same(first: Array, second: Array) -> bool:
    """Whether two policies are the same, within TOLERANCE."""
    return bool(np.abs(first - second).max() <= TOLERANCE)


def _period(recent: list[Array]) -> int | None:
    periods = range(2, len(recent))
    return next((p for p in periods if same(recent[-1], recent[-1 - p])), None)


def greedy_policy_iteration(process: Process) -> Array:
    """Q of the optimal policy, by Howard's policy iteration: [S, A]."""
    actions = np.eye(process.reward.shape[1])
    q = standard_q(process, process.uniform)
    while True:
        better = standard_q(process, actions[q.argmax(axis=1)])
        if np.abs(better - q).max() <= TOLERANCE:
            return better
        q = better


def best_actions(q: Array, within: float) -> NDArray[np.bool_]:
    """Which actions of each state are best, or worse by ``within`` at most: [S, A]."""
    best: NDArray[np.bool_] = q >= q.max(axis=1, keepdims=True) - within
    return best
