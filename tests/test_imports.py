"""Dependencies point one way: qsm_bench -> agents, envs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

one_way = pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("agents", {"qsm_bench", "envs"}),
        ("envs", {"qsm_bench", "agents", "torch"}),
    ],
)


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(part).removesuffix(".__init__") for part in parts]


def imported_names(source: str) -> Iterator[str]:
    """The top-level packages that `source` imports anywhere in it, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def loaded_after_importing(*names: str) -> set[str]:
    """The top-level packages in sys.modules of a fresh interpreter that imported `names`."""
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@one_way
def test_no_file_of_a_package_imports_what_it_must_not_know(
    package: str, forbidden: set[str]
) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    offences = {
        path.name: found
        for path in paths
        if (found := forbidden.intersection(imported_names(path.read_text("utf-8"))))
    }
    assert offences == {}


@one_way
def test_importing_all_of_a_package_loads_nothing_it_must_not_know(
    package: str, forbidden: set[str]
) -> None:
    loaded = loaded_after_importing(*modules(package))
    assert package in loaded
    assert loaded & forbidden == set()


def test_the_command_line_starts_without_torch() -> None:
    loaded = loaded_after_importing("qsm_bench.cli")
    assert "qsm_bench" in loaded
    assert "torch" not in loaded
