"""The package's own tasks: what is claimed about their returns, and Gymnasium's own check."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.integrate import quad

from envs import bimodal_bandit, find_task, four_goals, linear_quadratic, make

Array = NDArray[np.float64]

SMALL_TASKS = ("bimodal-bandit", "four-goals", "linear-quadratic")


@pytest.mark.filterwarnings("ignore:.*A Box observation space.*infinity")
@pytest.mark.parametrize("name", SMALL_TASKS)
def test_gymnasium_finds_no_fault_with_a_small_task(name: str) -> None:
    check_env(gymnasium.make(find_task(name).gymnasium_id, disable_env_checker=True).unwrapped)


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_random_actions_earn_what_counts_as_a_score_of_zero(name: str) -> None:
    env, generator = make(name), np.random.default_rng(0)
    returns = []
    for episode in range(1000):
        env.reset(seed=episode)
        total, ended = 0.0, False
        while not ended:
            action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            _, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    score_range = find_task(name).score_range
    assert score_range is not None
    zero, one = score_range
    standard_error = np.std(returns) / np.sqrt(len(returns))
    assert standard_error < 0.05 * (one - zero)
    assert abs(np.mean(returns) - zero) < 4 * standard_error


class TestBimodalBandit:
    def test_the_random_return_is_the_mean_reward_over_the_actions(self) -> None:
        integral, error = quad(bimodal_bandit.reward, -1, 1, points=[0.0])
        assert integral / 2 == pytest.approx(bimodal_bandit.RANDOM_RETURN, abs=2 * error)

    def test_both_modes_earn_the_optimal_return_and_their_mean_earns_nothing(self) -> None:
        for mode in bimodal_bandit.MODES:
            assert bimodal_bandit.reward(mode) == pytest.approx(bimodal_bandit.OPTIMAL_RETURN)
        assert bimodal_bandit.reward(float(np.mean(bimodal_bandit.MODES))) == 0

    @given(st.floats(-1, 1))
    def test_an_action_earns_less_the_farther_it_is_from_the_nearest_mode(
        self, action: float
    ) -> None:
        distance = min(abs(action - mode) for mode in bimodal_bandit.MODES)
        expected = 1 - 4 * distance**2
        assert bimodal_bandit.reward(action) == pytest.approx(expected, abs=1e-12)

    def test_an_episode_is_one_rewarded_step(self) -> None:
        env = make("bimodal-bandit")
        observation, _ = env.reset(seed=0)
        assert observation.tolist() == [0.0]
        _, reward, terminated, truncated, _ = env.step(np.full(1, 0.25, np.float32))
        assert reward == pytest.approx(0.75)
        assert terminated
        assert not truncated


positions = arrays(np.float64, 2, elements=st.floats(-1.5, 1.5))
actions = arrays(np.float64, 2, elements=st.floats(-1, 1))
turns = st.sampled_from([np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), k) for k in (1, 2, 3)])


class TestFourGoals:
    @given(positions, actions, turns)
    def test_a_quarter_turn_of_everything_changes_nothing(
        self, position: Array, action: Array, turn: Array
    ) -> None:
        moved, reward, reached = four_goals.transition(position, action)
        turned = four_goals.transition(turn @ position, turn @ action)
        np.testing.assert_allclose(turned[0], turn @ moved)
        np.testing.assert_allclose(turned[1], reward, rtol=1e-6)
        assert turned[2] == reached

    @given(arrays(np.float64, 2, elements=st.floats(-0.1, 0.1)), turns)
    def test_the_straight_line_turns_with_its_start(self, start: Array, turn: Array) -> None:
        assume(not np.isclose(*np.abs(start)))  # two goals are equally near on the diagonals
        np.testing.assert_allclose(
            four_goals.straight_line(turn @ start), turn @ four_goals.straight_line(start)
        )

    def test_the_random_return_is_what_random_actions_earn(self) -> None:
        returns = rollouts(lambda generator, p: generator.uniform(-1, 1, p.shape), 100_000)
        standard_error = returns.std() / np.sqrt(len(returns))
        assert standard_error < 0.01
        assert abs(returns.mean() - four_goals.RANDOM_RETURN) < 4 * standard_error

    def test_the_straight_lines_return_is_what_it_earns(self) -> None:
        returns = rollouts(lambda _, p: four_goals.straight_line(p), 100_000)
        standard_error = returns.std() / np.sqrt(len(returns))
        assert standard_error < 0.002
        # The midpoint rule's own error, where the number of steps jumps, is of that size too.
        difference = abs(returns.mean() - four_goals.straight_line_return(200))
        assert difference < 4 * standard_error
        assert returns.mean() == pytest.approx(four_goals.OPTIMAL_RETURN, abs=0.01)

    @pytest.mark.parametrize("goal", four_goals.GOALS)
    def test_a_goal_ends_the_episode(self, goal: Array) -> None:
        env = make("four-goals")
        position, _ = env.reset(seed=0)
        total, steps, terminated = 0.0, 0, False
        while not terminated:
            heading = goal - position
            action = (heading / np.abs(heading).max()).astype(np.float32)
            position, reward, terminated, truncated, _ = env.step(action)
            total, steps = total + float(reward), steps + 1
            assert not truncated
        assert np.linalg.norm(position - goal) <= four_goals.GOAL_RADIUS + 1e-6
        assert steps <= 11
        assert total < 0

    def test_who_stays_is_cut_off_at_the_horizon(self) -> None:
        env = make("four-goals")
        start, _ = env.reset(seed=0)
        for step in range(1, four_goals.HORIZON + 1):
            position, reward, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
            assert not terminated
            assert truncated == (step == four_goals.HORIZON)
            assert reward == pytest.approx(-np.linalg.norm(four_goals.GOALS - start, axis=1).min())
        np.testing.assert_array_equal(position, start)


def rollouts(policy: Callable[[np.random.Generator, Array], Array], count: int) -> Array:
    """Return the returns [count] of `policy` from random starts in the four-goals task."""
    generator = np.random.default_rng(0)
    width = four_goals.START_HALF_WIDTH
    position = generator.uniform(-width, width, (count, 2))
    total, running = np.zeros(count), np.ones(count, bool)
    for _ in range(four_goals.HORIZON):
        position, reward, reached = four_goals.transition(position, policy(generator, position))
        total += running * reward
        running &= ~reached
    return total


lq = linear_quadratic
starts = st.floats(-1, 1).map(lambda position: np.array([position, 0.0]))


def controlled_return(start: Array, gains: list[Array], nudges: Array | None = None) -> float:
    """Compute the return of a_t = -K_t s_t + nudges_t."""
    state, total = start, 0.0
    for step, gain in enumerate(gains):
        action = -gain @ state + (0.0 if nudges is None else nudges[step])
        total -= lq.TIME_STEP * float(
            state @ lq.STATE_COST @ state + action @ lq.ACTION_COST @ action
        )
        state = lq.A @ state + lq.B @ action
    return total


class TestLinearQuadratic:
    @given(starts)
    def test_the_controller_earns_the_optimal_return(self, start: Array) -> None:
        gains, _ = lq.riccati()
        assert controlled_return(start, gains) == pytest.approx(lq.optimal_return(start))

    @given(starts)
    def test_no_sequence_of_actions_earns_more(self, start: Array) -> None:
        """The return is a quadratic of the 50 actions, so least squares finds the best ones."""
        states = [np.linalg.matrix_power(lq.A, t) for t in range(lq.HORIZON)]
        pushes = [
            np.hstack([states[t - 1 - k] @ lq.B if k < t else 0 * lq.B for k in range(lq.HORIZON)])
            for t in range(lq.HORIZON)
        ]
        weight = np.sqrt(lq.TIME_STEP * lq.STATE_COST)
        effort = np.sqrt(lq.TIME_STEP * lq.ACTION_COST[0, 0]) * np.eye(lq.HORIZON)
        matrix = np.vstack([*(weight @ push for push in pushes), effort])
        target = np.concatenate([*(weight @ s @ start for s in states), np.zeros(lq.HORIZON)])
        solution = np.linalg.lstsq(matrix, -target)[0]
        least_cost = float(np.square(matrix @ solution + target).sum())
        assert -least_cost == pytest.approx(lq.optimal_return(start), abs=1e-12)
        assert np.abs(solution).max() < 1

    @given(starts, st.integers(0, lq.HORIZON - 1), st.floats(-1, 1))
    def test_one_action_off_by_e_costs_e_squared_times_a_known_factor(
        self, start: Array, step: int, error: float
    ) -> None:
        gains, costs = lq.riccati()
        nudges = np.zeros((lq.HORIZON, 1))
        nudges[step] = error
        factor = lq.TIME_STEP * lq.ACTION_COST + lq.B.T @ costs[step + 1] @ lq.B
        expected = lq.optimal_return(start) - error**2 * float(factor[0, 0])
        assert controlled_return(start, gains, nudges) == pytest.approx(expected)

    @given(starts, arrays(np.float64, (lq.HORIZON, 1, 2), elements=st.floats(-2, 2)))
    def test_other_gains_are_never_better(self, start: Array, change: Array) -> None:
        gains = [gain + extra for gain, extra in zip(lq.riccati()[0], change, strict=True)]
        assert controlled_return(start, gains) <= lq.optimal_return(start) + 1e-12

    def test_the_optimal_return_is_its_mean_over_starts(self) -> None:
        mean, _ = quad(lambda x: lq.optimal_return(np.array([x, 0.0])) / 2, -1, 1)
        assert pytest.approx(mean) == lq.OPTIMAL_RETURN

    def test_the_random_return_is_what_random_actions_earn(self) -> None:
        count, generator = 100_000, np.random.default_rng(0)
        state = np.stack([generator.uniform(-1, 1, count), np.zeros(count)])
        returns = np.zeros(count)
        for _ in range(lq.HORIZON):
            action = generator.uniform(-1, 1, (1, count))
            cost = (state * (lq.STATE_COST @ state)).sum(0) + (lq.ACTION_COST @ action**2)[0]
            returns -= lq.TIME_STEP * cost
            state = lq.A @ state + lq.B @ action
        standard_error = returns.std() / np.sqrt(count)
        assert standard_error < 0.02
        assert abs(returns.mean() - lq.RANDOM_RETURN) < 4 * standard_error

    @pytest.mark.parametrize("seed", range(3))
    def test_the_environment_pays_the_controller_its_optimal_return(self, seed: int) -> None:
        env = make("linear-quadratic")
        start, _ = env.reset(seed=seed)
        state, total = start, 0.0
        gains, _ = lq.riccati()
        for step, gain in enumerate(gains, start=1):
            action = (-gain @ state).astype(np.float32)
            assert np.abs(action).max() < 1
            state, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            assert not terminated
            assert truncated == (step == lq.HORIZON)
        assert total == pytest.approx(lq.optimal_return(start.astype(np.float64)), rel=1e-5)
