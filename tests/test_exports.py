"""What ``qsm_bench`` exports: the same names when it runs and for an author's type checker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qsm_bench

ROOT = Path(__file__).parents[1]


def test_every_export_is_there_and_listed() -> None:
    assert sorted(qsm_bench.__all__) == sorted(qsm_bench._EXPORTS)
    for name in qsm_bench.__all__:
        assert getattr(qsm_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = qsm_bench.Nothing  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_type_checker_knows_every_export_and_finds_a_plug_ins_mistakes(tmp_path: Path) -> None:
    names = ", ".join(qsm_bench.__all__)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        f"from qsm_bench import {names}\n"
        "config = AgentConfig(learning_rate=1e-3)\n"
        "size: int = Batch.observation.shape[0]\n"
        "wrong: str = config.learning_rate\n"
        "from qsm_bench import Bacth\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(plugin)],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 2, done.stdout
    assert "plugin.py:4" in errors[0]
    assert 'expression has type "float"' in errors[0]
    assert 'has no attribute "Bacth"' in errors[1]
