"""The study of the vector fields: its Q, and what decides."""

import pandas as pd
import pytest
import torch

from qsm_bench.studies.vector_field import MAXIMA, SEEDS, decide, known_gradient, known_q


def test_the_gradient_is_that_of_q() -> None:
    action = torch.linspace(-1, 1, 20, dtype=torch.float64).view(10, 2).requires_grad_()
    (expected,) = torch.autograd.grad(known_q(action).sum(), action)
    torch.testing.assert_close(known_gradient(action.detach()), expected)


def test_its_maxima_are_near_those_named() -> None:
    assert float(known_gradient(MAXIMA).norm(dim=-1).max()) < 0.05


@pytest.mark.parametrize(
    ("first", "last", "outcome"),
    [
        ([0.0] * 8, [0.95] * 8, "holds"),
        ([0.0] * 8, [0.95] * 7 + [-0.1], "cannot tell"),
        ([0.0] * 8, [0.5] * 8, "does not hold"),
        ([0.96] * 8, [0.95] * 8, "cannot tell"),
    ],
)
def test_the_verdict_is_as_the_test_says(
    first: list[float], last: list[float], outcome: str
) -> None:
    columns = [f"seed {seed}" for seed in SEEDS]
    assert decide(pd.DataFrame([first, last], columns=columns)).outcome == outcome
