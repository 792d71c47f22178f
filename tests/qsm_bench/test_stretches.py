"""What ran, stretch by stretch: across interrupts, deaths and other versions; old manifests too."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench import provenance, worker
from qsm_bench.evaluation import Interrupted
from qsm_bench.heartbeat import Heartbeat, this_machine
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.report.compare import write_comparison
from qsm_bench.report.document import Table
from qsm_bench.report.runs import condition_warning, what_ran
from qsm_bench.results import Results
from qsm_bench.stretches import Stretch, changes, conditions, from_top_level, varying
from qsm_bench.training import Training
from tests.qsm_bench.jobs import STEPS, make_job
from tests.qsm_bench.processes import exit_status, fork
from tests.qsm_bench.synthetic import make_results, make_stretch

RECORD = Path(__file__).parents[2] / "results"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "job")
    folder.write_manifest(Manifest(job=make_job()))
    return folder


def work(folder: JobFolder, command: str, stop_at: int | None = None) -> None:
    """Begin or resume the job, which is asked to stop after that step."""
    take_step = Training._take_step

    def step(self: Training) -> None:
        take_step(self)
        if self.step == stop_at:
            self.stop.asked = True  # type: ignore[attr-defined]

    with patch.object(Training, "_take_step", step):
        try:
            worker.work(folder.path, checkpoint_every=5, command=command)
        except SystemExit:
            assert stop_at


def spans(folder: JobFolder) -> list[tuple[int, int]]:
    return [(s.first_step, s.last_step) for s in folder.read_current().stretches]


def test_a_run_in_one_go_is_one_stretch(folder: JobFolder) -> None:
    work(folder, "run")
    (stretch,) = folder.read_manifest().stretches
    assert (stretch.first_step, stretch.last_step, stretch.command) == (0, STEPS, "run")
    assert stretch.started is not None
    assert stretch.ended is not None
    assert stretch.versions == provenance.describe_versions()
    assert stretch.hardware == provenance.describe_hardware("cpu")


def test_an_interrupted_run_under_other_versions_is_two_stretches(folder: JobFolder) -> None:
    work(folder, "run", stop_at=12)
    with (
        patch.object(worker, "begin_stretch", lambda *_: Stretch(versions={"torch": "9"})),
    ):
        work(folder, "run again")
    first, second = folder.read_manifest().stretches
    assert spans(folder) == [(0, 12), (12, STEPS)]
    assert first.versions == provenance.describe_versions()
    assert second.versions == {"torch": "9"}


def test_a_killed_stretch_ends_with_its_last_sign_of_life(folder: JobFolder) -> None:
    def die() -> None:
        take_step = Training._take_step

        def step(self: Training) -> None:
            take_step(self)
            if self.step == 18:
                told = worker.Progress()
                told.follow(self)
                Heartbeat(folder.progress_file, told).write()
                os._exit(9)

        with patch.object(Training, "_take_step", step):
            worker.work(folder.path, checkpoint_every=5)

    assert exit_status(fork(die)) == 9
    assert folder.read_manifest().stretches[0].ended is None
    standing = folder.read_current()
    assert (standing.status, standing.step) == ("interrupted", 18)
    assert standing.stretches[0].ended is not None
    work(folder, "run again")
    assert spans(folder) == [(0, 18), (15, STEPS)], "three steps were done again"
    assert folder.read_manifest().stretches[0].ended == standing.stretches[0].ended


def test_a_stretch_that_fails_before_its_first_step_is_told(folder: JobFolder) -> None:
    work(folder, "run", stop_at=12)
    with patch.object(Training, "__init__", side_effect=Interrupted), pytest.raises(SystemExit):
        worker.work(folder.path, checkpoint_every=5)
    assert spans(folder) == [(0, 12), (12, 12)]


OLD = json.loads(
    """{"status": "finished", "reason": null, "step": 45, "updates": 37, "train_seconds": 1.5,
    "evaluation_seconds": 0.5, "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
    "commit": "a68e43cb2264", "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 8,
    "gpu": null}, "started": "2026-11-21T07:47:23+00:00", "finished": "2026-11-21T09:04:13+00:00",
    "command": "python -m qsm_bench run"}"""
)


def test_a_manifest_of_before_is_one_stretch() -> None:
    manifest = Manifest.model_validate({"job": make_job().model_dump(), **OLD})
    (stretch,) = manifest.stretches
    assert stretch.model_dump() == {
        "started": OLD["started"],
        "ended": OLD["finished"],
        "first_step": 0,
        "last_step": 45,
        **{key: OLD[key] for key in ("versions", "commit", "hardware", "command")},
    }
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again.stretches == manifest.stretches


def test_a_manifest_of_before_that_had_not_begun_has_no_stretch() -> None:
    fresh: dict[str, Any] = {
        "versions": {},
        "commit": None,
        "hardware": {},
        "started": None,
        "finished": None,
    }
    content = {"job": make_job().model_dump(), "command": "run", **fresh}
    assert Manifest.model_validate(content).stretches == ()


@pytest.mark.parametrize(
    ("name", "jobs"), [("cartpole-swingup", 11), ("cartpole-swingup-short", 12), ("record", 15)]
)
def test_published_runs_are_told_from_their_first_step_to_their_last(name: str, jobs: int) -> None:
    manifests = [path.read_text() for path in RECORD.glob(f"{name}/**/manifest.json")]
    assert len(manifests) >= jobs
    for manifest in map(Manifest.model_validate_json, manifests):
        stretches = manifest.stretches
        assert stretches[0].first_step == 0
        assert stretches[-1].last_step == manifest.step
        for before, after in pairwise(stretches):
            assert after.first_step <= before.last_step, "what was killed is done again"
            assert before.ended is not None
            assert after.started is not None
            assert before.ended < after.started
        for stretch in stretches:
            assert stretch.started is not None
            assert stretch.ended is not None
            assert stretch.started < stretch.ended
            assert "torch" in stretch.versions


def test_the_committed_manifests_of_before_are_one_stretch_each() -> None:
    manifests = [path.read_text() for path in RECORD.glob("cartpole-swingup/**/manifest.json")]
    before = [text for text in manifests if "stretches" not in json.loads(text)]
    assert len(before) == 7
    for text in before:
        manifest = Manifest.model_validate_json(text)
        (stretch,) = manifest.stretches
        assert (stretch.first_step, stretch.last_step) == (0, manifest.step)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=2)))
def test_whatever_stood_there_before_is_read_or_refused(value: Any) -> None:
    for key in ("started", "finished", "versions", "commit", "hardware", "command"):
        read = from_top_level({key: value, "step": 3})
        assert key not in read


def test_only_what_changes_is_named() -> None:
    before = Stretch(versions={"torch": "2.12", "numpy": "2"}, commit="a", hardware={"cores": 2})
    now = before.model_copy(update={"versions": {"torch": "2.13", "numpy": "2"}, "commit": "b"})
    assert changes([before], now) == "commit a -> b, torch 2.12 -> 2.13"
    assert changes([before], before) == ""
    assert changes([], now) == ""


@given(
    st.lists(
        st.fixed_dictionaries({"torch": st.sampled_from("ab"), "numpy": st.sampled_from("ab")}),
        min_size=1,
        max_size=4,
    )
)
def test_what_varies_is_what_has_two_values(versions: list[dict[str, str]]) -> None:
    stretches = [make_stretch("sac", "a", 1, versions=v) for v in versions]
    named = varying(stretches)
    for name in ("torch", "numpy"):
        values = {conditions(stretch)[name] for stretch in stretches}
        assert set(named.get(name, [])) == (values if len(values) > 1 else set())


def resumed(results: Results, **changes: Any) -> Results:
    """Return results whose first job has two stretches, the second under other conditions."""
    first, *others = results.cells
    agent, task = first["agent"], first["task"]
    stretches = [
        make_stretch(agent, task, 4_000),
        make_stretch(agent, task, 10_000, **({"first_step": 4_000} | changes)),
    ]
    return replace(results, cells=[first | {"stretches": stretches}, *others])


def steps_shown(results: Results) -> list[str]:
    """Return the steps of the first job's stretches, as the report shows them."""
    tables = [b for b in what_ran(results).blocks if isinstance(b, Table) and b.name == "stretches"]
    return [steps for table in tables for steps in table.cells["steps"]][:2]


RESULTS = make_results(("qsm", "td3"), ("a",), 2, 2, 1, name="here")
OTHER = {"versions": {"python": "3.12.1", "torch": "2.14.0"}}


def test_a_report_lists_the_stretches_and_warns_first_where_they_differ() -> None:
    warning, *_ = what_ran(resumed(RESULTS, **OTHER)).blocks
    assert "Warning: not all of here ran under the same conditions" in str(warning)
    assert "torch 2.13.0 or 2.14.0" in str(warning)
    assert steps_shown(resumed(RESULTS, **OTHER)) == ["0 to 4,000", "4,000 to 10,000"]


def test_a_report_lists_stretches_under_the_same_conditions_without_a_warning() -> None:
    assert steps_shown(resumed(RESULTS)) == ["0 to 4,000", "4,000 to 10,000"]
    assert "Warning" not in str(what_ran(resumed(RESULTS)).blocks)


def test_a_report_says_nothing_of_stretches_where_there_is_one() -> None:
    assert steps_shown(RESULTS) == []
    assert condition_warning(RESULTS) is None


@pytest.mark.parametrize(
    "other",
    [OTHER, {"commit": "f" * 12}, {"hardware": {"cpu": "another"}}],
    ids=["versions", "commit", "hardware"],
)
def test_a_comparison_warns_of_conditions_that_differ_within(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    after = replace(resumed(RESULTS, **other), name="there")
    page, _ = write_comparison(RESULTS, after, tmp_path / "compared")
    text = page.with_name("report.md").read_text()
    assert "Warning: not all of there ran under the same conditions" in text
    assert "not all of here" not in text


def test_a_sign_of_life_of_another_run_does_not_end_a_stretch_that_has_ended(
    folder: JobFolder,
) -> None:
    manifest = Manifest(job=make_job(), stretches=(Stretch(ended="then", last_step=3),))
    manifest.end_stretch({"step": 9, "time": 0, "place": this_machine()})
    assert manifest.stretches[0] == Stretch(ended="then", last_step=3)
