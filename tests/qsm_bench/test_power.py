"""What a plan can show, held against the test that the report applies."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from qsm_bench.statistics.power import POWER, improvement_detected, sentence
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
    assert "with 10 seeds: 0." in sentence(3, 5, 6)
