"""A plain install does the main job: run by the Python of an environment that holds the wheel.

    PLAIN_ENVIRONMENT/bin/python tests/packaging/main_job.py

Everything happens in a new folder, with the installed commands, as a user has them.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

BIN = Path(sys.executable).parent
QSM_BENCH = (str(BIN / "qsm-bench"),)
MODULE = (sys.executable, "-m", "qsm_bench")
TINY: tuple[str, ...] = (
    "--seeds=2",
    "--seeds-per-job=2",
    "--steps=240",
    "--warmup-steps=100",
    "--eval-every=120",
    "--eval-episodes=1",
)
TINY += ("--batch-size=16", "--name=plain")
TASKS = ("cartpole-balance", "HalfCheetah-v5")
FROM_EXTRAS = ("imageio_ffmpeg", "stable_baselines3", "umap", "jax", "pytest")

MY_AGENTS = """
from agents.td3 import TD3


class Mine(TD3):
    name = "mine"
    presets = {}
"""


def call(folder: Path, *command: str, status: int = 0) -> str:
    """Return a command's output or, where it is to fail, the one line that it says."""
    # Nothing of the checkout, and no display.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QSM_RESULTS", "DISPLAY")}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    shown = f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == status, shown
    assert "Traceback" not in done.stderr, shown
    if status:
        assert done.stdout == "", shown
        assert done.stderr.startswith("error: "), shown
        assert done.stderr.count("\n") == 1, shown
    return done.stderr if status else done.stdout


def check(folder: Path) -> None:
    """Go through the main job in ``folder``."""
    assert not [name for name in FROM_EXTRAS if find_spec(name)], "this is no plain environment"

    for shown in ("run", "report", "compare", "status", "evaluate"):
        assert shown in call(folder, *QSM_BENCH, "--help")
    agents = call(folder, *QSM_BENCH, "list", "agents")
    assert all(f"\n{agent} " in f"\n{agents}" for agent in ("qsm", "diffusion_ql", "sac", "td3"))
    assert "\nquick " in call(folder, *QSM_BENCH, "list", "suites")
    tasks = call(folder, *QSM_BENCH, "list", "tasks")
    assert all(f"\n{task} " in f"\n{tasks}" for task in ("walker-walk", "four-goals"))
    assert "alpha" in call(folder, *QSM_BENCH, "describe", "qsm")

    # A module of the working folder is found by both commands, and by the jobs' processes.
    (folder / "my_agents.py").write_text(MY_AGENTS, encoding="utf-8")
    options = ("--agents=td3,my_agents:Mine", f"--tasks={','.join(TASKS)}", *TINY)
    assert f"{QSM_BENCH[0]} report plain\n" in call(folder, *QSM_BENCH, "run", *options)
    assert "skipped: 4 finished jobs" in call(folder, *MODULE, "run", *options)
    for task in TASKS:
        for agent in ("td3", "mine"):
            cell = folder / "results/plain" / agent / task
            rows = (cell / "0-1" / "evaluations.csv").read_text("utf-8")
            assert len(rows.splitlines()) == 1 + 2 * 2, rows  # 2 evaluations of 2 seeds

    assert call(folder, *QSM_BENCH, "status", "plain").count("finished, step 240/240") == 4
    evaluation = ("evaluate", "plain", "--agent=td3", "--task=HalfCheetah-v5", "--episodes=1")
    assert "seed 1" in call(folder, *QSM_BENCH, *evaluation)
    assert "reports/plain/index.html" in call(folder, *QSM_BENCH, "report", "plain")
    page = (folder / "reports/plain/index.html").read_text("utf-8")
    assert all(name in page for name in (*TASKS, "mine", "td3", "<svg", "<style", "<script"))
    assert (folder / "reports/plain/figures/learning-curves.png").stat().st_size > 10_000
    call(folder, *QSM_BENCH, "compare", "plain", "plain")

    # The data of the program is there: published scores, the regression's baseline, the record.
    assert "the baseline has seeds 0 to 23" in call(
        folder, *QSM_BENCH, "regress", "--first-seed=0", status=2
    )
    shipped = Path(find_spec("qsm_bench").origin).parent / "shipped"  # type: ignore[union-attr, arg-type]
    assert (shipped / "published/scores.csv").exists()

    # What an extra gives is said in one line.
    refusal = call(folder, *QSM_BENCH, *evaluation, "--video=film.mp4", status=2)
    assert "pip install 'qsm_bench[video]'" in refusal, refusal
    assert not (folder / "film.mp4").exists()
    refusal = call(folder, *QSM_BENCH, "study", "action-map", status=2)
    assert "pip install 'qsm_bench[studies]'" in refusal, refusal


with tempfile.TemporaryDirectory(prefix="qsm_bench-plain-") as temporary:
    check(Path(temporary))
print("a plain install does the main job")
