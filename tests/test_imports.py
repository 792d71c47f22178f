"""Dependencies point one way: qsm_bench -> agents, envs."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "envs", "qsm_bench")
OPTIONAL = (
    "peers.py",
    "to_tensorboard.py",
    "to_wandb.py",
    "to_parquet.py",
    "on_ray.py",
    "on_slurm.py",
    "embedding.py",
)
"""Where what these import is missing, a line says which extra to install."""

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
    """Return the top-level packages that `source` imports anywhere, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def loaded_after_importing(*names: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after `names`."""
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


def test_the_wheel_has_every_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert folders == set(declared["packages"]) - set(declared["package-dir"])


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


def dynamically_imported_names(source: str) -> Iterator[str]:
    """Return the top-level packages that `source` names as text to a function that imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            if function in ("_import", "import_module") and isinstance(node.args[0].value, str):
                yield node.args[0].value.partition(".")[0]


def test_everything_that_is_imported_is_installed_without_extras() -> None:
    """A development environment hides a missing dependency; this does not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    paths = [p for name in PACKAGES for p in (ROOT / name).rglob("*.py")]
    sources = [path.read_text("utf-8") for path in paths if path.name not in OPTIONAL]
    imported = {
        name
        for source in sources
        for name in (*imported_names(source), *dynamically_imported_names(source))
    } - {*PACKAGES, *sys.stdlib_module_names}
    assert {"torch", "shimmy", "dm_control"} <= imported
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported
        if not declared & {canonicalize_name(d) for d in distributions.get(name, [name])}
    }
    assert undeclared == set()


def test_tasks_bring_what_their_modules_import() -> None:
    """The extras that shimmy and Gymnasium have for them, and only the tasks' own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {r.name: r.extras for r in map(Requirement, project["dependencies"])}
    assert extras["shimmy"] == {"dm-control"}
    assert extras["gymnasium"] == {"mujoco"}
