"""Every study: it can be listed, it runs, and its report says the same when it is made again."""

import json
from pathlib import Path

import pytest

from qsm_bench.cli import app
from qsm_bench.errors import UserError
from qsm_bench.studies import STUDIES, find_study
from qsm_bench.studies.running import VERDICT_FILE, published_verdict, write_study

COMPUTED = [name for name in STUDIES if not find_study(name).cells("tiny")]
"""Those that train no cells."""


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_claims_tests_and_takes(name: str) -> None:
    study = find_study(name)
    assert study.name == name
    assert all(text.endswith(".") for text in (study.claim, study.test, *study.limits))
    assert study.limits
    assert study.minutes["quick"] < 10


def test_the_documentation_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[3] / "docs" / "studies.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"`{name}`" for name in STUDIES]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_study_gives_the_same_report_twice(name: str, tmp_path: Path) -> None:
    study = find_study(name)
    for again in ("first", "second"):
        page, verdict = write_study(study, "tiny", {}, tmp_path / again)
        assert page.exists()
        assert verdict.outcome == "cannot tell"  # of the tiny budget
        assert published_verdict(study, tmp_path / again) == verdict
    first, second = (
        {f.relative_to(tmp_path / again): f.read_bytes() for f in files if f.is_file()}
        for again in ("first", "second")
        if (files := sorted((tmp_path / again).rglob("*")))
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTED)
def test_a_study_that_trains_no_cells_holds_at_its_quick_budget(name: str, tmp_path: Path) -> None:
    _, verdict = write_study(find_study(name), "quick", {}, tmp_path)
    assert verdict.outcome == "holds", verdict.why


def test_a_damaged_verdict_is_one_line(tmp_path: Path) -> None:
    study = find_study("vector-field")
    assert published_verdict(study, tmp_path) is None
    folder = tmp_path / "studies" / study.name
    folder.mkdir(parents=True)
    (folder / VERDICT_FILE).write_text(json.dumps({"study": study.name, "outcome": "maybe"}))
    with pytest.raises(UserError, match="is damaged: budget: Field required; run the study again"):
        published_verdict(study, tmp_path)


def test_the_command_lists_them_and_knows_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    app(["study"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)
    assert "not run" in shown
    with pytest.raises(UserError, match="unknown study 'grid'"):
        app(["study", "grid"], standalone_mode=False)
