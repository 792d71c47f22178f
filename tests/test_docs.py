"""The documentation agrees with the code: defaults, and names of files and tests."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qsm_bench import AgentConfig, Protocol, load_results, write_report
from tests.benchmarks import precision_returns

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def table_under(heading: str) -> dict[str, str]:
    """Return the first two columns of the table under a heading of the page: name -> default."""
    section = (
        (DOCS / "protocol.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    )
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M))


def shown(value: Any) -> str:
    """Return a default as the page writes it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else str(value)


@pytest.mark.parametrize(
    ("heading", "defaults"),
    [
        ("Fields", Protocol().model_dump(exclude={"settings"})),
        ("Shared settings", asdict(AgentConfig())),
    ],
)
def test_the_page_of_the_protocol_lists_every_field_with_its_default(
    heading: str, defaults: dict[str, Any]
) -> None:
    assert table_under(heading) == {name: shown(value) for name, value in defaults.items()}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_file_and_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`([\w/]+\.(?:py|ipynb|toml|yaml))\b", text):
        folders = (ROOT, ROOT / "qsm_bench")
        assert any((folder / name).exists() for folder in folders), name
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in code or list((ROOT / "tests").rglob(f"{name}.py")), name


def test_the_page_of_the_statistics_quotes_the_report() -> None:
    cases = (DOCS / "statistics.md").read_text().partition("## Edge cases")[2]
    quoted = re.findall(r'"([^"]+)"', cases)
    assert quoted
    sources = "".join(f.read_text() for f in (ROOT / "qsm_bench" / "report").glob("*.py"))
    assert all(sentence in sources for sentence in quoted)


def test_the_page_of_the_record_quotes_its_reports(tmp_path: Path) -> None:
    rows = re.findall(r"^\|.*\|$", (DOCS / "record.md").read_text(), re.M)
    write_report(load_results(ROOT / "results", "simba-conditions"), tmp_path / "report")
    reports = (ROOT / "reports" / "record", tmp_path / "report")
    assert len(rows) > 2
    of_record, of_simba = ((folder / "report.md").read_text().splitlines() for folder in reports)
    assert [row for row in rows if row not in of_record + of_simba] == []
    assert [row for row in rows if "SimBa" in row and row in of_simba]
    assert [row for row in rows if "SimBa" not in row and row in of_record]


def test_the_page_of_precision_quotes_the_published_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = load_results(ROOT / "results" / "precision", "precision-diffusion_ql")
    row_of = precision_returns.row_of_returns("diffusion_ql", results)
    precision_returns.print_table(pd.DataFrame([row_of]))
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| diffusion_ql |")
    assert row in (DOCS / "precision.md").read_text().splitlines()


def test_the_page_of_precision_quotes_the_page_of_speed() -> None:
    rows = re.findall(
        r"^\| (\w+), S = 1, compiled, bfloat16 \| (\d+) seed-updates/s \| (\S+) "
        r"\| times float32's (\d+)/s \|",
        (ROOT / "reports" / "performance.md").read_text(),
        re.M,
    )
    page = (DOCS / "precision.md").read_text()
    assert rows
    for trainer, rounded, ratio, plain in rows:
        assert f"| {trainer} | {plain}/s | {rounded}/s | {ratio} |" in page
