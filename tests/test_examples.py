"""The examples do what their page in the documentation says."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from examples.brake import LENGTH, STANDING_STILL
from examples.langevin_score import LangevinScore, LangevinScoreConfig
from tests.agents.fixed_critics import fix_critic, make_batch

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


@pytest.mark.parametrize(
    ("agent", "enough"), [("best_of_n", ENOUGH), ("langevin_score[candidates_evaluate=32]", 20.0)]
)
def test_the_agent_learns_the_task(folder: Path, agent: str, enough: float) -> None:
    cell = folder / "results" / "examples" / agent / "brake:Brake-v0"
    jobs = [pd.read_csv(file) for file in cell.glob("*/evaluations.csv")]
    returns = pd.concat(jobs).groupby("step")["return"].mean()
    assert returns.iloc[-1] > enough > STANDING_STILL


def test_the_notebook_reads_the_results_and_acts_with_a_policy(folder: Path) -> None:
    cells = json.loads((folder / "results.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    program = "\n".join("".join(cell["source"]) for cell in code)
    printed = run(folder, [sys.executable, "-c", program])
    (earned,) = re.findall(r"return (\S+)", printed)
    assert float(earned) > ENOUGH
    assert (folder / "reports" / "examples" / "index.html").is_file()


def langevin_score(k: float, **settings: Any) -> LangevinScore:
    """The example's agent on Q = -k (a - 0.3)^2, which is the smaller of its critics."""
    config = LangevinScoreConfig(hidden_sizes=(32, 32), learning_rate=1e-2, **settings)
    agent = LangevinScore(config, 3, 1, (0, 1), torch.device("cpu"))

    def parabola(observation: Tensor, action: Tensor) -> Tensor:
        return -k * (action - 0.3).square().sum(dim=-1)

    fix_critic(agent, parabola, lambda s, a: parabola(s, a) + 1 + a[..., 0])
    return agent


def test_the_score_is_taught_the_gradient_of_the_smaller_critic() -> None:
    agent = langevin_score(5.0, temperature=2.0, candidates=1)
    for _ in range(300):
        agent.update(make_batch(2, 64, 3, 1, torch.float32))
    action = torch.linspace(-0.9, 0.9, 19).view(1, 19, 1).expand(2, -1, -1)
    found = agent.psi(torch.zeros(2, 19, 3), action)
    torch.testing.assert_close(found, -5 * (action - 0.3), rtol=0, atol=0.4)


@pytest.mark.parametrize(
    ("k", "deviation", "boltzmann"), [(5.0, 0.347, 0.316), (20.0, 0.223, 0.158)]
)
def test_langevin_steps_of_an_exact_score_spread_further_than_the_boltzmann_policy(
    k: float, deviation: float, boltzmann: float
) -> None:
    agent = langevin_score(k)
    agent.psi = lambda observation, action: -2 * k * (action - 0.3)  # type: ignore[method-assign]
    action = agent.sample(torch.zeros(2, 20_000, 3), 1, agent.sample_stream)
    assert action.std().item() == pytest.approx(deviation, abs=0.005)
    assert (2 * k) ** -0.5 == pytest.approx(boltzmann, abs=1e-3)


def test_langevin_steps_beyond_their_bound_end_at_the_bounds() -> None:
    agent = langevin_score(50.0)
    agent.psi = lambda observation, action: -100 * (action - 0.3)  # type: ignore[method-assign]
    action = agent.sample(torch.zeros(2, 20_000, 3), 1, agent.sample_stream)
    assert (action.abs() == 1).float().mean().item() == pytest.approx(0.46, abs=0.01)


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
