"""The examples do what their page in the documentation says."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from examples.brake import LENGTH, STANDING_STILL

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ENOUGH = (STANDING_STILL + LENGTH) / 2
"""A return that has been learned: half-way from standing still to the unattainable."""
PAGE = (ROOT / "docs" / "examples.md").read_text()


def run(folder: Path, command: list[str]) -> str:
    """Run a command outside this repository and return what it printed; it must succeed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy examples/, and run the commands of docs/examples.md in the copy."""
    outside = tmp_path_factory.mktemp("outside")
    without = shutil.ignore_patterns("results", "reports", "__pycache__")
    shutil.copytree(EXAMPLES, outside / "examples", ignore=without)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    run(outside, ["bash", "-e", "-c", commands])
    return outside / "examples"


def test_the_agent_learns_the_task(folder: Path) -> None:
    cell = folder / "results" / "examples" / "best_of_n" / "brake:Brake-v0"
    jobs = [pd.read_csv(file) for file in cell.glob("*/evaluations.csv")]
    returns = pd.concat(jobs).groupby("step")["return"].mean()
    assert returns.iloc[-1] > ENOUGH


def test_the_notebook_reads_the_results_and_acts_with_a_policy(folder: Path) -> None:
    cells = json.loads((folder / "results.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    program = "\n".join("".join(cell["source"]) for cell in code)
    printed = run(folder, [sys.executable, "-c", program])
    (earned,) = re.findall(r"return (\S+)", printed)
    assert float(earned) > ENOUGH
    assert (folder / "reports" / "examples" / "index.html").is_file()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_imports_this_project_under_one_name(file: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    own = {name for name in imported if name.split(".")[0] in ("agents", "envs", "qsm_bench")}
    assert own <= {"qsm_bench"}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_the_page_includes_the_example(file: Path) -> None:
    assert f"\n--8<--\nexamples/{file.name}\n--8<--\n" in PAGE
