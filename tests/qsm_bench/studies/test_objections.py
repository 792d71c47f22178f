"""The study of objections: its columns, and what decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agents import qsm
from agents.qsm import QSMConfig
from qsm_bench.cli import app
from qsm_bench.experiment import parse_agents
from qsm_bench.statistics.selection import Comparison, Curves
from qsm_bench.studies.noised_score import CRITICS, EXACT, QSM
from qsm_bench.studies.objections import (
    DRAWS,
    FINE,
    N_STEP,
    REPETITIONS,
    STEPS,
    STUDY,
    VARIANTS,
    alpha_with_root,
    decide_law,
    decide_returns,
)
from qsm_bench.studies.trainers import compare_returns

LOW, MIDDLE, HIGH = ([base + x for x in range(6)] for base in (0.0, 10.0, 20.0))


def make_distances(qsm: list[float], corrected: list[float]) -> pd.DataFrame:
    """Distances that are 1 and 0.5 but in one case, that of the last critic and T = FINE."""
    rows = []
    for critic in CRITICS:
        for steps in (1, STEPS, FINE):  # T = 1 does not count
            last = (critic, steps) == ([*CRITICS][-1], FINE)
            for agent, found, usual in ((QSM, qsm, 1.0), (EXACT, corrected, 0.5)):
                values = found if last else [usual if steps > 1 else -usual] * len(found)
                rows += [
                    {"critic": critic, "T": steps, "agent": agent, "repetition": i, "distance": x}
                    for i, x in enumerate(values)
                ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("qsm", "corrected", "outcome"),
    [
        ([1.0] * 3, [0.9, 0.8, 0.1], "holds"),
        ([1.0] * 3, [0.9, 0.8, 1.1], "cannot tell"),
        ([1.0] * 3, [1.1, 1.2, 1.3], "does not hold"),
        ([1.0] * 3, [1.0, 1.0, 1.0], "cannot tell"),  # a tie
        ([1.0] * 3, [1.0, 0.5, 0.5], "cannot tell"),
    ],
)
def test_the_verdict_on_a_law(qsm: list[float], corrected: list[float], outcome: str) -> None:
    part = decide_law("Part", make_distances(qsm, corrected), EXACT)
    assert (part.name, part.outcome) == ("Part", outcome)
    assert "T = 1:" not in part.why


def make_comparison(returns: dict[str, list[float]]) -> Comparison:
    steps = np.array([1])
    curves = {
        (agent, "task"): Curves(tuple(range(len(found))), steps, np.array(found)[:, np.newaxis])
        for agent, found in returns.items()
        if found
    }
    return Comparison((QSM, *VARIANTS), ("task",), curves, {"task": None}, ())


@pytest.mark.parametrize(
    ("variant", "outcome"),
    [
        (HIGH, "holds"),
        (MIDDLE, "cannot tell"),
        (LOW, "does not hold"),
        ([], "cannot tell"),  # all seeds have diverged
    ],
)
@pytest.mark.parametrize("which", VARIANTS)
def test_each_variant_has_a_verdict_of_its_own(
    which: str, variant: list[float], outcome: str
) -> None:
    returns = {QSM: MIDDLE, **dict.fromkeys(VARIANTS, MIDDLE), which: variant}
    parts = decide_returns(compare_returns(make_comparison(returns), VARIANTS))
    expected = ["cannot tell"] * len(VARIANTS)
    expected[VARIANTS.index(which)] = outcome
    assert [part.outcome for part in parts] == expected
    assert len({part.name for part in parts}) == len(VARIANTS)


def test_the_tests_are_adjusted_for_all_variants() -> None:
    returns = {QSM: LOW, **dict.fromkeys(VARIANTS, LOW), N_STEP: HIGH}
    pairs = compare_returns(make_comparison(returns), VARIANTS).set_index("rival")
    # 2 of the 924 ways to choose 6 of 12 runs are as extreme.
    assert pairs.loc[N_STEP, "adjusted"] == pytest.approx(len(VARIANTS) * 2 / 924)
    unadjusted = pairs.reset_index().assign(probability=0.0, adjusted=0.06, p=0.01)
    assert {part.outcome for part in decide_returns(unadjusted)} == {"cannot tell"}


def test_sign_tests_of_so_many_repetitions_can_find_something() -> None:
    assert 2 ** (1 - REPETITIONS) < 0.05


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_root_is_tried_at_the_temperature_of_plain_qsm(steps: int) -> None:
    plain = QSMConfig(diffusion_steps=steps)
    alpha = alpha_with_root(plain.alpha, steps)
    rooted = QSMConfig(diffusion_steps=steps, target_scale="noised", alpha=alpha)
    tau = qsm.QSM.effective_temperature(plain, {})
    assert qsm.QSM.effective_temperature(rooted, {}) == pytest.approx(tau)


@pytest.mark.parametrize(("budget", "width"), [("tiny", 128), ("quick", 128), ("full", 512)])
def test_each_column_differs_in_one_thing(budget: Any, width: int) -> None:
    (cells,) = STUDY.cells(budget)
    assert cells.protocol.settings.get("n_step", QSMConfig.n_step) == 1
    asked = [dict(entry.overrides) for entry in parse_agents(cells.agents)]
    assert asked[0] == {}
    assert asked[1] == {
        "target_scale": "noised",
        "alpha": pytest.approx(alpha_with_root(QSMConfig.alpha, STEPS), rel=1e-5),
    }
    assert asked[2] == {"gradient_of": "min"}
    assert [s["critics"] for s in asked[3:5]] == [1, 2]
    assert all(tuple(s["critic_hidden_sizes"]) == (width, width) for s in asked[3:5])
    assert asked[5] == {"n_step": 3}
    tau = qsm.QSM.effective_temperature(QSMConfig(), {})
    assert asked[6] == {"samples": DRAWS, "temperature": pytest.approx(tau, rel=1e-5)}


@pytest.mark.slow
def test_the_study_runs_and_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "reports" / "studies" / "objections"
    told, pages = [], []
    for _ in range(2):
        app(["study", "objections", "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
        pages.append((folder / "report.md").read_text(encoding="utf-8"))
    assert "skipped: 7 finished jobs" not in told[0]
    assert "skipped: 7 finished jobs" in told[1]
    assert pages[0] == pages[1]
    assert all("objections: cannot tell. The tiny budget only shows" in text for text in told)
    returns = pd.read_csv(folder / "data" / "final-returns.csv")
    assert returns["agent"].tolist() == [QSM, *VARIANTS]
    for name in ("targets", "laws", "distance-steps", "distance-tau", "returns"):
        assert (folder / "figures" / f"{name}.svg").exists()
