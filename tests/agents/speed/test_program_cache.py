"""The cache of compiled programs: whose it is, and that a second job finds what the first left."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from agents.registry import AgentError
from agents.speed.program import Program
from agents.speed.program_cache import (
    STILL_WRITTEN,
    VARIABLE,
    is_whole,
    processor_kind,
    remove_half_written,
    use_program_cache,
)
from agents.speed.toolchain import why_not_compiled

needs_compiler = pytest.mark.skipif(
    why_not_compiled() is not None, reason=why_not_compiled() or "it compiles"
)


class Untraceable:
    """An agent whose update depends on a number that only its numbers know."""

    name = "untraceable"

    def pure_update(self, batch: torch.Tensor) -> torch.Tensor:
        return batch + 1 if batch.sum().item() > 1 else batch


class Failing:
    """An agent whose update is traced, and raises an error of its own where it runs."""

    name = "failing"

    def pure_update(self, batch: torch.Tensor) -> torch.Tensor:
        return batch @ batch.new_zeros(7, 7)


@needs_compiler
@pytest.mark.parametrize("agent", [Untraceable(), Failing()])
def test_what_torch_cannot_compile_is_told_in_one_line(agent: Untraceable | Failing) -> None:
    program = Program(vars(type(agent))["pure_update"], torch.device("cpu"))
    with pytest.raises(AgentError, match=f"^agent '{agent.name}' cannot be compiled: ") as refused:
        program(agent, torch.ones(3))
    assert "\n" not in str(refused.value)
    assert "--compile off" in str(refused.value)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a user who has named no folder for torch."""
    monkeypatch.setenv(VARIABLE, default_cache_dir())  # as torch's compiler does itself
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_programs_are_kept_in_the_users_own_cache_which_nobody_else_can_write(home: Path) -> None:
    use_program_cache()
    folder = Path(os.environ[VARIABLE])
    assert folder == home / "qsm_bench" / f"programs-{processor_kind()}"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("home")
def test_a_folder_that_the_user_has_named_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/chosen")
    use_program_cache()
    assert os.environ[VARIABLE] == "/chosen"


def test_a_folder_that_others_can_write_is_not_used(home: Path) -> None:
    folder = home / "qsm_bench" / f"programs-{processor_kind()}"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    use_program_cache()
    assert os.environ[VARIABLE] == default_cache_dir()


def test_without_a_home_that_can_be_written_torch_keeps_its_own_folder(home: Path) -> None:
    (home / "qsm_bench").write_text("a file is in the way")
    use_program_cache()
    assert os.environ[VARIABLE] == default_cache_dir()


def test_a_user_without_a_home_has_torchs_own_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("no home")))
    use_program_cache()
    assert os.environ[VARIABLE] == default_cache_dir()
    assert not list(home.iterdir())


JOB = """
import sys, torch
from torch._dynamo.utils import counters
from agents.speed.program import Program

class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return FACTOR * g

def update(self, x):
    leaf = x + self
    return torch.autograd.grad(Times.apply(leaf).sum(), leaf)[0]

zero = torch.zeros((), requires_grad=True)
gradient = Program(update, torch.device("cpu"))(zero, torch.ones(4))
found = counters["aot_autograd"]
print(gradient[0].item(), found["autograd_cache_hit"], found["autograd_cache_bypass"])
"""


@pytest.mark.slow
@needs_compiler
def test_a_second_job_finds_the_program_and_takes_no_other_gradient_for_it(home: Path) -> None:
    def job(factor: float) -> list[float]:
        command = [sys.executable, "-c", JOB.replace("FACTOR", str(factor))]
        printed = subprocess.check_output(command, text=True)
        return [float(word) for word in printed.split()]

    assert job(2.0) == [2.0, 0, 0]
    assert job(3.0) == [3.0, 0, 0]
    assert job(2.0) == [2.0, 1, 0]
    assert list(home.glob("qsm_bench/*/aotautograd"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a linker has written, whole."""
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("there is no g++ that makes libraries of Linux's format")
    made = tmp_path_factory.mktemp("linked") / "library.so"
    source = "int next(int x) { return x + 1; }"
    command = ["g++", "-shared", "-fPIC", "-o", str(made), "-x", "c++", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return made.read_bytes()


def left_at(path: Path, content: bytes, age: float = 2 * STILL_WRITTEN) -> Path:
    """Write what a compiler has left that was killed so many seconds ago."""
    path.write_bytes(content)
    os.utime(path, times=(time.time() - age,) * 2)
    return path


@given(st.data())
def test_a_library_that_is_cut_short_anywhere_is_not_whole(
    library: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.so"
    assert is_whole(left_at(path, library))
    size = data.draw(st.integers(0, len(library) - 1))
    assert not is_whole(left_at(path, library[:size]))


def test_what_a_killed_compiler_left_is_removed_and_nothing_else(
    library: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    whole, source = left_at(folder / "whole.so", library), left_at(folder / "source.cpp", b"int")
    for size in (0, 10, 100, len(library) - 1):
        left_at(folder / f"{size}.so", library[:size])
    left_at(folder / "zeros.so", bytes(len(library)))
    remove_half_written(tmp_path)
    assert sorted(folder.iterdir()) == [source, whole]


def test_a_library_that_is_being_written_is_waited_for(
    library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_at(tmp_path / "new.so", library[:100], age=0)
    monkeypatch.setattr(time, "sleep", lambda _: left_at(path, library))
    remove_half_written(tmp_path)
    assert path.read_bytes() == library


COMPILED = """
import torch
from agents.speed.program import Program

def update(self, x):
    return (x * 2).sin().sum()

print(float(Program(update, torch.device("cpu"))(None, torch.ones(64))))
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("left", ["nothing", "header", "half", "all but the end"])
def test_a_library_that_a_killed_compiler_left_half_written_is_compiled_again(
    tmp_path: Path, left: str
) -> None:
    """At half of its size, loading it would end the process by SIGBUS."""

    def run() -> float:
        command = [sys.executable, "-c", COMPILED]
        environment = os.environ | {VARIABLE: str(tmp_path)}
        return float(subprocess.check_output(command, env=environment, text=True))

    whole = run()
    libraries = list(tmp_path.rglob("*.main.so"))
    assert libraries
    for library in libraries:
        content = library.read_bytes()
        sizes = {"nothing": 0, "header": 100, "half": len(content) // 2, "all but the end": -1}
        library.write_bytes(content[: sizes[left]])
    assert run() == whole
    assert all(map(is_whole, libraries))
