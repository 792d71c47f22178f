"""What a killed compiler left in the cache is found, and made again."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from agents.speed.half_written import STILL_WRITTEN, is_whole, remove_half_written
from agents.speed.program_cache import VARIABLE
from agents.speed.toolchain import why_not_compiled

needs_compiler = pytest.mark.skipif(
    why_not_compiled() is not None, reason=why_not_compiled() or "it compiles"
)


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the user has named for torch."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "ab").mkdir()
    return tmp_path


def test_what_a_killed_compiler_left_is_removed_and_nothing_else(
    library: bytes, cache: Path
) -> None:
    kept = [
        left_at(cache / "ab" / "cab1.main.so", library),
        left_at(cache / "ab" / "cab1.main.cpp", b"int"),
        left_at(cache / "ab" / "cxy1.main.so", b"not torch's: its folder would be xy"),
        left_at(cache / "libc.so", b"GROUP ( /lib/libc.so.6 )"),
    ]
    assert not remove_half_written()
    for number, size in enumerate((0, 10, 100, len(library) - 1)):
        left_at(cache / "ab" / f"cab2{number}.main.so", library[:size])
    left_at(cache / "ab" / "cab3.main.so", bytes(len(library)))
    left_at(cache / "ab" / "cab4.so", library[:100], age=-3600)  # by a clock that is ahead
    assert remove_half_written()
    assert {path for path in cache.rglob("*") if path.is_file()} == set(kept)
    assert not remove_half_written()


def test_a_library_that_is_being_written_is_waited_for(
    library: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_at(cache / "ab" / "cab1.main.so", library[:100], age=0)
    monkeypatch.setattr(time, "sleep", lambda _: left_at(path, library))
    assert not remove_half_written()
    assert path.read_bytes() == library


def test_headers_are_removed_where_the_compiler_could_not_read_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(cache))
    folder = Path(default_cache_dir(), "precompiled_headers")
    folder.mkdir(parents=True)
    for name in ("a.h", "a.h.gch"):
        left_at(folder / name, b"content")
    assert not remove_half_written(RuntimeError("fatal error: no such file"))
    assert remove_half_written(RuntimeError("fatal error: cannot read PCH file: "))
    assert [path.name for path in folder.iterdir()] == ["a.h"]


COMPILED = """
import torch
from agents.speed.program import Program

def update(self, x):
    return (x * 2).sin().sum()

program = Program(update, torch.device("cpu"))
CUT
print(float(program(None, torch.ones(64))))
"""


def compiled(temporary: Path, cut: str = "") -> float:
    """The result of a program in a process of its own, which goes through ``cut`` before it."""
    environment = os.environ | {VARIABLE: str(temporary / "cache"), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", COMPILED.replace("CUT", cut)]
    return float(subprocess.check_output(command, env=environment, text=True))


@pytest.mark.slow
@needs_compiler
def test_what_a_killed_compiler_left_is_compiled_again(tmp_path: Path) -> None:
    """Loading a library of which a fourth is left would end the process by SIGBUS."""
    whole = compiled(tmp_path)
    (library,) = tmp_path.glob("cache/??/*.main.so")
    content = library.read_bytes()
    for size in (0, 100, len(content) // 4, len(content) - 1):
        left_at(library, content[:size])
        assert compiled(tmp_path) == whole
        assert is_whole(library)
    # It waited for the compiler that was killed.
    late = f"import os; os.truncate({str(library)!r}, 100); os.utime({str(library)!r}, (0, 0))"
    assert compiled(tmp_path, late) == whole
    assert is_whole(library)


@pytest.mark.slow
@needs_compiler
def test_a_header_that_a_killed_compiler_left_half_written_is_made_again(tmp_path: Path) -> None:
    whole = compiled(tmp_path)
    headers = list(tmp_path.rglob("*.gch"))
    if not headers:
        pytest.skip("this torch precompiles no headers")
    for header in headers:
        os.truncate(header, header.stat().st_size // 2)
    shutil.rmtree(tmp_path / "cache")
    assert compiled(tmp_path) == whole
