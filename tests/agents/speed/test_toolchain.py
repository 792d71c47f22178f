"""What a machine lacks to compile is named, on a CPU and on a GPU."""

import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.speed import toolchain

Machine = Callable[[str], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Let the machine have these, of triton, compilers and Python.h."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)

    def having(names: str) -> None:
        there = names.split()
        monkeypatch.setattr(toolchain, "find_spec", lambda name: name in there or None)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        (tmp_path / "Python.h").unlink(missing_ok=True)
        if "Python.h" in there:
            (tmp_path / "Python.h").touch()

    return having


def test_a_compiler_that_is_switched_off_is_named() -> None:
    if reason := toolchain.why_not_compiled():
        pytest.skip(reason)
    # Not by monkeypatch, whose undoing would take the option away from this module.
    with torch._dynamo.config.patch(disable=True):
        assert "TORCH_COMPILE_DISABLE is set" in str(toolchain.why_not_compiled())
    assert toolchain.why_not_compiled() is None


@pytest.mark.parametrize(
    ("device", "there", "lacks"),
    [
        ("cpu", "g++ Python.h", None),
        ("cpu", "gcc Python.h triton", "there is no C++ compiler (g++)"),
        ("cpu", "g++", "Python's header files (Python.h) are not installed"),
        ("cuda", "triton gcc Python.h", None),
        ("cuda", "triton clang Python.h", None),
        ("cuda", "gcc Python.h", "triton is not installed"),
        ("cuda", "triton g++ Python.h", "there is no C compiler (gcc)"),
        ("cuda", "triton gcc", "Python's header files (Python.h) are not installed"),
    ],
)
def test_what_is_missing_is_named(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    there: str,
    lacks: str | None,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    machine(there)
    assert toolchain.why_no_kernels(device) == lacks
