"""Groups of seeds: each is a job, and results read as if there were none."""

import re
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import UserError, load_policy, load_results, run_experiment, write_report
from qsm_bench.executors import Local, processes
from qsm_bench.groups import (
    choose_seeds_per_job,
    folder_name,
    group_seeds,
    job_name,
    seeds_text,
)
from qsm_bench.progress import read_states
from qsm_bench.results import Results
from qsm_bench.statistics.selection import select_runs
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import PROTOCOL, make_experiment, train, written
from tests.qsm_bench.processes import ForkedJob

TD3 = "td3[hidden_sizes=[8]]"
SEEDS = st.lists(st.integers(0, 500), min_size=1, max_size=60, unique=True)


@given(SEEDS, st.integers(1, 9), SEEDS, st.integers(1, 9))
def test_groups_hold_every_seed_once_and_never_change(
    first: list[int], size: int, more: list[int], other_size: int
) -> None:
    groups = group_seeds(first, size)
    assert [seed for group in groups for seed in group] == first
    grown = group_seeds(more, other_size, groups)
    assert grown[: len(groups)] == groups
    assert sorted(seed for group in grown for seed in group) == sorted({*first, *more})
    assert all(0 < len(group) <= size for group in groups)
    assert all(0 < len(group) <= other_size for group in grown[len(groups) :])


@given(SEEDS, SEEDS)
def test_groups_of_different_seeds_have_different_folders(a: list[int], b: list[int]) -> None:
    assert (folder_name(a) == folder_name(b)) == (a == b)
    assert len(folder_name(a)) < 90
    assert "/" not in folder_name(a)


def test_seeds_and_jobs_are_named_as_a_reader_would() -> None:
    assert seeds_text([3]) == "3"
    assert seeds_text([3, 4, 5]) == "3-5"
    assert seeds_text([3, 5]) == "3, 5"
    assert seeds_text([0, 10**15]) == f"0, {10**15}"  # no list of all between
    assert job_name("sac", "four-goals") == "sac on four-goals"
    assert job_name("sac", "four-goals", [3]) == "sac on four-goals, seed 3"
    assert job_name("sac", "four-goals", [3, 4]) == "sac on four-goals, seeds 3-4"


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 64))
def test_every_worker_has_work_as_far_as_there_are_seeds(
    seeds: int, folders: int, workers: int
) -> None:
    size = choose_seeds_per_job(seeds, folders, workers, device="cpu", compiled=False)
    jobs = folders * -(-seeds // size)
    assert jobs >= min(workers, folders * seeds) * 0.5
    if folders >= workers:
        assert size == seeds
    assert choose_seeds_per_job(seeds, folders, workers, device="cpu", compiled=True) == 1
    assert choose_seeds_per_job(seeds, folders, workers, device="cuda", compiled=True) == seeds


def run(
    folder: Path,
    seeds: Sequence[int] = range(4),
    agents: str = TD3,
    *,
    per_job: int = 2,
    steps: int = PROTOCOL.steps,
) -> Results:
    with patch.object(processes, "_start", ForkedJob):
        return run_experiment(
            agents,
            tasks="four-goals",
            protocol=PROTOCOL.but(steps=steps),
            name="there",
            seeds=seeds,
            seeds_per_job=per_job,
            results=folder,
        )


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run two jobs of two seeds each."""
    return run(tmp_path_factory.mktemp("grouped"))


def test_results_read_as_if_there_were_no_groups(grouped: Results, tmp_path: Path) -> None:
    whole = run(tmp_path, per_job=4)
    (cell,), (one,) = grouped.cells, whole.cells
    different = {"groups", "stretches", "train_seconds", "evaluation_seconds"}
    different |= {"checkpoint_seconds"}
    assert {k: v for k, v in cell.items() if k not in different} == {
        k: v for k, v in one.items() if k not in different
    }
    keys = ["agent", "task", "seed", "step", "episode"]
    tables = [r.evaluations.sort_values(keys, ignore_index=True) for r in (grouped, whole)]
    # The order of floating-point operations is that of the batch, and episodes amplify it.
    pd.testing.assert_frame_equal(tables[0][keys], tables[1][keys])
    (curves,) = select_runs(grouped).runs.values()
    assert curves.seeds == (0, 1, 2, 3)


def test_a_job_leaves_the_bytes_it_leaves_alone(grouped: Results, tmp_path: Path) -> None:
    folders = list(ExperimentStore(grouped.root, "there").job_folders())
    assert [folder.path.name for folder in folders] == ["0-1", "2-3"]
    alone = make_experiment(TD3, seeds=4, per_job=2).jobs[1]
    assert train(alone, tmp_path)
    assert written(tmp_path) == written(folders[1].path)


def test_an_experiment_is_given_more_seeds(tmp_path: Path) -> None:
    run(tmp_path, range(2))
    store = ExperimentStore(tmp_path, "there")
    (first,) = store.job_folders()
    before = first.evaluations_file.stat().st_mtime_ns
    results = run(tmp_path, range(5), per_job=2)
    assert store.groups == ((0, 1), (2, 3), (4,))
    assert first.evaluations_file.stat().st_mtime_ns == before
    assert sorted(set(results.evaluations["seed"])) == [0, 1, 2, 3, 4]
    assert results.cells[0]["seeds"] == [0, 1, 2, 3, 4]
    # Fewer are there already, in the groups that they are in.
    run(tmp_path, range(3), per_job=1)
    assert store.groups == ((0, 1), (2, 3), (4,))


def test_seeds_and_steps_grow_together_and_agents_join(tmp_path: Path) -> None:
    run(tmp_path, range(2), steps=30)
    results = run(tmp_path, range(3), f"{TD3},sac[hidden_sizes=[8]]", per_job=1)
    assert [cell["seeds"] for cell in results.cells] == [[0, 1, 2]] * 2
    assert {cell["step"] for cell in results.cells} == {PROTOCOL.steps}
    assert write_report(results, tmp_path / "report").exists()


def test_a_store_of_format_1_is_read_and_grows(tmp_path: Path) -> None:
    run(tmp_path, range(2))
    store = ExperimentStore(tmp_path, "there")
    (folder,) = store.job_folders()
    # As it was before: no level of seeds, and a list of them in experiment.json.
    above, moved = folder.path.parent, folder.path.rename(tmp_path / "moved")
    for part in moved.iterdir():
        part.rename(above / part.name)
    asked = store.file.read_text().replace('"format": 2', '"format": 1')
    store.file.write_text(
        asked.replace('"groups"', '"seeds"').replace("[\n    [", "[").replace("]\n  ]", "]")
    )
    results = load_results(tmp_path, "there")
    assert [c.path for c in store.job_folders()] == [above]
    assert not results.damaged
    assert len(results.evaluations)
    assert load_policy(results, TD3, "four-goals", 1).seed == 1
    grown = run(tmp_path, range(3))
    assert [c.path.name for c in store.job_folders()] == ["four-goals", "2"]
    assert sorted(set(grown.evaluations["seed"])) == [0, 1, 2]


def test_a_job_that_fails_leaves_out_its_own_seeds(grouped: Results, tmp_path: Path) -> None:
    results = run(tmp_path)
    folder = list(ExperimentStore(tmp_path, "there").job_folders())[1]
    manifest = folder.read_manifest()
    failed = {"status": "failed", "reason": "the disk is full", "step": 20}
    folder.write_manifest(manifest.model_copy(update=failed))
    results = load_results(tmp_path, "there")
    assert results.cells[0]["status"] == "failed"
    comparison = select_runs(results)
    (curves,) = comparison.runs.values()
    assert curves.seeds == (0, 1)
    assert curves.steps[-1] == PROTOCOL.steps
    assert (
        f"{TD3} on four-goals, seeds 2-3: failed at step 20 (the disk is full)."
        in comparison.left_out
    )
    report = write_report(results, tmp_path / "report").with_name("report.md").read_text()
    assert "seeds 2-3: failed at step 20 (the disk is full)" in report


def test_a_damaged_job_leaves_out_its_own_seeds(tmp_path: Path) -> None:
    run(tmp_path)
    folder = next(ExperimentStore(tmp_path, "there").job_folders())
    folder.evaluations_file.write_text("nothing\n")
    results = load_results(tmp_path, "there")
    assert [damaged.seeds for damaged in results.damaged] == [(0, 1)]
    comparison = select_runs(results)
    (curves,) = comparison.runs.values()
    assert curves.seeds == (2, 3)
    assert f"{TD3} on four-goals, seeds 0-1: it is damaged." in comparison.left_out


def test_a_link_above_a_group_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "results")
    agent = tmp_path / "results" / "there" / TD3
    agent.rename(tmp_path / "elsewhere")
    agent.symlink_to(tmp_path / "elsewhere")
    results = load_results(tmp_path / "results", "there")
    assert len(results.damaged) == 2
    assert not len(results.evaluations)


def test_states_name_the_seeds_where_a_job_has_several_jobs(grouped: Results) -> None:
    folders = list(ExperimentStore(grouped.root, "there").job_folders())
    assert [state.name for state in read_states(folders)] == [
        f"{TD3} on four-goals, seeds 0-1",
        f"{TD3} on four-goals, seeds 2-3",
    ]
    assert [state.name for state in read_states(folders[:1])] == [f"{TD3} on four-goals"]


@pytest.mark.parametrize("wrong", [0, -1, "many", "1.5"])
def test_a_number_of_seeds_that_is_none_is_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(UserError, match=f"^seeds_per_job={re.escape(repr(wrong))} is not right: "):
        run(tmp_path, per_job=wrong)


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        ("[[0], [0]]", "a seed is in two groups"),
        ("[[]]", "groups must be lists"),
        ("[[-1]]", "whole numbers"),
        ("[]", "it has 0 seeds"),
        ("3", "groups must be lists"),
        ('[["../x"]]', "whole numbers"),
    ],
)
def test_groups_that_no_run_has_written_are_damage(tmp_path: Path, groups: str, fault: str) -> None:
    store = ExperimentStore(tmp_path, "there")
    store.folder.mkdir()
    store.file.write_text(f'{{"agents": ["td3"], "tasks": ["four-goals"], "groups": {groups}}}')
    with pytest.raises(UserError, match=fault):
        store.read()


def test_more_workers_and_fewer_keep_the_groups(tmp_path: Path) -> None:
    for workers in (2, 1, 3):
        with patch.object(processes, "_start", ForkedJob):
            run_experiment(
                TD3,
                tasks="four-goals",
                protocol=PROTOCOL,
                name="there",
                seeds=range(4),
                executor=Local(workers=workers),
                results=tmp_path,
            )
        assert ExperimentStore(tmp_path, "there").groups == ((0, 1), (2, 3))
