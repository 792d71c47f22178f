"""The README's promises: its example agent runs, its result is the published report's."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_agent_runs_beside_the_others(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_agents.py").write_text(code)
    command = "run --agents td3[hidden_sizes=[8]],my_agents:Noise --tasks bimodal-bandit --seeds 2"
    command += " --steps 60 --warmup-steps 20 --batch-size 8 --eval-every 30 --eval-episodes 2"
    done = subprocess.run(
        [sys.executable, "-m", "qsm_bench", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    evaluations = tmp_path / "results" / "bimodal-bandit" / "noise" / "bimodal-bandit"
    assert len((evaluations / "evaluations.csv").read_text().splitlines()) == 1 + 2 * 2 * 2


def test_the_result_shown_is_the_published_reports() -> None:
    shown = re.findall(
        r"^\|.*\|$", README.partition("## What it shows")[2].partition("\n## ")[0], re.M
    )
    report = (ROOT / "reports" / "cartpole-swingup" / "report.md").read_text()
    assert len(shown) > 2
    assert "\n".join(shown) in report


def test_every_file_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
