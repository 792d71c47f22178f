"""``make gpu``: its whole way, tried at small sizes on a CPU, and its refusal."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.core import describe_core
from tests.benchmarks.workload import row


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    command = [sys.executable, gpu.__file__, str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "make gpu measures a GPU: torch finds none on this machine\n"
    assert not list(tmp_path.iterdir())


def test_the_page_has_updates_of_every_trainer_and_steps_of_five(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    gpu.main(page, on_a_cpu=True)
    text = page.read_text()
    assert f"One core: {describe_core()}\n" in text
    assert "On no GPU (a trial) and a machine of" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    small = gpu.SMALL
    for name in small.trainers:
        assert sum(row[0].startswith(f"| {name}, S = ") for row in rows) >= len(small.seeds)
    for name in small.in_steps:
        assert sum(row[0].startswith(f"| {name}, S = 2, ") for row in rows) == 2  # precisions
    updates, steps = len(small.trainers) * len(small.seeds), 4 * len(small.in_steps)
    assert len(rows) == updates + steps + 1
    for found in rows:
        number, _, unit = found[1].partition(" ")
        assert unit in ("seed-updates/s", "steps/s", "minutes")
        assert float(number) >= 0
    assert all(0 <= float(found[2]) <= 1 for found in rows if "waiting" in found[3])
    assert "12 jobs of these 2 trainers, 2 at a time" in rows[-1][0]


def test_a_row_that_cannot_be_measured_says_why_and_the_others_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(name: str, seeds: int, *more: Any) -> dict[str, Any]:
        if seeds == 2:
            raise RuntimeError("out of memory |\nhere")
        return row(f"{name}, S = {seeds}", "7 seed-updates/s", 0.5, "waiting")

    monkeypatch.setattr(gpu, "updates_row", out_of_memory)
    monkeypatch.setattr(gpu, "steps_rows", Mock(side_effect=EOFError("a job ended")))
    gpu.main(tmp_path / "page.md", on_a_cpu=True)
    text = (tmp_path / "page.md").read_text()
    assert "| qsm, S = 1 | 7 seed-updates/s |" in text
    assert "| qsm, S = 2 | RuntimeError: out of memory / here | | | |" in text
    assert text.endswith("| steps | EOFError: a job ended | | | |\n")
