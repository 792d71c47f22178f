"""What a compiler that was killed has left in torch's cache, where torch takes it for whole.

A process that loads a library which is cut short in its middle ends by a signal, in every later run
of the same program.
"""

import os
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

from agents.speed.program_cache import VARIABLE

STILL_WRITTEN = 5.0
"""Seconds after its last change for which a library may be one that is being written."""


def remove_half_written(error: Exception | None = None) -> bool:
    """Remove what is half-written, so that it is made again; return whether there was anything.

    A library shows it. A precompiled header does not: those are removed if the compiler's ``error``
    says that it could not read one.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a while to load

    default = default_cache_dir()
    cache = Path(os.environ.get(VARIABLE) or default)
    found = [file for file in _libraries(cache) if _is_cut_short(file)]
    if "PCH file" in str(error):
        # torch keeps them here whatever folder the user has named.
        found += Path(default, "precompiled_headers").glob("*.gch")
    for file in found:
        with suppress(OSError):  # another process has removed it, or the cache cannot be written
            file.unlink()
    return bool(found)


def _libraries(cache: Path) -> list[Path]:
    """torch's libraries in a folder; a user may have named one that has other files, too."""
    try:
        return [file for file in cache.glob("??/c*.so") if file.name[1:3] == file.parent.name]
    except OSError:  # another process empties the folder
        return []


def _is_cut_short(library: Path) -> bool:
    """Tell whether a library is not whole, after waiting for one that is being written."""
    try:
        while not is_whole(library):
            if abs(time.time() - library.stat().st_mtime) > STILL_WRITTEN:
                return True
            time.sleep(0.1)
    except OSError:  # another process has removed it
        pass
    return False


def is_whole(library: Path) -> bool:
    """Tell whether a shared library has its end; where it is none of Linux's, if it has anything.

    Raises OSError if it cannot be read.
    """
    with library.open("rb") as file:
        header = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if sys.platform != "linux":
        return size > 0
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return False
    # A linker writes the table of the sections last (the ELF specification, fields e_shoff,
    # e_shentsize and e_shnum of the header of 64 bits).
    (table,) = struct.unpack_from("=Q", header, 0x28)
    each, number = struct.unpack_from("=HH", header, 0x3A)
    return bool(size >= table + each * number)
