"""The hooks that a commit and `make check` run: style and types of every folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "envs", "examples", "qsm_bench", "tests")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository with this one's hooks, and a file without fault in every folder."""
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"of_{folder}.py").write_text(f'"""Nothing but {folder}."""\n')
    return tmp_path


def run_hooks(repository: Path, *, skip: str) -> tuple[int, str]:
    """Return the exit status and the output of `pre-commit run --all-files`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment["SKIP"] = skip
    environment["PRE_COMMIT_HOME"] = str(repository / ".git" / "pre-commit")
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=repository, env=environment, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("hook", "code"),
    [
        ("ruff check", '"""A list."""\n\nl = [x for x in range(3)]\n'),
        ("ruff format", '"""A list."""\n\nNUMBERS = [1,2]\n'),
        pytest.param(
            "mypy",
            '"""A function."""\n\n\ndef double(x):\n    """Double it."""\n    return 2 * x\n',
            marks=pytest.mark.slow,
        ),
    ],
    ids=["style", "layout", "types"],
)
def test_a_fault_is_found_in_every_folder(repository: Path, hook: str, code: str) -> None:
    for folder in FOLDERS:
        (repository / folder / f"of_{folder}.py").write_text(code)
    # mypy alone takes seconds, and finds no fault in the other two.
    status, output = run_hooks(repository, skip="" if hook == "mypy" else "mypy")
    assert status != 0
    failed = [line.split(".")[0] for line in output.splitlines() if line.endswith("Failed")]
    assert failed == [hook], output
    if hook == "ruff format":
        assert f"{len(FOLDERS)} files reformatted" in output
    else:
        assert all(f"of_{folder}.py" in output for folder in FOLDERS), output
