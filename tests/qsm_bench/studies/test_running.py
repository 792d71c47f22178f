"""Training a study's cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from qsm_bench.executors import Local
from qsm_bench.manifest import read_manifest
from qsm_bench.protocol import Protocol
from qsm_bench.report.drawing import Drawing
from qsm_bench.results import Results
from qsm_bench.run import run_experiment
from qsm_bench.signals import ReceivedSignal
from qsm_bench.studies.running import begin_as_copy, train_cells
from qsm_bench.studies.study import Budget, Cells, Findings, Study

AGENT, TASK = "td3[hidden_sizes=[8]]", "bimodal-bandit"
SHORT, LONG = (
    Protocol(steps=steps, warmup_steps=5, batch_size=4, eval_every=40, eval_episodes=2)
    for steps in (20, 40)
)
MEASURED = ["seed", "step", "episode", "return"]


class TwoLengths(Study):
    """One run, and the same run when it is twice as long."""

    name = "two-lengths"
    title = "Two lengths"

    def cells(self, budget: Budget) -> Sequence[Cells]:
        return [
            Cells("short", AGENT, TASK, SHORT, 2),
            Cells("long", AGENT, TASK, LONG, 2, after="short"),
        ]

    def find(self, budget: Budget, results: Mapping[str, Results], drawing: Drawing) -> Findings:
        raise NotImplementedError


def train(results: Path) -> dict[str, Results]:
    trained = train_cells(
        TwoLengths(),
        "tiny",
        executor=Local(workers=1),
        device="cpu",
        results=results,
        command="study",
        console=Console(quiet=True),
        received=ReceivedSignal(),
    )
    assert trained
    return trained


def at_the_end(results: Results) -> pd.DataFrame:
    table = results.evaluations
    return table[table["step"] == 40][MEASURED].reset_index(drop=True)


def test_cells_after_others_go_on_from_where_they_end(tmp_path: Path) -> None:
    trained = train(tmp_path)
    anew = run_experiment(
        AGENT, tasks=TASK, protocol=LONG, seeds=range(2), name="anew", results=tmp_path
    )
    pd.testing.assert_frame_equal(at_the_end(trained["long"]), at_the_end(anew))
    for manifest in (tmp_path / "study-two-lengths-tiny-long").rglob("manifest.json"):
        first, second = read_manifest(manifest).stretches
        assert (first.first_step, first.last_step, second.first_step) == (0, 20, 20)
    again = train(tmp_path)
    pd.testing.assert_frame_equal(again["long"].evaluations, trained["long"].evaluations)


def test_a_copy_that_was_cut_off_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path / "short" / "td3" / "task" / "0"
    earlier.mkdir(parents=True)
    for file in (tmp_path / "short" / "experiment.json", earlier / "manifest.json"):
        file.write_text("{}")

    def cut_off(source: Path, target: Path, **_: object) -> None:
        target.mkdir()
        (target / "half").write_text("")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qsm_bench.studies.running.shutil.copytree", cut_off)
        with pytest.raises(OSError, match=r"No space left on device: '.*long'"):
            begin_as_copy(tmp_path, "short", "long")
    assert not (tmp_path / "long").exists()
    begin_as_copy(tmp_path, "short", "long")
    left = {str(f.relative_to(tmp_path / "long")) for f in (tmp_path / "long").rglob("*")}
    assert left == {"td3", "td3/task", "td3/task/0", "td3/task/0/manifest.json"}
    assert not (tmp_path / ".long.part").exists()
