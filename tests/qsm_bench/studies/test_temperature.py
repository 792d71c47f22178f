"""The study of temperature: what decides, what is read from runs, and that it runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qsm_bench.cli import app
from qsm_bench.studies import temperature
from qsm_bench.studies.overshoot import linear_quadratic_k
from qsm_bench.studies.temperature import (
    BIAS,
    KNOWN,
    NORMALIZED,
    QSM,
    RETURN,
    SHARE,
    curvatures,
    decide_bounds,
    decide_returns,
    spread,
)

K = 0.1
ALPHAS = 1.0, 3.0, 8.0, 20.0, 50.0, 200.0
"""With K they are at alpha k = 0.1, 0.3, 0.8, 2, 5 and 20."""
RISING = [0.9, 0.0, 0.1, 0.4, 0.9, 1.0]


def make_runs(column: str, rows: list[list[float]]) -> pd.DataFrame:
    """Runs of qsm with these values of one measure, [seeds, ALPHAS]."""
    return pd.DataFrame(
        [
            {"agent": QSM, "setting": alpha, "seed": seed, column: value}
            for seed, row in enumerate(rows)
            for alpha, value in zip(ALPHAS, row, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([RISING] * 3, "holds"),
        ([RISING], "holds"),  # five alphas in one order: p = 2/120
        ([[0.0, *RISING[1:]]] * 3, "holds"),  # alpha k = 0.1 does not count
        ([[0.9, 0.0, 0.1, 0.9, 0.95, 1.0]] * 3, "holds"),  # between the boundaries: either
        ([[0.9, 0.0, 0.6, 0.7, 0.9, 1.0]] * 3, "does not hold"),  # at the bounds too early
        ([[0.9, 0.0, 0.1, 0.2, 0.4, 1.0]] * 3, "does not hold"),  # too late
        ([[0.9, 0.0, 0.9, 0.92, 0.95, 1.0], RISING], "cannot tell"),  # too early in one seed
        ([[0.9, 0.0, 0.7, 0.72, 0.95, 1.0], RISING], "holds"),  # and below in the mean
        ([[0.9, 0.45, 0.4, 0.3, 0.2, 0.1]] * 3, "does not hold"),
        ([[0.9, 0.4, 0.2, 0.1, 0.6, 0.55]], "cannot tell"),
        ([[0.9, np.nan, 0.1, 0.4, 0.9, 1.0]], "cannot tell"),
    ],
)
def test_the_verdict_on_bounds(rows: list[list[float]], outcome: str) -> None:
    assert decide_bounds(make_runs(SHARE, rows), K).outcome == outcome


def around(*middles: float) -> list[list[float]]:
    """Six seeds whose returns lie close around these, one for each of the ALPHAS."""
    return [[middle + 0.01 * seed for middle in middles] for seed in range(6)]


PEAK, FLAT = around(1, 2, 3, 2, 1, 0), around(1, 1, 1, 1, 1, 1)
UP, DOWN = around(1, 2, 3, 4, 5, 6), around(6, 5, 4, 3, 2, 1)
PLATEAU = around(1, 2, 3, 4, 5, 5)


@pytest.mark.parametrize(
    ("tasks", "outcome"),
    [
        ([PEAK], "holds"),
        ([PEAK, PEAK], "holds"),
        ([FLAT], "cannot tell"),
        ([PLATEAU], "cannot tell"),
        ([UP], "does not hold"),
        ([DOWN], "does not hold"),
        ([PEAK, FLAT], "cannot tell"),
        ([PEAK, UP], "does not hold"),
        ([PEAK[:3]], "cannot tell"),  # no p is so small with three seeds
    ],
)
def test_the_verdict_on_returns(tasks: list[list[list[float]]], outcome: str) -> None:
    runs = {f"task {i}": make_runs(RETURN, rows) for i, rows in enumerate(tasks)}
    assert decide_returns(runs).outcome == outcome


def test_alphas_whose_runs_are_all_missing_are_no_verdict() -> None:
    runs = make_runs(RETURN, PEAK)
    assert decide_returns({"a": runs[runs["setting"] < 5]}).outcome == "cannot tell"


def test_k_of_a_parabola_is_found_on_any_state_and_seed() -> None:
    action = np.linspace(-0.975, 0.975, 40)
    slices = pd.concat(
        [
            pd.DataFrame({"agent": "a", "seed": seed, "state": state, "action": action}).assign(
                q=7 - k * (action - 0.1 * state) ** 2 + state
            )
            for seed, k in ((3, 0.2), (5, 1.5))
            for state in range(4)
        ]
    )
    assert curvatures(slices).set_index("seed")["k"].to_dict() == pytest.approx({3: 0.2, 5: 1.5})


def test_a_measure_that_no_run_has_is_left_out() -> None:
    runs = make_runs(RETURN, PEAK).assign(**{SHARE: 0.5, BIAS: np.nan})
    table = spread(runs, "setting")
    assert set(table["measure"]) == {RETURN, SHARE}
    assert table["setting"].tolist() == [*ALPHAS] * 2
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_alpha_spans_three_decades_on_both_sides_of_the_boundary() -> None:
    alphas = np.array(temperature.ALPHAS)
    assert alphas.max() / alphas.min() == 1000
    product = alphas * linear_quadratic_k(temperature.DISCOUNT)
    assert ((product >= temperature.WIDE) & (product <= temperature.BELOW)).sum() >= 2
    assert (product >= temperature.ABOVE).sum() >= 2


@pytest.mark.slow
def test_the_study_runs_and_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "reports" / "studies" / "temperature"
    told, pages = [], []
    for _ in range(2):
        app(["study", "temperature", "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
        pages.append((folder / "report.md").read_text(encoding="utf-8"))
    assert "skipped: 4 finished jobs" not in told[0]
    assert "skipped: 4 finished jobs" in told[1]
    assert pages[0] == pages[1]
    assert all("temperature: cannot tell. The tiny budget only shows" in text for text in told)
    runs: Any = pd.read_csv(folder / "data" / f"runs-{KNOWN}.csv")
    assert len(runs) == 4 * 2  # columns, seeds
    assert runs[[RETURN, SHARE, BIAS, "tau", "k"]].notna().all(axis=None)
    assert set(runs["agent"]) == {QSM, NORMALIZED}
