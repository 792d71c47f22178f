"""Exact solutions of small processes, against algebra by hand, series and other algorithms."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from qsm_bench.studies import tabular
from qsm_bench.studies.tabular import Array, Process


def random_process(seed: int, states: int = 4, actions: int = 3) -> Process:
    """A process whose chances and rewards are random."""
    stream = np.random.default_rng(seed)
    transition = stream.dirichlet(np.full(states, 0.3), (states, actions))
    return Process(transition, stream.normal(size=(states, actions)), 0.9)


def random_policy(process: Process, seed: int) -> Array:
    """A policy that is random in each state."""
    states, actions = process.reward.shape
    return np.random.default_rng(seed).dirichlet(np.ones(actions), states)


SEEDS = st.integers(0, 2**32 - 1)
ALPHAS = st.floats(0.1, 5.0)
STAY, BACK, DISCOUNT = 1.0, 0.5, 0.9


def chain() -> Process:
    """State 0 has the actions stay, for STAY, and go to state 1, for 0; from 1 one goes back."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, :, 0] = 1.0
    return Process(transition, np.array([[STAY, 0.0], [BACK, BACK]]), DISCOUNT)


def values_by_hand(stay: float) -> tuple[float, float]:
    """V of both states of the chain if one stays with that probability.

    V0 = p (STAY + g V0) + (1 - p) g V1 and V1 = BACK + g V0 give
    V0 (1 - g p - g^2 (1 - p)) = p STAY + (1 - p) g BACK.
    """
    left = 1 - DISCOUNT * stay - DISCOUNT**2 * (1 - stay)
    first = (stay * STAY + (1 - stay) * DISCOUNT * BACK) / left
    return first, BACK + DISCOUNT * first


@given(st.floats(0.0, 1.0))
def test_evaluation_of_the_chain_is_that_by_hand(stay: float) -> None:
    policy = np.array([[stay, 1 - stay], [0.5, 0.5]])
    values = tabular.state_values(chain(), policy)
    np.testing.assert_allclose(values, values_by_hand(stay), rtol=1e-12)


@given(st.floats(0.51, 0.99))
def test_qsm_of_the_chain_is_that_by_hand(stay: float) -> None:
    """Q(0, stay) - Q(0, go) = STAY + g V0 - g V1 = d, and p = 1 / (1 + exp(-alpha d)).

    So p is the fixed point for alpha = logit(p) / d.
    """
    first, second = values_by_hand(stay)
    alpha = special.logit(stay) / (STAY + DISCOUNT * (first - second))
    ending = tabular.qsm(chain(), alpha, chain().uniform)
    assert ending.period == 1
    np.testing.assert_allclose(ending.policy, [[stay, 1 - stay], [0.5, 0.5]], atol=1e-8)


@given(SEEDS)
def test_evaluation_is_the_sum_of_discounted_rewards(seed: int) -> None:
    process = random_process(seed)
    policy = random_policy(process, seed)
    step = (policy[:, :, None] * process.transition).sum(axis=1)
    term, total = (policy * process.reward).sum(axis=1), np.zeros(len(step))
    for _ in range(400):
        total, term = total + term, process.discount * step @ term
    np.testing.assert_allclose(tabular.state_values(process, policy), total, atol=1e-12)


@given(SEEDS, ALPHAS)
def test_the_soft_value_counts_entropy(seed: int, alpha: float) -> None:
    process = random_process(seed)
    policy = random_policy(process, seed)
    q = tabular.soft_q(process, policy, alpha)
    now = (policy * (q - np.log(policy) / alpha)).sum(axis=1)
    np.testing.assert_allclose(tabular.soft_values(process, policy, alpha), now, rtol=1e-9)


@given(SEEDS, st.sampled_from([tabular.qsm, tabular.soft_policy_iteration]))
def test_a_small_alpha_gives_the_uniform_policy(
    seed: int, improve: Callable[[Process, float, Array], tabular.Ending]
) -> None:
    process = random_process(seed)
    ending = improve(process, 1e-6, process.uniform)
    np.testing.assert_allclose(ending.policy, process.uniform, atol=1e-4)


@given(SEEDS)
def test_a_large_alpha_gives_the_greedy_policy(seed: int) -> None:
    process = random_process(seed)
    greedy = tabular.greedy_policy_iteration(process)
    gap = np.diff(np.sort(greedy, axis=1)[:, -2:])
    assume(gap.min() > 1e-2)
    ending = tabular.qsm(process, 1e4, process.uniform)
    np.testing.assert_allclose(ending.policy, np.eye(3)[greedy.argmax(axis=1)], atol=1e-12)


@given(SEEDS)
def test_the_greedy_q_satisfies_bellmans_equation(seed: int) -> None:
    process = random_process(seed)
    q = tabular.greedy_policy_iteration(process)
    np.testing.assert_allclose(q, tabular.action_values(process, q.max(axis=1)), atol=1e-9)


@given(SEEDS, ALPHAS)
def test_the_fixed_point_of_qsm_is_the_softmax_of_its_own_q(seed: int, alpha: float) -> None:
    process = random_process(seed)
    ending = tabular.qsm(process, alpha, process.uniform)
    assume(ending.period == 1)
    weights = np.exp(alpha * tabular.standard_q(process, ending.policy))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ending.policy, expected, atol=1e-7)


@settings(deadline=None)
@given(SEEDS, ALPHAS)
def test_soft_policy_iteration_finds_what_soft_value_iteration_finds(
    seed: int, alpha: float
) -> None:
    process = random_process(seed)
    ending = tabular.soft_policy_iteration(process, alpha, random_policy(process, seed))
    assert ending.period == 1
    values = np.zeros(len(process.reward))
    for _ in range(400):
        q = tabular.action_values(process, values)
        values = special.logsumexp(alpha * q, axis=1) / alpha
    found = tabular.soft_values(process, ending.policy, alpha)
    np.testing.assert_allclose(found, values, atol=1e-8)


@given(SEEDS, ALPHAS)
def test_no_policy_of_qsm_has_more_reward_and_entropy_than_soft_policy_iteration(
    seed: int, alpha: float
) -> None:
    process = random_process(seed)
    most, other = (
        tabular.soft_values(process, improve(process, alpha, process.uniform).policy, alpha)
        for improve in (tabular.soft_policy_iteration, tabular.qsm)
    )
    assert (most >= other - 1e-9).all()


@given(SEEDS, ALPHAS, st.floats(-3.0, 3.0))
def test_a_constant_in_all_rewards_changes_no_policy(
    seed: int, alpha: float, constant: float
) -> None:
    process = random_process(seed)
    shifted = Process(process.transition, process.reward + constant, process.discount)
    ends = [tabular.qsm(each, alpha, each.uniform) for each in (process, shifted)]
    assume(ends[0].period == 1)
    np.testing.assert_allclose(ends[0].policy, ends[1].policy, atol=1e-7)


@given(SEEDS, ALPHAS, st.floats(0.1, 10.0))
def test_alpha_counts_only_beside_the_scale_of_reward(
    seed: int, alpha: float, scale: float
) -> None:
    process = random_process(seed)
    scaled = Process(process.transition, process.reward * scale, process.discount)
    policy = random_policy(process, seed)
    np.testing.assert_allclose(
        tabular.boltzmann(tabular.standard_q(process, policy), alpha),
        tabular.boltzmann(tabular.standard_q(scaled, policy), alpha / scale),
        atol=1e-9,
    )


def test_qsm_can_have_two_fixed_points_where_soft_policy_iteration_has_one() -> None:
    transition = np.array([[[1.0, 0.0], [0.15, 0.85]], [[0.0, 1.0], [1.0, 0.0]]])
    process = Process(transition, np.array([[1.4, -0.5], [1.4, 0.5]]), 0.95)
    starts = np.array([[[0.99, 0.01], [0.6, 0.4]], [[0.6, 0.4], [0.99, 0.01]]])
    ends = [tabular.qsm(process, 2.0, start) for start in starts]
    assert [end.period for end in ends] == [1, 1]
    assert np.abs(ends[0].policy - ends[1].policy).max() > 0.3
    soft = [tabular.soft_policy_iteration(process, 2.0, start) for start in starts]
    np.testing.assert_allclose(soft[0].policy, soft[1].policy, atol=1e-8)


def test_only_soft_policy_iteration_prefers_what_leaves_more_ways_open() -> None:
    """State 0 leads to 1, with two good actions, or to 2, with a good and a bad one; then all end.

    Both have the same Q. The soft Q differs by g log(2) / alpha, so that the probabilities have the
    ratio 2^g for every large alpha.
    """
    transition = np.zeros((4, 2, 4))
    transition[0, 0, 1] = transition[0, 1, 2] = 1.0
    transition[1:, :, 3] = 1.0
    reward = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, -9.0], [0.0, 0.0]])
    process = Process(transition, reward, DISCOUNT)
    for alpha in (100.0, 10_000.0):
        soft = tabular.soft_policy_iteration(process, alpha, process.uniform).policy[0]
        assert soft[0] / soft[1] == pytest.approx(2**DISCOUNT, rel=1e-6)
        plain = tabular.qsm(process, alpha, process.uniform).policy[0]
        np.testing.assert_allclose(plain, 0.5, atol=1e-9)


@pytest.mark.parametrize("period", [2, 3, tabular.LONGEST_CYCLE])
def test_a_cycle_is_seen_with_its_period(period: int) -> None:
    ending = tabular.iterate(lambda policy: np.roll(policy, 1, axis=1), np.eye(period)[:1])
    assert (ending.period, ending.iterations) == (period, tabular.LIMIT)


def test_what_neither_stays_nor_returns_has_no_period() -> None:
    assert tabular.iterate(lambda policy: policy + 1e-6, np.zeros((1, 2))).period is None


def test_best_actions_are_those_near_the_maximum() -> None:
    q = np.array([[1.0, 1.0 - 1e-9, 0.5], [0.0, -1.0, -2.0]])
    assert tabular.best_actions(q, 1e-6).tolist() == [[True, True, False], [True, False, False]]
