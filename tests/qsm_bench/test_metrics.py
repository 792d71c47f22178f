"""Metrics: a mean over the updates that gave them, in columns that a resume leaves as they are."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench.job_folder import JobFolder
from qsm_bench.metrics import Means
from qsm_bench.training import Training
from tests.qsm_bench.jobs import kill, make_job, train, uncut, written

LATE = "tests.qsm_bench.plain_agents:Late"


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9), max_size=3), max_size=20),
    st.integers(0, 20),
)
def test_a_mean_is_over_the_updates_that_gave_the_value(
    updates: list[dict[str, int]], saved_after: int
) -> None:
    means = Means()
    for number, update in enumerate(updates):
        if number == saved_after:
            state, means = means.state_dict(), Means()
            means.load_state_dict(state, torch.device("cpu"))
        means.add({name: torch.tensor([value, 2.0 * value]) for name, value in update.items()})
    given_values = {n: [u[n] for u in updates if n in u] for n in "abc"}
    expected = {n: sum(v) / len(v) for n, v in given_values.items() if v}
    taken = means.take()
    assert taken.keys() == expected.keys()
    for name, mean in expected.items():
        assert taken[name] == pytest.approx([mean, 2 * mean], abs=1e-5)
    assert means.take() == {}


def table(folder: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(JobFolder(folder).training_file.read_text().splitlines()))


def test_a_late_metric_is_blank_before_and_a_lost_one_after(tmp_path: Path) -> None:
    """Updates 1 to 12 are in the first row, to 32 in the second; then up to the 37th, no row."""
    assert train(make_job(LATE), tmp_path)
    found = [
        (row["step"], row["pretraining"], row["critic_loss"], row["actor_loss"])
        for row in table(tmp_path)
        if row["seed"] == "0"
    ]
    assert found == [("20", "3.0", "7.0", ""), ("40", "", "7.0", "10.0")]


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("cuts", [(15,), (21,), (42,), (44,), (70, 5), (12, 30, 3)])
def test_cut_off_around_a_new_column_it_leaves_the_same_bytes(
    killed: bool, cuts: tuple[int, ...], tmp_path: Path
) -> None:
    job = make_job(LATE)
    for at in cuts:
        if killed:
            kill(job, tmp_path, checkpoint_every=7, at=at)
        else:
            train(job, tmp_path, checkpoint_every=7, stop_at=at)
    assert train(job, tmp_path, checkpoint_every=7)
    assert written(tmp_path) == uncut(job.model_dump_json())
    header = JobFolder(tmp_path).training_file.read_text().splitlines()[0]
    assert header.endswith("training_return,pretraining,critic_loss,actor_loss")


def test_a_loss_that_did_not_come_says_nothing_of_a_seed(tmp_path: Path) -> None:
    """Only what an update gave decides whether a seed is sound."""
    assert train(make_job(LATE), tmp_path)
    again = Training(make_job(LATE), JobFolder(tmp_path), checkpoint_every=1000)
    again.close()
    assert again.status.diverged == {}


def test_a_checkpoint_that_counted_all_metrics_alike_goes_on(tmp_path: Path) -> None:
    job = make_job(LATE)
    assert not train(job, tmp_path, stop_at=14)
    file = JobFolder(tmp_path).checkpoint / "state.pt"
    state = torch.load(file, weights_only=True)
    metrics = state.pop("metrics")
    del state["columns"]
    state["metric_sums"] = metrics["sums"]
    state["metric_updates"] = max(metrics["updates"].values())
    torch.save(state, file)
    assert train(job, tmp_path)
    assert [row["critic_loss"] for row in table(tmp_path)] == ["7.0"] * 4
