"""The report: whole, in order, the same every time, and honest about what it could not say."""

import csv
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import count, cycle
from pathlib import Path
from shutil import which
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import sync_playwright

from envs import task_names
from qsm_bench import report
from qsm_bench.errors import UserError
from qsm_bench.protocol import Protocol
from qsm_bench.published import PUBLISHED, Published, Source, published_scores
from qsm_bench.report import write_report
from qsm_bench.report.compare import write_comparison
from qsm_bench.report.document import (
    Block,
    Bullets,
    Code,
    Document,
    Fold,
    Section,
    Table,
    Text,
    Warnings,
    write_document,
)
from qsm_bench.report.folder import replacing
from qsm_bench.report.wording import number
from qsm_bench.results import Damaged, Results
from qsm_bench.statistics import estimates
from qsm_bench.suites import find_suite
from qsm_bench.visible import visible
from tests.qsm_bench.synthetic import make_results, with_diagnostics

SECTIONS = [
    "The answer",
    "Learning curves",
    "Cost",
    "What would settle it",
    "Pairs",
    "Aggregate scores",
    "Performance profiles",
    "Every run",
    "Trainers' diagnostics",
    "What ran",
    "What failed, diverged or is missing",
    "What the statistics do not show",
]
HOSTILE = "<script>alert(1)</script>", "a|b [x](//h/y)", "`c` *d* _e_ $f$ &amp; <!-- -->"


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 40)
        yield


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a finished experiment that has everything."""
    results = with_diagnostics(make_results(agents=("qsm", "qsm[alpha=10]", "td3")))
    folder = tmp_path_factory.mktemp("reports") / "made-up"
    write_report(results, folder)
    return folder


def small_results(**changes: object) -> Results:
    """Make an experiment whose report is quickly drawn."""
    small: dict[str, Any] = {"agents": ("qsm", "td3"), "tasks": ("a", "b"), "evaluations": 2}
    return make_results(**small | {"episodes": 1} | changes)


class Page(HTMLParser):
    """A page as a browser finds it: elements, and text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every element with this tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        """Return the texts straight under elements with this tag."""
        return [text for name, text in self.texts if name == tag]


def page_of(folder: Path) -> Page:
    """Read the HTML page of a report."""
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def markdown_page(folder: Path) -> Page:
    """Render the Markdown report as a viewer does that lets HTML through."""
    source = (folder / "report.md").read_text(encoding="utf-8")
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(source))


def section_text(folder: Path, title: str) -> str:
    """Return the text of one section of the Markdown report, without escapes."""
    source = (folder / "report.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", source, re.M | re.S)
    return re.sub(r"\\(.)", r"\1", found)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a report by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is there


def test_every_section_is_there_and_in_order(full: Path) -> None:
    page = page_of(full)
    assert page.text_of("h2") == SECTIONS
    assert markdown_page(full).text_of("h2") == SECTIONS
    anchors = [section["id"] for section in page.of("section")]
    assert [a["href"] for a in page.of("a")][: len(SECTIONS)] == [f"#{a}" for a in anchors]


def test_ids_are_unique_within_the_page(full: Path) -> None:
    ids = [attributes["id"] for _, attributes in page_of(full).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_and_every_link_leads_to_a_file_of_the_report(full: Path) -> None:
    for page in (page_of(full), markdown_page(full)):
        for tag, attributes in page.elements:
            for key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                target = attributes.get(key, "#")
                assert target.startswith("#") or (full / target).is_file(), (tag, target)
    html = (full / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", html)
    assert not page_of(full).of("link")
    (policy,) = [m["content"] for m in page_of(full).of("meta") if "http-equiv" in m]
    assert policy.startswith(
        "default-src 'none'; img-src data:; style-src"
    )  # a figure's own pictures


def test_agents_may_show_their_critic_without_their_policy(tmp_path: Path) -> None:
    """All methods that show something are optional: diagnostics may be there without slices."""
    results = with_diagnostics(make_results())
    write_report(replace(results, slices=results.slices.iloc[:0]), tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "Diagnostics on" in text
    assert "action-slices" not in text


def test_the_slices_are_of_each_agents_own_first_seed(tmp_path: Path) -> None:
    results = with_diagnostics(make_results())
    slices = results.slices.copy()
    slices.loc[slices["agent"] == "qsm", "seed"] += 10
    write_report(replace(results, slices=slices), tmp_path / "report")
    drawn = pd.read_csv(tmp_path / "report/data/action-slices.csv")
    first = drawn.groupby("agent")["seed"].unique().map(list).to_dict()
    assert first == {"qsm": [10], "sac": [0], "td3": [0]}


def test_the_budget_of_a_task_is_that_of_its_longest_run() -> None:
    results = make_results()
    shorter = [{**c, "steps": 5_000} if c["agent"] == "td3" else c for c in results.cells]
    assert replace(results, cells=shorter).budgets == results.budgets
    assert set(results.budgets.values()) == {20_000}


def test_every_figure_has_both_formats_its_numbers_and_a_text(full: Path) -> None:
    figures = {path.stem for path in (full / "figures").iterdir()}
    assert {"ranking", "aggregates", "profiles", "improvement-matrix", "learning-curves"} <= figures
    assert {"learning-overall", "return-against-time", "action-slices"} <= figures
    for name in figures:
        assert (full / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (full / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(full / "data" / f"{name}.csv"))
    drawn = [svg for svg in page_of(full).of("svg") if svg.get("role") == "img"]
    assert len(drawn) == len(figures)
    assert all(len(svg["aria-label"]) > 40 for svg in drawn)
    assert [image["alt"] for image in markdown_page(full).of("img")] == [
        svg["aria-label"].translate(str.maketrans("[]", "()")) for svg in drawn
    ]


def test_a_figure_shows_the_agents_in_the_same_colors_as_every_other(full: Path) -> None:
    colors = [
        set(re.findall(r"stroke: (#[0-9a-f]{6})", (full / f"figures/{name}.svg").read_text()))
        for name in ("profiles", "learning-overall", "learning-curves", "aggregates")
    ]
    agents = set.intersection(*colors)
    assert {"#0072b2", "#d55e00", "#009e73"} <= agents


def test_the_table_of_runs_shows_what_its_file_holds(full: Path) -> None:
    runs = pd.read_csv(full / "data" / "runs.csv")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section_text(full, "Every run").splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    header, *rows = rows
    assert len(rows) == runs.groupby(["task", "agent"]).ngroups
    for row in rows:
        shown = dict(zip(header, row, strict=True))
        part = runs[(runs["task"] == shown["task"]) & (runs["agent"] == shown["agent"])]
        for seed, value in zip(part["seed"], part["return"], strict=True):
            assert float(shown[f"seed {seed}"].rstrip("| ")) == pytest.approx(value, rel=1e-3)
        mean = float(shown["mean return"].split(" [")[0].replace(",", ""))
        assert mean == pytest.approx(part["return"].mean(), rel=5e-3)


def test_the_answer_is_one_or_two_sentences_and_a_ranking(full: Path) -> None:
    answer = section_text(full, "The answer")
    assert 1 <= len(re.findall(r"^- ", answer, re.M)) <= 2
    ranking = pd.read_csv(full / "data" / "ranking.csv")
    assert (ranking["value"].diff().dropna() <= 0).all()
    at_end = pd.read_csv(full / "data" / "aggregates.csv").query(
        "statistic == 'IQM' and measured == 'at the end'"
    )
    assert set(ranking["agent"]) == set(at_end["agent"])
    of = at_end.set_index("agent")
    for row in ranking.to_dict("records"):
        assert [row[c] for c in ("value", "low", "high")] == list(
            of.loc[row["agent"], ["value", "low", "high"]]
        )
        assert f"| {row['agent']} | " in answer


def test_the_pairs_are_folded_and_the_table_has_every_one(full: Path) -> None:
    page, markdown = page_of(full), markdown_page(full)
    for rendering in (page, markdown):
        assert len(rendering.of("details")) == 1
        assert "open" not in rendering.of("details")[0]
    pairs = pd.read_csv(full / "data" / "pairs.csv")
    text = section_text(full, "Pairs")
    assert f"3 pairs of agents, {pairs['verdict'].sum()} verdict" in text
    for pair in pairs.to_dict("records"):
        assert f"| {pair['first']} | {pair['second']} | " in text


def test_the_report_shows_every_field_of_the_protocol(full: Path) -> None:
    shown = pd.read_csv(full / "data" / "protocol.csv")["what"]
    assert set(Protocol.model_fields) - {"settings"} <= set(shown)


def points_of(folder: Path, name: str) -> list[tuple[float, float, str]]:
    """Return what can be read off a figure of the page."""
    page = page_of(folder)
    shown = [json.loads(div["data-points"]) for div in page.of("div") if "data-points" in div]
    names = [
        Path(link["href"]).stem
        for link in page.of("a")
        if (folder / "figures" / (Path(link["href"]).stem + ".svg")).exists()
    ]
    charts = dict(zip(dict.fromkeys(names), shown, strict=True))
    return [tuple(point) for point in charts[name]]


@pytest.mark.parametrize("name", ["learning-overall", "learning-curves", "profiles"])
def test_what_is_read_off_a_figure_is_what_its_file_holds(full: Path, name: str) -> None:
    table = pd.read_csv(full / "data" / f"{name}.csv")
    points = points_of(full, name)
    assert len(points) == len(table)
    panels = table["task"] if "task" in table else pd.Series("", index=table.index)
    order = table.groupby(panels, sort=False).indices
    rows = [i for panel in dict.fromkeys(panels) for i in order[panel]]
    for (_, _, text), row in zip(points, table.iloc[rows].to_dict("records"), strict=True):
        assert text.startswith(row["agent"])
        value = float(text.partition(": ")[2].split(" [")[0])
        assert value == pytest.approx(row["value"], rel=5e-3, abs=5e-4)
    for panel in dict.fromkeys(panels):
        part = [points[rows.index(i)] for i in order[panel]]
        here = table.iloc[order[panel]]
        x, y = (
            here[table.columns[[c in ("step", "score") for c in table]]].iloc[:, 0],
            here["value"],
        )
        for shown, true, way in (([p[0] for p in part], x, 1), ([p[1] for p in part], y, -1)):
            scale, offset = np.polyfit(true, shown, 1)
            assert np.sign(scale) == way
            np.testing.assert_allclose(scale * true + offset, shown, atol=2e-4)


def test_points_lie_within_their_figure(full: Path) -> None:
    for path in (full / "figures").glob("*.svg"):
        for x, y, text in points_of(full, path.stem):
            assert 0 < x < 1, text
            assert 0 < y < 1, text


def test_the_matrix_holds_both_sides_of_every_pair(full: Path) -> None:
    matrix = pd.read_csv(full / "data" / "improvement-matrix.csv", index_col="agent")
    assert list(matrix.index) == list(matrix.columns)
    assert np.isnan(np.diag(matrix)).all()
    np.testing.assert_allclose((matrix + matrix.T).to_numpy()[~np.eye(3, dtype=bool)], 1)
    for _, pair in pd.read_csv(full / "data" / "pairs.csv").iterrows():
        assert matrix.loc[pair["first"], pair["second"]] == pytest.approx(pair["probability"])


# The same results, the same report


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(with_diagnostics(small_results(tasks=("a",))), tmp_path / name / "r")
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def old_report(folder: Path) -> dict[str, bytes]:
    """Write a folder as an earlier report left it, and return its files."""
    with replacing(folder) as fresh:
        (fresh / "data").mkdir()
        (fresh / "index.html").write_text("old")
        (fresh / "data" / "old.csv").write_text("old")
    return files_of(folder)


def test_an_old_report_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    old_report(folder)
    page = write_report(small_results(), folder)
    assert page == folder / "index.html"
    assert page.read_text() != "old"
    assert "old.csv" not in {Path(name).name for name in files_of(folder)}
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_an_old_report_stays_if_writing_fails_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    before = old_report(folder)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "write_document", fail)
    with pytest.raises(UserError, match="r cannot be written: No space left on device"):
        write_report(small_results(tasks=("a",)), folder)
    assert files_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("name", ["thesis.tex", "index.html", "data/scores.csv", ".hidden"])
def test_a_folder_that_no_report_made_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "r" / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    with pytest.raises(UserError, match="contains files that no report made"):
        old_report(tmp_path / "r")
    assert files_of(tmp_path) == {f"r/{name}": b"years of work"}


def test_somebodys_files_in_a_report_are_kept_as_they_are(tmp_path: Path) -> None:
    folder, outside = tmp_path / "r", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    old_report(folder)
    (folder / "notes" / "empty").mkdir(parents=True)
    (folder / "notes" / "a.txt").write_text("years of work")
    (folder / "data" / "mine.csv").write_text("more of it")
    (folder / "link").symlink_to(outside)
    with replacing(folder) as fresh:
        (fresh / "index.html").write_text("new")
    assert (folder / "index.html").read_text() == "new"
    assert not (folder / "data" / "old.csv").exists()
    assert (folder / "notes" / "a.txt").read_text() == "years of work"
    assert (folder / "data" / "mine.csv").read_text() == "more of it"
    assert (folder / "notes" / "empty").is_dir()
    assert (folder / "link").readlink() == outside
    assert files_of(outside) == {"file": b"not ours"}


@pytest.mark.parametrize("name", ["report.md", "report.md/deeper", "data"])
def test_a_file_of_somebodys_in_the_way_of_a_report_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "r"
    with replacing(folder) as fresh:
        (fresh / "index.html").write_text("old")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    before = files_of(folder)

    def again() -> None:
        with replacing(folder) as fresh:
            (fresh / "data").mkdir()
            (fresh / "data" / "x.csv").write_text("new")
            (fresh / "report.md").write_text("new")

    with pytest.raises(UserError, match="move it"):
        again()
    assert files_of(folder) == before


@pytest.mark.parametrize("marker", ["", "something else\nindex.html\n", "\0" * 9])
def test_a_marker_that_is_none_makes_no_report(tmp_path: Path, marker: str) -> None:
    (tmp_path / ".qsm_bench-report").write_text(marker)
    (tmp_path / "index.html").write_text("years of work")
    with pytest.raises(UserError, match="is not the file of a report"):
        old_report(tmp_path)
    assert (tmp_path / "index.html").read_text() == "years of work"


def test_a_link_in_the_place_of_a_report_is_refused(tmp_path: Path) -> None:
    old_report(tmp_path / "elsewhere")
    (tmp_path / "r").symlink_to(tmp_path / "elsewhere")
    before = files_of(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        old_report(tmp_path / "r")
    assert files_of(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-1-1", "'-1-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        (" =1", "' =1"),
        ("-1.5", "-1.5"),
        ("-1,500", "-1,500"),
        ("+2e-3", "+2e-3"),
        ("-inf", "-inf"),
        ("qsm[alpha=10]", "qsm[alpha=10]"),
        ("\x1b[31mred", "\\x1b[31mred"),
    ],
)
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path: Path, text: str, cell: str) -> None:
    table = pd.DataFrame({"name": [text], text: [-1.5]})
    cells = table.astype(str)
    write_document(Document("t", "l", [Section("s", [Table("x", "", cells, table)])]), tmp_path)
    with (tmp_path / "data" / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", cell], [cell, "-1.5"]]


@given(st.text() | st.text("\x1b[31m\x9b\u202e\x07\r\u2028\ud800 a]"))
def test_nothing_in_a_text_is_obeyed(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    visible(text).encode()


# Results that are not whole


def without(results: Results, agent: str, task: str) -> Results:
    """Return the same results without the evaluations and training rows of a cell."""
    tables: dict[str, Any] = {
        name: table[(table["agent"] != agent) | (table["task"] != task)]
        for name, table in (("evaluations", results.evaluations), ("training", results.training))
    }
    return replace(results, **tables)


def with_cell(results: Results, agent: str, task: str, **changes: object) -> Results:
    """Return the same results with another manifest of one cell."""
    cells = [
        cell | changes if (cell["agent"], cell["task"]) == (agent, task) else cell
        for cell in results.cells
    ]
    return replace(results, cells=cells)


def with_returns(results: Results, value: float, **where: object) -> Results:
    """Return the same results with ``value`` as the returns of the rows with these values."""
    evaluations = results.evaluations.copy()
    chosen = pd.Series(True, index=evaluations.index)
    for column, wanted in where.items():
        chosen &= evaluations[column] == wanted
    evaluations.loc[chosen, "return"] = value
    return replace(results, evaluations=evaluations)


def one_seed() -> Results:
    return small_results(seeds=1)


def one_task() -> Results:
    return small_results(tasks=("a",))


def one_agent() -> Results:
    return small_results(agents=("qsm",))


def unequal_seeds() -> Results:
    results = with_cell(small_results(), "td3", "a", seeds=[0])
    rows = results.evaluations
    keep = (rows["agent"] != "td3") | (rows["task"] != "a") | (rows["seed"] == 0)
    return replace(results, evaluations=rows[keep])


def failed_cell() -> Results:
    return with_cell(small_results(), "td3", "a", status="failed", reason="out of memory")


def missing_cell() -> Results:
    results = without(small_results(), "td3", "a")
    cells = [c for c in results.cells if (c["agent"], c["task"]) != ("td3", "a")]
    return replace(results, cells=cells)


def pending_cell() -> Results:
    results = without(small_results(), "td3", "a")
    times = {"train_seconds": 0.0, "evaluation_seconds": 0.0}
    counts = {"step": 0, "updates": 0, "stretches": []}
    return with_cell(results, "td3", "a", status="pending", **times, **counts)


def running_cell() -> Results:
    results = with_cell(small_results(), "td3", "a", status="running", step=5_000)
    rows = results.evaluations
    late = (rows["agent"] == "td3") & (rows["task"] == "a") & (rows["step"] > 5_000)
    return replace(results, evaluations=rows[~late])


def no_score_range() -> Results:
    results = small_results()
    return replace(results, cells=[cell | {"score_range": None} for cell in results.cells])


def equal_scores() -> Results:
    return small_results(returns=lambda *_: 7.0)


def diverged_seed() -> Results:
    return with_returns(small_results(), np.nan, agent="td3", task="a", seed=1)


def all_diverged() -> Results:
    return with_returns(small_results(), np.nan, agent="td3")


def no_training_rows() -> Results:
    results = small_results()
    return replace(results, training=results.training[:0])


@pytest.mark.parametrize(
    ("make", "section", "said"),
    [
        (one_seed, "The answer", "Only 1 seed"),
        (one_seed, "The answer", "So few runs (1 seed on 2 tasks) could not have told the two"),
        (equal_scores, "Pairs", "0.111 or 0.889"),
        (equal_scores, "Pairs", "cannot tell"),
        (equal_scores, "The answer", "told apart at 10,000 steps: their runs show no difference"),
        (one_task, "The answer", "Only 1 task"),
        (one_agent, "The answer", "Only qsm has runs"),
        (unequal_seeds, "What failed, diverged or is missing", "td3 on b, seed 1, 2: not used in"),
        (failed_cell, "What failed, diverged or is missing", "td3 on a: failed at step"),
        (failed_cell, "The answer", "1 job failed"),
        (missing_cell, "What failed, diverged or is missing", "td3 on a: it was not run"),
        (pending_cell, "What failed, diverged or is missing", "td3 on a: pending at step 0"),
        (pending_cell, "The answer", "This report is partial: 1 of 4 cells have not finished"),
        (running_cell, "The answer", "This report is partial: 1 of 4 cells have not finished"),
        (running_cell, "What failed, diverged or is missing", "a, after step 5,000 of 10,000"),
        (no_score_range, "Aggregate scores", "No task has scores of all agents to aggregate"),
        (no_score_range, "What failed, diverged or is missing", "its score range is not known"),
        (equal_scores, "Pairs", "0.500 [0.500, 0.500]"),
        (no_score_range, "The answer", "mean probability of improvement"),
        (one_agent, "What would settle it", "There are no pairs of agents"),
        (diverged_seed, "What failed, diverged or is missing", "a return is not finite"),
        (all_diverged, "What failed, diverged or is missing", "td3: it has no run to compare"),
        (no_training_rows, "Cost", "updates/s"),
    ],
)
def test_a_report_says_what_is_not_as_it_should_be(
    make: Callable[[], Results],
    section: str,
    said: str,
    reports: Callable[[Callable[[], Results]], Path],
) -> None:
    folder = reports(make)
    assert said in section_text(folder, section)
    assert page_of(folder).text_of("h2") == SECTIONS


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Results]], Path]:
    """Return a function that writes the report of some results, once for each."""
    root = tmp_path_factory.mktemp("edge")

    def written(make: Callable[[], Results]) -> Path:
        folder = root / make.__name__
        if not folder.exists():
            write_report(make(), folder)
        return folder

    return written


def test_nothing_is_reported_before_the_first_evaluation(tmp_path: Path) -> None:
    results = small_results()
    with pytest.raises(UserError, match="no evaluations yet"):
        write_report(replace(results, evaluations=results.evaluations[:0]), tmp_path / "r")
    assert not list(tmp_path.iterdir())


# Text is text


def test_names_from_results_are_shown_and_never_run(tmp_path: Path) -> None:
    agent, task, reason = HOSTILE
    results = small_results(agents=(agent, "td3"), tasks=(task, "a-b", "a_b"))
    results = with_diagnostics(with_cell(results, "td3", task, status="failed", reason=reason))
    write_report(results, tmp_path / "r")
    html, markdown = page_of(tmp_path / "r"), markdown_page(tmp_path / "r")
    assert len(html.of("script")) == (tmp_path / "r/index.html").read_text().count("<script")
    assert not any("alert" in text for text in html.text_of("script"))
    assert not markdown.of("script")
    for page in (html, markdown):
        assert all("//h/y" not in a.get("href", "") + a.get("src", "") for _, a in page.elements)
        shown = " ".join(text for _, text in page.texts)
        assert all(" ".join(name.split()) in shown for name in HOSTILE)
    allowed = "h1 h2 p ul li table thead tbody tr th td img a blockquote strong pre code"
    allowed += " details summary"
    assert {tag for tag, _ in markdown.elements} <= set(allowed.split())


ATTACKS = (
    "<script>alert(1)</script>",
    "</script><script src=//h/x.js>",
    "<img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)' x='",
    '" onfocus="alert(1)" autofocus tabindex="1',
    "'><a href='javascript:alert(1)'>x</a>",
    '"/><iframe srcdoc="<b>">',
    "</title></style></svg></code></pre><b>",
    "--><!-- ]]> <![CDATA[ <?xml?>",
    "&#60;script&#62; &lt;b&gt;",
    "[x](javascript:alert(1))",
    "![x](//h/x.png)",
    "[x]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "javascript:alert(1)",
    "data:text/html,<b>x",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b]8;;javascript:alert(1)\x07x\x1b[2J",
    "\u202e\r\n\n# heading\n\n<b>\x00\x85\u2028<i>",
    "```\n<b>\n~~~",
)


def told_by(words: Iterator[str]) -> tuple[Results, Published]:
    """Make results, and published scores, with ``words`` wherever data are shown."""
    agent, task = next(words)[:150], next(words)[:150]
    results = make_results((agent, "td3"), (task, "b"), metrics=(next(words), "q"), name="named")
    for cell in results.cells:
        cell["settings"] |= {next(words): next(words)}
        cell["warnings"] = (next(words),)
        cell["gymnasium_id"], cell["device"] = next(words), next(words)
        (stretch,) = cell["stretches"]
        stretch |= {"command": next(words), "commit": next(words)}
        stretch["versions"] = {"python": next(words), next(words): "1"}
        stretch["hardware"] |= {"cpu": next(words), "gpu": next(words)}
    last = results.cells[-1]
    last |= {"status": "failed", "reason": next(words), "log_tail": (next(words), next(words))}
    last["failed_seeds"] = {"0": {"step": 5, "reason": next(words)}}
    results.experiment["command"] = next(words)
    damaged = (Damaged(next(words), next(words), (0,), next(words)),)
    results = replace(results, notes=(next(words),), damaged=damaged)
    source, row = next(words), published_scores().scores.iloc[:1]
    row = row.assign(source=source, agent=next(words), task=task, action_repeat=1, steps=5_000)
    about = Source(*(next(words) for _ in fields(Source)))
    return with_diagnostics(results), Published({source: about}, row)


def skeleton(page: Page) -> tuple[set[tuple[str, str]], list[str]]:
    """Return a page without its texts: elements, the names of their attributes, scripts."""
    inside = {(tag, name) for tag, attributes in page.elements for name in ("", *attributes)}
    return inside, page.text_of("script")


OWN_TARGET = re.compile(r"#[a-z0-9-]+|(data|figures)/[A-Za-z0-9-]+\.(csv|png|svg)")
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]")


def written_by(words: Iterator[str], folder: Path) -> list[Page]:
    """The report and the comparison of results that hold these words, each in both renderings."""
    results, published = told_by(words)
    report, comparison = folder / "report", folder / "comparison"
    write_report(results, report, published)
    write_comparison(results, replace(results, name=next(words)[:150]), comparison)
    for page in (report, comparison):
        for name in ("index.html", "report.md"):
            assert not OBEYED.search((page / name).read_text(encoding="utf-8"))
    return [read(f) for f in (report, comparison) for read in (page_of, markdown_page)]


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> list[Page]:
    return written_by((f"word {k}" for k in count()), tmp_path_factory.mktemp("harmless"))


@pytest.mark.parametrize("first", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (7, 14))])
def test_no_element_attribute_or_link_comes_from_the_data(
    tmp_path: Path, harmless: list[Page], first: int
) -> None:
    attacked = written_by(cycle(ATTACKS[first:] + ATTACKS[:first]), tmp_path)
    for ours, other in zip(attacked, harmless, strict=True):
        assert skeleton(ours) == skeleton(other)
        for _, attributes in ours.elements:
            for target in (attributes[name] for name in ("href", "src") if name in attributes):
                assert OWN_TARGET.fullmatch(target)


plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")))
awkward = st.lists(
    st.sampled_from([*HOSTILE, "#", "-", "1.", "|", "\\", "](", "![", "<b>", "&lt;", "**", "_"])
).map(" ".join)
words = (plain | awkward).map(lambda text: " ".join(text.split())).filter(bool)


@settings(max_examples=60)
@given(words, words, words)
def test_both_renderings_show_every_character_of_a_text(
    tmp_path_factory: pytest.TempPathFactory, first: str, second: str, third: str
) -> None:
    folder = tmp_path_factory.mktemp("document")
    cells = pd.DataFrame([[first, second]], columns=["left", "right"])
    blocks: list[Block] = [
        Text(first),
        Bullets([second]),
        Fold(third, [Warnings([third]), Code(third), Table("t", second, cells, cells)]),
    ]
    write_document(Document("title", "lead", [Section("S", blocks)]), folder)
    first, second, third = map(visible, (first, second, third))
    for page in (page_of(folder), markdown_page(folder)):
        assert (page.text_of("p") + page.text_of("figcaption")).count(first) >= 1
        assert second in " ".join(page.text_of("li"))
        assert third in " ".join(text for _, text in page.texts)
        assert third.strip() in page.text_of("code")
        assert third in " ".join(page.text_of("summary"))
        assert first in page.text_of("th") + page.text_of("td")
        assert second in page.text_of("td")


# Published scores


def test_published_scores_stand_beside_ours_where_task_and_budget_fit(tmp_path: Path) -> None:
    results = make_results(("qsm",), ("cheetah-run", "a"), evaluations=50, episodes=1)
    write_report(results, tmp_path / "r")
    shown = pd.read_csv(tmp_path / "r" / "data" / "published.csv")
    everything = published_scores().scores
    fits = (everything["task"] == "cheetah-run") & (everything["steps"] <= 250_000)
    assert len(shown) == fits.sum() > 3
    texts = [text for _, _, text in points_of(tmp_path / "r", "learning-curves")]
    marks = [text for text in texts if not text.startswith("qsm")]
    assert len(marks) == (everything[fits]["action_repeat"] == 1).sum()
    assert any(
        text.startswith("SAC, Nikishin et al. 2022: mean, step 100,000: 314") for text in marks
    )
    said = section_text(tmp_path / "r", "Learning curves")
    assert "no statistic of this report uses them" in said
    for source in set(shown["source"]):
        assert published_scores().sources[source].differs in said
    evaluations = results.evaluations[lambda table: table["task"] == "cheetah-run"]
    at = evaluations[evaluations["step"] == 100_000].groupby("seed")["return"].mean()
    ours = f"{number(at.mean())} ({number(at.min())} to {number(at.max())})"
    page = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert f"| SAC, Nikishin et al. 2022 | 314 (163 to 439) | {ours} | mean of 10 seeds |" in page


def test_every_published_score_is_a_mean_or_an_iqm_and_its_bar_holds_it() -> None:
    points = published_scores().points()
    is_mean = points["statistic"] == "mean"
    np.testing.assert_array_equal(points["value"], points["mean"].where(is_mean, points["iqm"]))
    np.testing.assert_array_equal(points["low"], points["min"].where(is_mean, points["ci_low"]))
    np.testing.assert_array_equal(points["high"], points["max"].where(is_mean, points["ci_high"]))
    assert points["value"].notna().all()
    assert set(points["source"][~is_mean]) == {"skypitcher/soft_gac_home"}
    # What was read from a figure has an error of about 2 points.
    slack = np.where(is_mean, 0.05, 2.0)
    assert (points["low"] <= points["value"] + slack).all()
    assert (points["value"] <= points["high"] + slack).all()


def test_the_suite_of_dogs_and_humanoids_shows_the_iqms_of_seven_agents(tmp_path: Path) -> None:
    suite = find_suite("dmc_dog_humanoid")
    scores = published_scores().scores
    iqms = scores[scores["iqm"].notna()]
    assert set(iqms["task"]) == set(suite.tasks)
    # Its steps are the source's: all points but those of the one task with a longer budget.
    assert set(iqms["task"][iqms["steps"] > suite.protocol.steps]) == {"humanoid-run"}
    assert iqms[iqms["steps"] == suite.protocol.steps].groupby("task").size().eq(7).all()
    results = make_results(("qsm", "sac"), ("dog-run",), evaluations=20, episodes=1)
    write_report(results, tmp_path / "r")
    texts = [text for _, _, text in points_of(tmp_path / "r", "learning-curves")]
    (own,) = (text for text in texts if text.startswith("QSM, SoftGAC's comparison"))
    assert own.endswith(": IQM, step 100,000: 33.4, interval from 23.2 to 53.2")
    assert "2 updates a step" in own
    page = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if "| 33.4 [23.2, 53.2] |" in line)
    assert "| QSM, SoftGAC's comparison" in row
    assert "| IQM of 8 seeds |" in row


def test_published_scores_change_no_statistic(tmp_path: Path) -> None:
    results = make_results(("qsm", "sac"), ("cheetah-run",), evaluations=20, episodes=1)
    nothing = published_scores(tmp_path)
    for name, published in (("with", None), ("without", nothing)):
        write_report(results, tmp_path / name, published)
    with_them, without_them = (files_of(tmp_path / name) for name in ("with", "without"))
    data = [name for name in without_them if name.startswith("data/")]
    assert {name: with_them[name] for name in data} == {name: without_them[name] for name in data}
    assert set(with_them) - set(without_them) == {"data/published.csv"}


SOURCES_OF = {
    "nothing": lambda text: "",
    "nested 100,000 deep": lambda text: "[" * 100_000,
    "a list": lambda text: "[]",
    "a source that is a number": lambda text: '{"a": 3}',
    "a label that is a number": lambda text: re.sub(r'"label": "[^"]*"', '"label": 3', text),
    "no url": lambda text: text.replace('"url"', '"uri"'),
    "another source": lambda text: text.replace('"evgenii-nikishin/', '"somebody/'),
    "half a character": lambda text: text.replace("SAC", "\\ud800"),
}
SCORES_OF = {
    "nothing": lambda text: "",
    "zeros": lambda text: "\0" * 99,
    "a missing column": lambda text: text.replace(",max", ""),
    "a foreign column": lambda text: text.replace("median", "mode"),
    "200,000 columns": lambda text: "source," * 200_000 + text,
    "words for numbers": lambda text: text.replace(",8,", ",many,"),
    "part of a step": lambda text: text.replace(",100000,", ",1000.5,"),
    "a negative step": lambda text: text.replace(",100000,", ",-100000,"),
    "a step beyond all": lambda text: text.replace(",100000,", f",{10**30},"),
    "an endless score": lambda text: text.replace(",12.2", ",inf"),
    "a score beyond all": lambda text: text.replace(",12.2", ",1e300"),
    "a blank task": lambda text: text.replace(",acrobot-swingup,", ",,"),
    "a mean without its spread": lambda text: text.replace(",4.4,5.1,", ",4.4,,"),
    "an IQM without its interval": lambda text: text.replace(",37.3,30.6,", ",37.3,,"),
    "a mean and an IQM": lambda text: text.replace(",0.0,12.2,,,", ",0.0,12.2,3.0,2.0,4.0"),
    "neither": lambda text: text.replace(",37.3,30.6,43.4", ",,,"),
    "a huge file": lambda text: text + " " * 2**21,
}


def damaged_scores(folder: Path, name: str, damage: Callable[[str], str]) -> Path:
    shutil.copytree(PUBLISHED, folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert damage(text) != text
    (folder / name).write_text(damage(text), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("sources.json", damage) for damage in SOURCES_OF),
        *(("scores.csv", damage) for damage in SCORES_OF),
    ],
)
def test_damaged_published_scores_are_none_and_one_line(
    tmp_path: Path, name: str, damage: str
) -> None:
    change = (SOURCES_OF if name == "sources.json" else SCORES_OF)[damage]
    published = published_scores(damaged_scores(tmp_path / "p", name, change))
    assert published.scores.empty
    assert not published.sources
    assert published.fault.startswith(str(tmp_path / "p"))
    assert name in published.fault
    assert "\n" not in published.fault


@pytest.mark.parametrize("name", ["sources.json", "scores.csv"])
@pytest.mark.parametrize("kind", ["link", "pipe", "nothing"])
def test_published_scores_are_plain_files(tmp_path: Path, name: str, kind: str) -> None:
    shutil.copytree(PUBLISHED, tmp_path / "p")
    place = tmp_path / "p" / name
    file = place.replace(tmp_path / name)
    if kind == "link":
        place.symlink_to(file)
    if kind == "pipe":
        os.mkfifo(place)
    published = published_scores(tmp_path / "p")
    assert published.scores.empty
    # A package that is installed has no scores at all.
    assert (name in published.fault) == ((name, kind) != ("scores.csv", "nothing"))


def test_a_report_goes_without_published_scores_that_are_damaged_and_says_so(
    tmp_path: Path,
) -> None:
    results = make_results(("qsm",), ("cheetah-run",), evaluations=20, episodes=1)
    folder = damaged_scores(tmp_path / "p", "scores.csv", lambda text: text + "a,b\n")
    with patch.object(report, "published_scores", lambda: published_scores(folder)):
        write_report(results, tmp_path / "r")
    said = section_text(tmp_path / "r", "Learning curves")
    assert f"Published scores are not shown: {folder / 'scores.csv'} is damaged" in said
    assert not (tmp_path / "r" / "data" / "published.csv").exists()


def test_published_scores_are_of_our_tasks_and_their_sources_are_named() -> None:
    published = published_scores()
    assert len(published.scores) > 200
    assert set(published.scores["task"]) <= set(task_names())
    assert set(published.scores["source"]) == set(published.sources)
    assert not published.scores.duplicated(["source", "agent", "task", "steps"]).any()
    means = published.scores.dropna(subset="mean")
    for low, high in (("min", "median"), ("median", "max")):
        assert (means[low] <= means[high] + 0.05).all()


# In a browser

PROBE = """
async () => {
  const folds = [...document.querySelectorAll("details")];
  const folded = folds.map((fold) => fold.querySelector("table").checkVisibility());
  folds.forEach((fold) => fold.querySelector("summary").click());
  const rows = (table) =>
    [...table.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.innerText));
  const sorted = [...document.querySelectorAll("table.sortable")].map((table) =>
    [...table.tHead.rows[0].cells].map((heading, column) =>
      ["ascending", "descending"].map((order) => {
        heading.querySelector("button").click();
        console.assert(heading.getAttribute("aria-sort") === order);
        return rows(table).map((r) => r[column]);
      })));
  const read = [...document.querySelectorAll(".chart")].map((chart) => {
    chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    return [chart.querySelector(".tip").textContent, JSON.parse(chart.dataset.points)[0][2]];
  });
  const dialog = document.querySelector("dialog");
  const enlarged = [];
  for (const button of document.querySelectorAll("figcaption button")) {
    const figure = button.closest("figure");
    button.click();
    const opened = dialog.open && dialog.querySelector(".chart svg") !== null;
    const closed = new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    dialog.querySelector("button").click();
    await closed;
    enlarged.push([opened, !dialog.open && figure.querySelector(".chart") !== null]);
  }
  return {
    sections: [...document.querySelectorAll("h2")].map((h) => h.innerText),
    folded, unfolded: folds.map((fold) => fold.querySelector("table").checkVisibility()),
    sorted, read, enlarged,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    unnamed: [...document.querySelectorAll("button")].filter((b) => !b.innerText.trim()).length,
  };
}
"""


NUMBER = re.compile(r"(-?[\d,]+(?:\.\d+)?(?:e[-+]\d+)?)(?: \[.*\])?")


def number_in(cell: str) -> float:
    """Return the number that a cell begins with."""
    found = NUMBER.match(cell)
    assert found
    return float(found[1].replace(",", ""))


def browse(
    page_file: Path,
    width: int,
    probe: str = "() => null",
    media: Literal["screen", "print"] = "screen",
) -> tuple[Any, list[str]]:
    """Return what a script finds in a page, and what the browser complains about or asks for."""
    messages: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(error.message))
        page.on("request", lambda request: messages.append(request.url))
        page.emulate_media(media=media)
        page.goto(page_file.as_uri())
        found = page.evaluate(probe)
        browser.close()
    messages.remove(page_file.as_uri())
    return found, messages


needs_chromium = pytest.mark.skipif(which("chromium") is None, reason="needs chromium")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1300, 500])
def test_the_page_works_in_a_browser(full: Path, width: int) -> None:
    seen, messages = browse(full / "index.html", width, PROBE)
    assert messages == []
    assert seen["sections"] == SECTIONS
    assert (seen["folded"], seen["unfolded"]) == ([False], [True])
    columns = [column for table in seen["sorted"] for column in table]
    for ascending, descending in columns:
        assert sorted(ascending) == sorted(descending)
    numeric = [orders for orders in columns if all(map(NUMBER.fullmatch, orders[0]))]
    assert len(numeric) > 10
    for ascending, descending in numeric:
        assert [*map(number_in, ascending)] == sorted(map(number_in, ascending))
        assert [*map(number_in, descending)] == [*map(number_in, ascending)][::-1]
    assert all(shown == first for shown, first in seen["read"])
    assert len(seen["enlarged"]) == len(seen["read"]) > 7
    assert all(opened and restored for opened, restored in seen["enlarged"])
    assert seen["overflow"] <= 0
    assert seen["unnamed"] == 0


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_first_screen_has_the_answer_and_the_ranking(tmp_path: Path, seeds: int) -> None:
    agents = [f"{name}[x=1]" for name in ("qsm", "diffusion_ql", "diffusion_pg", "sac", "td3")]
    results = make_results(agents, tuple("abcdef"), seeds, evaluations=2, episodes=1)
    page = write_report(with_cell(results, agents[0], "a", status="running"), tmp_path / "r")
    ends, _ = browse(
        page,
        1440,
        """() => [...document.querySelectorAll("#the-answer li, #the-answer svg")].map(
            (part) => [part.tagName, part.getBoundingClientRect().bottom])""",
    )
    kinds = [kind.lower() for kind, _ in ends]
    first = ends[: kinds.index("svg") + 1]
    assert 2 <= len(first) <= 3
    assert all(bottom < 900 for _, bottom in first)
    assert len(kinds) > len(first)  # the warnings come after the ranking


@pytest.mark.slow
@needs_chromium
def test_nothing_is_cut_off_on_paper(full: Path) -> None:
    """A4 has 718 pixels between Chromium's margins."""
    parts, messages = browse(
        full / "index.html",
        718,
        """() => [...document.querySelectorAll("table, svg, pre, p")].map(
            (part) => [part.getBoundingClientRect().right, part.checkVisibility()])""",
        media="print",
    )
    assert messages == []
    assert len(parts) > 20
    assert max(end for end, _ in parts) <= 718
    assert all(visible for _, visible in parts)  # also what is folded away on the screen


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(
    "fault",
    [
        "<script>missing()</script>",
        '<img src="http://127.0.0.1:9/x.png">',
        "<script>console.assert(false)</script>",
    ],
)
def test_a_console_error_or_something_from_the_network_would_be_seen(
    fault: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>t</title>{fault}")
    assert browse(page, 500)[1]


@pytest.mark.slow
def test_a_large_report_takes_less_than_a_minute_of_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "REPLICATIONS", 2_000)
    agents = ("qsm", "diffusion_ql", "diffusion_pg", "sac", "td3")
    results = make_results(agents, tuple("abcdef"), seeds=10, evaluations=100, episodes=1)
    began = time.process_time()
    write_report(results, tmp_path / "r")
    assert time.process_time() - began < 60


def test_what_a_manifest_says_of_divergence_and_failure_is_shown(tmp_path: Path) -> None:
    results = make_results()
    results.cells[0]["diverged"] = {1: 4_321}
    results.cells[1] |= {"status": "failed", "reason": "it broke", "log_tail": ["one", "two"]}
    results.cells[2]["settings"] = {}
    folder = write_report(results, tmp_path / "report").parent
    missing = section_text(folder, "What failed, diverged or is missing")
    assert "qsm on cartpole-swingup, seed 1: diverged at step 4,321." in missing
    assert "    one\n    two" in missing
    assert "1 run diverged and is not in" in section_text(folder, "The answer")
    agents = {cell["agent"] for cell in results.cells if not cell["settings"]}
    assert agents == {"td3"}
