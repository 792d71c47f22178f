"""Imported curves: read from others' files, kept with what was declared, shown and compared."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm_bench.cli import app
from qsm_bench.errors import UserError
from qsm_bench.experiment import AgentEntry
from qsm_bench.exporters import export
from qsm_bench.external import (
    COLUMNS,
    TDMPC2,
    Declaration,
    External,
    ExternalCurve,
    _rows,
    import_curves,
    load_external,
    parse_columns,
)
from qsm_bench.report import write_report
from qsm_bench.report.compare import write_comparison
from qsm_bench.report.document import Table
from qsm_bench.report.pairs import settling
from qsm_bench.results import Results, load_results
from qsm_bench.statistics import estimates
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.selection import select_runs
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import as_csv
from tests.qsm_bench.jobs import make_experiment
from tests.qsm_bench.synthetic import made_up_returns, make_results

THEIRS = "step,reward,seed\n0,1.5,1\n20,3.0,1\n40,5.5,1\n0,2.5,2\n20,nan,2\n"


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    """Lay out an experiment that holds an action for two environment steps."""
    experiment = make_experiment("td3", ("four-goals",), action_repeat=2)
    store = ExperimentStore(tmp_path / "results", experiment.name)
    store.prepare(experiment, "test")
    return store


def write(file: Path, text: str = THEIRS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def rows_of(store: ExperimentStore) -> dict[str, list[tuple[float, ...]]]:
    external = load_external(store)
    assert external.faults == ()
    return {
        curve.name: list(curve.rows.itertuples(index=False, name=None)) for curve in external.curves
    }


def test_a_file_of_tdmpc2_is_read_in_decisions(store: ExperimentStore, tmp_path: Path) -> None:
    import_curves(store, write(tmp_path / "four-goals.csv"), "TD-MPC2")
    (curve,) = load_external(store).curves
    assert curve.rows["step"].tolist() == [0, 10, 20, 0, 10]
    assert curve.rows["seed"].tolist() == [1, 1, 1, 2, 2]
    np.testing.assert_equal(curve.rows["return"].tolist(), [1.5, 3.0, 5.5, 2.5, np.nan])
    assert curve.declared.model_dump(exclude={"checksum"}) == {
        "label": "TD-MPC2",
        "task": "four-goals",
        "source": "four-goals.csv",
        "columns": TDMPC2,
        "equal_protocol": False,
    }


def test_a_folder_is_read_for_the_tasks_of_the_experiment_alone(
    store: ExperimentStore, tmp_path: Path
) -> None:
    folder = tmp_path / "tdmpc2"
    write(folder / "four-goals.csv")
    write(folder / "dog-run.csv", "not,a,table")
    assert [c.declared.task for c in import_curves(store, folder, "them")] == ["four-goals"]


def test_named_columns_among_others_and_their_steps_as_they_are(
    store: ExperimentStore, tmp_path: Path
) -> None:
    file = write(tmp_path / "any.csv", "\ufeff,algo,frames,R,run\r\n0,x,5,1,0\r\n1,,15,2,0\r\n")
    columns = parse_columns("step=frames, return=R,seed=run")
    import_curves(store, file, "them", task="four-goals", columns=columns)
    assert rows_of(store) == {"them (external)": [(5, 1.0, 0), (15, 2.0, 0)]}


def test_a_second_import_takes_the_place_of_the_first(
    store: ExperimentStore, tmp_path: Path
) -> None:
    import_curves(store, write(tmp_path / "four-goals.csv"), "them")
    import_curves(store, write(tmp_path / "four-goals.csv", "step,reward,seed\n2,7,3\n"), "them")
    assert rows_of(store) == {"them (external)": [(1, 7.0, 3)]}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no columns to parse|no heading|no column"),
        ("step,reward\n1,2\n", "it has no column 'seed'; its columns are step, reward"),
        ("step,reward,seed\n", "it has no rows"),
        ("step,reward,seed\n2,x,0\n", "'reward' has something else than numbers"),
        ("step,reward,seed\n2,inf,0\n", "a return is beyond"),
        ("step,reward,seed\n2.5,1,0\n", "step 2.5 is no whole number"),
        ("step,reward,seed\n-2,1,0\n", "step -2 is no whole number"),
        ("step,reward,seed\n,1,0\n", "step nan is no whole number"),
        ("step,reward,seed\n2,1,-1\n", "seed -1 is no whole number"),
        ("step,reward,seed\n3,1,0\n", "environment step 3 is within a decision"),
        ("step,reward,seed\n2,1,0\n2,1,0\n", "it has seed 0, step 1 twice"),
        ("step,step,reward,seed\n2,2,1,0\n", "'step' twice"),
        ("step,reward,seed\n2,1,0,9\n", "Length of header"),
    ],
)
def test_a_strange_file_is_refused_in_one_line_and_nothing_is_written(
    store: ExperimentStore, tmp_path: Path, text: str, fault: str
) -> None:
    file = write(tmp_path / "four-goals.csv", text)
    with pytest.raises(UserError, match=rf"{file} cannot be imported: .*({fault})") as error:
        import_curves(store, file, "them")
    assert "\n" not in str(error.value)
    assert load_external(store) == External()
    assert not (store.folder / "external").exists()


def test_what_does_not_fit_the_experiment_is_refused(
    store: ExperimentStore, tmp_path: Path
) -> None:
    file, folder = write(tmp_path / "other.csv"), tmp_path / "folder"
    folder.mkdir()
    link = tmp_path / "four-goals.csv"
    link.symlink_to(file)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("is not named like a task of there", lambda: import_curves(store, file, "them")),
        ("has no task 'x'", lambda: import_curves(store, file, "them", task="x")),
        ("has no file of a task", lambda: import_curves(store, folder, "them")),
        ("--task is for a file", lambda: import_curves(store, folder, "x", task="four-goals")),
        ("is not there", lambda: import_curves(store, tmp_path / "no", "them")),
        ("is a link", lambda: import_curves(store, link, "them")),
        ("is an agent of the experiment", lambda: import_curves(store, file, "td3")),
        ("1 to 200 printable", lambda: import_curves(store, file, " ")),
        ("1 to 200 printable", lambda: import_curves(store, file, "a\nb")),
        ("it names step or env_step", lambda: import_curves(store, file, "x", columns={"a": "b"})),
        ("write it as step=", lambda: parse_columns("step")),
        ("write it as step=", lambda: parse_columns("step=a,step=b")),
    ]
    for fault, call in cases:
        with pytest.raises(UserError, match=fault) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (store.folder / "external").exists()


def test_no_agent_is_called_external() -> None:
    experiment = make_experiment("td3")
    (entry,) = experiment.agents

    class Named(AgentEntry):
        def label(self, config: object) -> str:
            return "external"

    with pytest.raises(UserError, match="imported curves are kept under this name"):
        replace(experiment, agents=(Named(entry.registered, {}),))


labels = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@given(label=labels)
def test_any_label_is_kept_within_the_folder_and_read_again(
    label: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("label")
    experiment = make_experiment("td3", ("four-goals",))
    store = ExperimentStore(tmp, experiment.name)
    store.prepare(experiment, "test")
    if label == "td3":
        return
    before = {p for p in tmp.rglob("*") if p.is_file()}
    import_curves(store, write(tmp.parent / f"{tmp.name}-in" / "four-goals.csv"), label)
    assert list(rows_of(store)) == [f"{label} (external)"]
    new = {p for p in tmp.rglob("*") if p.is_file()} - before
    assert {p.parent.parent for p in new} == {store.folder / "external"}


def damage_declaration(folder: Path) -> None:
    (folder / "four-goals.json").write_text('{"label": "them"}')


def damage_table(folder: Path) -> None:
    (folder / "four-goals.csv").write_text("step,return,seed\n1,2,3\n")


def lose_table(folder: Path) -> None:
    (folder / "four-goals.csv").unlink()


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("others"))


def link_table(folder: Path) -> None:
    table = folder / "four-goals.csv"
    table.rename(folder.parents[2] / "elsewhere.csv")
    table.symlink_to(folder.parents[2] / "elsewhere.csv")


def link_folder(folder: Path) -> None:
    folder.rename(folder.parents[2] / "elsewhere")
    folder.symlink_to(folder.parents[2] / "elsewhere")


@pytest.mark.parametrize(
    "damage", [damage_declaration, damage_table, lose_table, rename, link_table, link_folder]
)
def test_what_is_damaged_is_named_and_left_out(
    damage: Callable[[Path], None], store: ExperimentStore, tmp_path: Path
) -> None:
    import_curves(store, write(tmp_path / "four-goals.csv"), "them")
    damage(store.folder / "external" / "them")
    external = load_results(store.folder.parent, store.folder.name).external
    assert external.curves == ()
    (fault,) = external.faults
    assert str(store.folder / "external") in fault
    assert "\n" not in fault


def test_an_agent_that_came_later_with_the_label_leaves_the_curve_out(
    store: ExperimentStore, tmp_path: Path
) -> None:
    import_curves(store, write(tmp_path / "four-goals.csv"), "sac")
    store.prepare(make_experiment("sac", ("four-goals",), action_repeat=2), "test")
    (fault,) = load_external(store).faults
    assert "'sac' is an agent of the experiment" in fault


def test_the_command(
    store: ExperimentStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["import", str(write(tmp_path / "four-goals.csv")), "--into", "there"]
    arguments += ["--agent", "them", "--protocol", "equal", "--results", str(store.folder.parent)]
    app(arguments, standalone_mode=False)
    assert capsys.readouterr().out == "them (external) on four-goals: 2 seeds, to step 20\n"
    (curve,) = load_external(store).curves
    assert curve.declared.equal_protocol


# In statistics and reports.


def curve(
    task: str, steps: list[int], *, label: str = "them", equal: bool = False, seeds: int = 3
) -> ExternalCurve:
    rows = [
        {"step": step, "return": made_up_returns("qsm", task, seed, step), "seed": seed}
        for seed in range(seeds)
        for step in steps
    ]
    table = _rows(as_csv(rows).encode(), dict(zip(COLUMNS, COLUMNS, strict=True)), 1)
    declared = Declaration(
        label=label, task=task, source="x.csv", columns=TDMPC2, equal_protocol=equal, checksum=0
    )
    return ExternalCurve(declared, table)


TASKS = ("cartpole-swingup", "walker-walk")
OURS = [5_000, 10_000, 15_000, 20_000]


def with_external(*curves: ExternalCurve) -> Results:
    return replace(make_results(("qsm", "td3"), TASKS), external=External(curves))


def statistics(results: Results) -> dict[str, Any]:
    analysis = Analysis(results)
    return {
        "agents": analysis.comparison.agents,
        "left out": analysis.comparison.left_out,
        **{name: getattr(analysis, name).to_csv() for name in ("pairs", "aggregates")},
    }


def test_a_curve_of_another_protocol_is_in_no_statistic() -> None:
    external = [curve(task, [0, *OURS, 40_000]) for task in TASKS]
    assert statistics(with_external(*external)) == statistics(with_external())


def test_curves_declared_equal_are_compared_as_one_more_agent() -> None:
    results = with_external(*(curve(task, [0, *OURS, 40_000], equal=True) for task in TASKS))
    comparison = select_runs(results)
    assert comparison.agents == ("qsm", "td3", "them (external)")
    for task in TASKS:
        ours, theirs = comparison.runs["qsm", task], comparison.runs["them (external)", task]
        assert theirs.seeds == ours.seeds
        np.testing.assert_array_equal(theirs.steps, ours.steps)
        np.testing.assert_array_equal(theirs.returns, ours.returns)
    pairs = Analysis(results).pairs
    same = pairs[pairs["better"].isin(["qsm", "them (external)"])]
    same = same[same["worse"].isin(["qsm", "them (external)"])]
    assert same["probability"].tolist() == [0.5]


def test_two_imported_agents_are_promised_no_seeds() -> None:
    results = with_external(
        *(curve(task, OURS, label=who, equal=True) for task in TASKS for who in ("they", "them"))
    )
    (table, _) = settling(Analysis(results)).blocks
    assert isinstance(table, Table)
    both = table.cells[["agent", "other agent"]].isin(["they (external)", "them (external)"])
    (needed,) = table.cells.loc[both.all(axis=1), "seeds needed"]
    assert needed == "both were measured elsewhere"


@pytest.mark.parametrize(
    ("external", "fault"),
    [
        ([curve(TASKS[0], OURS, equal=True)], "it has no value at step 5,000 of walker-walk"),
        (
            [curve(TASKS[0], OURS, equal=True), curve(TASKS[1], OURS[1:], equal=True)],
            "it has no value at step 5,000 of walker-walk",
        ),
        (
            [curve(TASKS[0], OURS, equal=True), curve(TASKS[1], OURS)],
            "it has no value at step 5,000 of walker-walk",
        ),
    ],
)
def test_an_import_that_does_not_fit_changes_no_number_of_ours(
    external: list[ExternalCurve], fault: str
) -> None:
    now, before = statistics(with_external(*external)), statistics(with_external())
    assert now.pop("left out") == (*before.pop("left out"), f"them (external): {fault}.")
    assert now == before


def test_a_seed_that_is_not_finite_is_left_out_and_named() -> None:
    external = [curve(task, OURS, equal=True) for task in TASKS]
    external[0].rows.loc[external[0].rows["seed"] == 1, "return"] = np.nan
    comparison = select_runs(with_external(*external))
    assert comparison.runs["them (external)", TASKS[0]].seeds == (0, 2)
    assert "them (external) on cartpole-swingup, seed 1: a return is not finite." in (
        comparison.left_out
    )


@pytest.mark.parametrize("equal", [False, True])
def test_the_report_shows_and_names_what_was_imported(tmp_path: Path, equal: bool) -> None:
    results = with_external(*(curve(task, [*OURS, 40_000], equal=equal) for task in TASKS))
    text = write_report(results, tmp_path / "report").with_name("report.md").read_text()
    declared = "compared as one more agent" if equal else "it is in no statistic"
    assert "them (external): imported from x.csv (cartpole-swingup) and x.csv" in text
    assert declared in text
    drawn = pd.read_csv(tmp_path / "report" / "data" / "learning-curves.csv")
    theirs = drawn[drawn["agent"] == "them (external)"]
    assert sorted(theirs["step"].unique()) == OURS
    answer = text[text.index("## The answer") : text.index("## Learning")]
    assert ("them (external)" in answer) == equal


def test_a_report_says_what_of_an_import_cannot_be_read_or_drawn(tmp_path: Path) -> None:
    external = External((curve(TASKS[0], [40_000]),), ("a/b.json is damaged",))
    results = replace(make_results(("qsm", "td3"), TASKS), external=external)
    text = write_report(results, tmp_path / "report").with_name("report.md").read_text()
    assert "An external curve is left out: a/b.json is damaged." in text
    assert "No part of it can be drawn on cartpole-swingup." in text


def test_two_experiments_are_compared_without_what_was_imported(tmp_path: Path) -> None:
    external = [curve(task, OURS, equal=True) for task in TASKS]
    for name, first in (("with", with_external(*external)), ("without", with_external())):
        write_comparison(first, with_external(*external), tmp_path / name)
    pages = [(tmp_path / name / "report.md").read_text() for name in ("with", "without")]
    assert pages[0] == pages[1]


def test_what_was_exported_to_tdmpc2_comes_back_by_an_import(tmp_path: Path) -> None:
    """The published experiment's qsm, under another name, is neither better nor worse than qsm."""
    name, root = "cartpole-swingup", Path(__file__).parents[2] / "results"
    shutil.copytree(root / name, tmp_path / name)
    export(load_results(tmp_path, name), "tdmpc2", tmp_path / "out")
    store = ExperimentStore(tmp_path, name)
    import_curves(store, tmp_path / "out" / "qsm", "copy", equal_protocol=True)
    results = load_results(tmp_path, name)
    comparison = select_runs(results)
    ours, theirs = (comparison.runs[agent, name] for agent in ("qsm", "copy (external)"))
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    np.testing.assert_array_equal(ours.returns, theirs.returns)
    stored = json.loads((tmp_path / name / "external" / "copy" / f"{name}.json").read_text())
    assert stored["source"] == f"{name}.csv"
