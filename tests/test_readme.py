"""The README's promises: its Python runs, and its result is the published report's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\nSaved as `(?P<file>\w+\.py)`)?", re.DOTALL | re.MULTILINE
)
"""A block of Python: a part of one program, or the file that the sentence after it names."""


def python(folder: Path, *arguments: str) -> None:
    """Run Python in a folder with this project on its path; fail with what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with the files that the README says to save, and ``program.py``."""
    program = ""
    for block in BLOCK.finditer(README):
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["code"])
        else:
            program += block["code"]
    (tmp_path / "program.py").write_text(program)
    return tmp_path


def test_every_block_of_python_is_run() -> None:
    assert README.count("```python") == len(BLOCK.findall(README)) > 0


def test_the_program_runs(folder: Path) -> None:
    python(folder, "program.py")


def test_the_example_agent_runs_beside_the_others(folder: Path) -> None:
    command = "run --agents td3[hidden_sizes=[8]],my_agents:Noise --tasks bimodal-bandit --seeds 2"
    command += " --seeds-per-job 2"
    command += " --steps 60 --warmup-steps 20 --batch-size 8 --eval-every 30 --eval-episodes 2"
    python(folder, "-m", "qsm_bench", *command.split())
    evaluations = folder / "results" / "bimodal-bandit" / "noise" / "bimodal-bandit" / "0-1"
    assert len((evaluations / "evaluations.csv").read_text().splitlines()) == 1 + 2 * 2 * 2


@pytest.mark.parametrize("page", ["README.md", "docs/small-run.md"])
def test_each_result_shown_is_the_published_reports(page: str) -> None:
    """Each is of the report that was named last before it."""
    text = (ROOT / page).read_text()
    tables = list(re.finditer(r"^\| task \|.*\|\n(?:^\|.*\|\n)+", text, re.M))
    assert tables
    for table in tables:
        report = re.findall(r"[(`](reports/[\w-]+/report\.md)[)`]", text[: table.start()])[-1]
        assert table[0].count("\n") > 2
        assert table[0] in (ROOT / report).read_text()


def test_the_answer_of_the_record_is_its_reports() -> None:
    (answer,) = re.findall(r"The report's answer:\n\n> (.*)\n", README)
    assert f"- {answer}\n" in (ROOT / "reports/record/report.md").read_text()


def test_every_file_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
