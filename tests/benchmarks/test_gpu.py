"""``make gpu``: its whole way, tried at small sizes on a CPU, and its refusal."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.core import describe_core


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    command = [sys.executable, gpu.__file__, str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "make gpu measures a GPU: torch finds none on this machine\n"
    assert not list(tmp_path.iterdir())


def test_the_page_has_updates_steps_and_the_suite_of_every_trainer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    gpu.main(page, on_a_cpu=True)
    text = page.read_text()
    assert f"One core: {describe_core()}\n" in text
    assert "On no GPU (a trial) and a machine of" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    for name in gpu.SMALL.trainers:
        assert sum(row[0].startswith(f"| {name}, S = ") for row in rows) == 3
    assert len(rows) == len(gpu.SMALL.trainers) * (len(gpu.SMALL.seeds) + 2) + 1
    for row in rows:
        number, _, unit = row[1].partition(" ")
        assert unit in ("seed-updates/s", "steps/s", "minutes")
        assert float(number) >= 0
    assert all(0 <= float(row[2]) <= 1 for row in rows if "waiting" in row[3])
    assert "12 jobs of these trainers, 2 at a time" in rows[-1][0]
