"""The cache of compiled programs: whose it is, and that a second job finds what the first left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from agents.registry import AgentError
from agents.speed import program as program_module
from agents.speed.program import Program
from agents.speed.program_cache import VARIABLE, processor_kind, use_program_cache
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


def test_a_folder_that_the_user_has_named_is_left_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(home / "chosen"))
    use_program_cache()
    assert os.environ[VARIABLE] == str(home / "chosen")


def test_an_empty_name_is_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would fill the working directory."""
    monkeypatch.setenv(VARIABLE, "")
    use_program_cache()
    assert Path(os.environ[VARIABLE]).is_relative_to(home / "qsm_bench")


def test_a_folder_in_which_nothing_can_be_kept_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv(VARIABLE, str(home / "file"))
    with pytest.raises(AgentError, match=f"^{VARIABLE}={home}/file: .* cannot be kept there: "):
        use_program_cache()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("backend='inductor' raised:\nRuntimeError: broken\n\nmore", "RuntimeError: broken"),
        (
            "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nx.cpp:1: fatal error: no room",
            "C++ compile error: x.cpp:1: fatal error: no room",
        ),
        (
            "C++ compile error\nOutput:\ncannot write: No space left on device",
            "C++ compile error: cannot write: No space left on device",
        ),
        ("", ""),
    ],
)
def test_what_a_compiler_said_is_told_with_its_cause(text: str, reason: str) -> None:
    assert program_module._reason(text) == reason


@needs_compiler
def test_headers_are_compiled_once_only_where_torch_can_name_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch calls openssl for that, which a machine may lack."""
    assert program_module.cpu_options() == program_module.CPU_OPTIONS
    (home / "bin").mkdir()
    (home / "bin" / "g++").symlink_to(str(shutil.which("g++")))
    for tool in ("as", "ld", "cat", "sh"):
        (home / "bin" / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert program_module.cpu_options()[program_module.HEADERS] is False

    class Doubling:
        name = "doubling"

        def pure_update(self, batch: torch.Tensor) -> torch.Tensor:
            return batch * 2.0

    doubled = Program(vars(Doubling)["pure_update"], torch.device("cpu"))
    assert doubled(Doubling(), torch.ones(5)).tolist() == [2.0] * 5


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
from agents.speed import program as program_module
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
