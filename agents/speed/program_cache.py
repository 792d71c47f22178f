"""Where compiled programs are kept, so that a program is compiled once and not in every job.

torch keeps them in the temporary directory by default: they are gone when it is emptied, and their
folder's name is known to all users of the machine, who could put programs of theirs in it.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""torch's own name for the folder; where a user has set it, it is left as it is."""


def use_program_cache() -> None:
    """Keep this process's compiled programs in the user's own cache, where that can be had.

    All jobs and runs share it. So may machines: torch's names for programs do not tell processors
    apart, so each kind of processor has a folder of its own.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a while to load

    # Once torch's compiler is loaded it has set the variable itself, for child processes, too.
    named = os.environ.get(VARIABLE)
    if named == "":  # torch would take the working directory
        del os.environ[VARIABLE]
    if not named or named == default_cache_dir():
        cache = _cache_of_user()
        folder = cache and cache / "qsm_bench" / f"programs-{processor_kind()}"
        if folder and _is_private(folder):
            os.environ[VARIABLE] = str(folder)
    else:
        _refuse_unusable(Path(named))
    # A gradient that a network states itself is part of the program's name, like all else in it.
    # Without this only the kernels would be kept, and each job would go through half the rest.
    with suppress(AttributeError):  # an older torch has no such setting
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True


def _refuse_unusable(folder: Path) -> None:
    """Raise AgentError if nothing can be kept in the folder that a user has named."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        reason = None if os.access(folder, os.W_OK) else "it cannot be written to"
    if reason:
        from agents.registry import AgentError  # which imports what imports this

        raise AgentError(
            f"{VARIABLE}={folder}: compiled programs cannot be kept there: {reason}: name a folder "
            "that you can write to, or leave the variable out"
        )


def processor_kind() -> str:
    """Return a short name for what this machine's processor can do, the same on equal ones."""
    known = torch.backends.cpu.get_cpu_capability()
    with suppress(OSError):  # other systems have no such file
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
        names = "vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part"
        known += "".join(line for line in first.splitlines() if line.startswith(names))
    return hashlib.blake2b(known.encode(), digest_size=6).hexdigest()


def _cache_of_user() -> Path | None:
    """The user's folder for what can be made again (the XDG base directory specification).

    None if the user has none: a container may have users without a home.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):
        return Path(named) if named else Path("~/.cache").expanduser()
    return None


def _is_private(folder: Path) -> bool:
    """Make the folder if it is missing, and tell whether only its owner, this user, can write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return mine and not about.st_mode & 0o022 and os.access(folder, os.W_OK)
