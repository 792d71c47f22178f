"""A claim in parts: the verdict on the whole."""

from typing import Any

import pytest

from qsm_bench.studies.parts import Part, decide


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "cannot tell"], "cannot tell"),
        (["does not hold", "cannot tell"], "does not hold"),
    ],
)
def test_the_claim_holds_if_all_its_parts_do(outcomes: Any, whole: str) -> None:
    assert decide([Part("A part", outcome, "Why.") for outcome in outcomes]).outcome == whole
