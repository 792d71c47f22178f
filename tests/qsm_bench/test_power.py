"""What a plan can show, held against the test that the report applies."""

from itertools import combinations
from math import sqrt
from statistics import NormalDist
from unittest.mock import patch

import numpy as np
import pytest

from qsm_bench.statistics import power
from qsm_bench.statistics.power import (
    POWER,
    Rivals,
    improvement_detected,
    sentence,
    warning,
    warning_beside,
)
from qsm_bench.statistics.significance import FALSE_ALARMS, permutation_test


@pytest.mark.parametrize(("seeds", "tasks", "pairs"), [(5, 6, 3), (8, 2, 3), (10, 1, 1)])
def test_the_reports_own_test_detects_it_as_often_as_is_said(
    seeds: int, tasks: int, pairs: int
) -> None:
    probability = improvement_detected(seeds, tasks, pairs)
    assert probability is not None
    shift = sqrt(2) * NormalDist().inv_cdf(probability)
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        better, worse = rng.standard_normal((2, seeds, tasks))
        p, _ = permutation_test(better + shift, worse)
        found += p <= FALSE_ALARMS / pairs
    assert abs(found / 400 - POWER) < 5 * sqrt(POWER * (1 - POWER) / 400)


def test_more_seeds_tasks_and_fewer_pairs_detect_less() -> None:
    base = improvement_detected(5, 3, 3)
    for more in ((10, 3, 3), (5, 6, 3), (5, 3, 1)):
        other = improvement_detected(*more)
        assert base is not None
        assert other is not None
        assert 0.5 < other < base < 1.0


def test_so_few_runs_tell_nothing() -> None:
    assert improvement_detected(3, 1, 3) is None
    assert sentence(3, 3, 1).startswith("With 3 seeds on 1 task no outcome can tell two of")
    assert "with 6 seeds, they are told apart in 4 of 5 experiments if" in sentence(3, 3, 1)
    assert sentence(2, 1, 1).endswith("and none can with 2 seeds.")
    assert "with 10 seeds: 0." in sentence(3, 5, 6)


@pytest.mark.parametrize(("seeds", "others", "tasks"), [(20, 5, 6), (20, 2, 2), (5, 9, 3)])
def test_beside_a_record_its_own_number_of_seeds_counts(
    seeds: int, others: int, tasks: int
) -> None:
    probability = improvement_detected(seeds, tasks, 3, others=others)
    assert probability is not None
    shift = sqrt(2) * NormalDist().inv_cdf(probability)
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        better, worse = (rng.standard_normal((n, tasks)) for n in (seeds, others))
        p, _ = permutation_test(better + shift, worse)
        found += p <= FALSE_ALARMS / 3
    assert abs(found / 400 - POWER) < 5 * sqrt(POWER * (1 - POWER) / 400)
    said = sentence(1, seeds, 9, rivals=Rivals(3, others, tasks))
    assert said.startswith(
        f"With {seeds} seeds of yours and {others} of the record's on {tasks} tasks, an agent of "
        f"yours and one of the record's are told apart in 4 of 5 experiments if the true "
        f"probability of improvement is {probability:.2f} or more; with {2 * seeds} seeds of yours"
    )


@pytest.mark.parametrize("agents", [1, 2, 4])
@pytest.mark.parametrize("rivals", [1, 3])
def test_pairs_beside_a_record_are_those_with_an_agent_of_the_plan(
    agents: int, rivals: int
) -> None:
    everyone = [*range(agents), *["theirs"] * rivals]
    pairs = [pair for pair in combinations(everyone, 2) if set(pair) != {"theirs"}]
    assert Rivals(rivals, 5, 6).pairs(agents) == len(pairs)


def test_a_record_of_one_seed_on_one_task_tells_nothing() -> None:
    rivals = Rivals(2, 1, 1)
    assert warning_beside(1, 5, Rivals(3, 5, 6)) is None
    line = "With 10 seeds of yours and 1 of the record's on 1 task no outcome can tell an agent of "
    assert (warning_beside(1, 10, rivals) or "").startswith(line)


def test_of_many_seeds_the_difference_is_that_of_the_simulation() -> None:
    simulated = improvement_detected(60, 2, 3)
    improvement_detected.cache_clear()
    with patch.object(power, "is_exact", return_value=False):
        normal = improvement_detected(60, 2, 3)
    improvement_detected.cache_clear()
    assert simulated is not None
    assert normal == pytest.approx(simulated, abs=0.005)
    assert sentence(3, 10_000, 20).startswith("With 10,000 seeds on 20 tasks, two of the 3 agents")


@pytest.mark.parametrize(
    ("agents", "tasks", "counts", "said"),
    [
        (3, 6, [5], None),
        (1, 1, [2], None),
        (2, 1, [3], "With 3 seeds on 1 task no outcome can tell the two agents apart; with 6"),
        (3, 1, [2, 20], "No outcome of stage 1 can tell two of the 3 agents apart: begin with"),
        (9, 1, [3, 4, 20], "No outcome of stages 1 to 2 can tell two of the 9 agents apart"),
        (3, 6, [5, 10, 20], None),
    ],
)
def test_too_few_seeds_are_told(
    agents: int, tasks: int, counts: list[int], said: str | None
) -> None:
    shares = [FALSE_ALARMS * n / counts[-1] for n in np.diff(counts, prepend=0)]
    line = warning(agents, tasks, counts, shares)
    assert (line is None) if said is None else (line or "").startswith(said)


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
@pytest.mark.parametrize("pairs_of", [2, 3, 5])
def test_a_plan_is_in_vain_when_no_difference_is_detected(seeds: int, pairs_of: int) -> None:
    pairs = pairs_of * (pairs_of - 1) // 2
    in_vain = warning(pairs_of, 1, [seeds], [FALSE_ALARMS]) is not None
    runs = np.arange(2.0 * seeds).reshape(2 * seeds, 1)
    assert in_vain == (permutation_test(runs[:seeds], runs[seeds:])[0] * pairs > FALSE_ALARMS)
