"""What a run ran on: versions, commit and hardware, for the manifest."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from qsm_bench.stretches import Stretch

PACKAGES = (
    "qsm_bench",
    "torch",
    "gymnasium",
    "shimmy",
    "dm_control",
    "mujoco",
    "numpy",
    "rliable",
    "pandas",
)


def begin_stretch(device: str, command: str) -> Stretch:
    """A stretch that starts now, here."""
    return Stretch(
        started=now(),
        versions=describe_versions(),
        commit=describe_commit(),
        hardware=describe_hardware(device),
        command=command,
    )


def now() -> str:
    """The time, as it stands in manifests."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results can depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_commit() -> str | None:
    """The project's commit, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe_hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory in GiB, and the GPU if the job uses one."""
    return {
        "cpu": _processor(),
        "cores": psutil.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
