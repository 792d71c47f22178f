"""Does the regression see what it is there for? Breaks copies of the code on purpose.

    python tests/benchmarks/mutations.py [--repeats 10] [--only "noise schedule reversed"]

Each mutation is a subtle fault, put into a copy of the packages; ``regress`` must raise an alarm
there. The unbroken copy is run ``--repeats`` times with other seeds and must raise none. Takes
minutes a run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[2]

MUTATIONS = {
    "wrong sign on the n-step discount": (
        "qsm_bench/replay.py",
        "take * self.discount**k * later_reward",
        "take * -(self.discount**k) * later_reward",
    ),
    "target network never updated": (
        "agents/common/optimizer.py",
        "list(online.parameters()), rate)",
        "list(online.parameters()), 0.0)",
    ),
    "noise schedule reversed": (
        "agents/common/diffusion.py",
        "torch.exp(-BETA_MIN / steps - slope)",
        "torch.exp(-BETA_MIN / steps - slope.flip(0))",
    ),
    "bootstraps past terminations": (
        "qsm_bench/replay.py",
        "discount = self.discount * (1.0 - terminated)",
        "discount = self.discount * torch.ones_like(terminated)",
    ),
}


def regress(folder: Path, first_seed: int) -> tuple[bool, str]:
    """Run the regression of the code in ``folder``; return whether it failed, and its table."""
    done = subprocess.run(
        [sys.executable, "-m", "qsm_bench", "regress", "--first-seed", str(first_seed)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    alarms = [line for line in done.stdout.splitlines() if line.rstrip().endswith("worse")]
    return done.returncode == 1, "\n".join(alarms)


def copy_of_the_code(folder: Path) -> Path:
    """Copy the packages and the baseline, to be broken."""
    for package in ("agents", "envs", "qsm_bench"):
        shutil.copytree(ROOT / package, folder / package)
    shutil.copytree(ROOT / "results" / "regression", folder / "results" / "regression")
    return folder


def main(
    repeats: Annotated[int, typer.Option(min=0)] = 10,
    only: Annotated[list[str] | None, typer.Option(help="Mutations to run; default: all.")] = None,
) -> None:
    """Run the mutations, then the unbroken code; exit status 1 if any came out wrong."""
    wrong = 0
    for number, (name, (file, right, broken)) in enumerate(MUTATIONS.items()):
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = copy_of_the_code(Path(temporary))
            text = (folder / file).read_text()
            assert text.count(right) == 1, (file, right)
            (folder / file).write_text(text.replace(right, broken))
            alarm, table = regress(folder, 10_000 + 100 * number)
        wrong += not alarm
        print(f"{name}: {'caught' if alarm else 'MISSED'}\n{table}", flush=True)
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as temporary:
            alarm, table = regress(copy_of_the_code(Path(temporary)), 20_000 + 100 * repeat)
        wrong += alarm
        print(
            f"unbroken, repeat {repeat}: {'FALSE ALARM' if alarm else 'no alarm'}\n{table}",
            flush=True,
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
