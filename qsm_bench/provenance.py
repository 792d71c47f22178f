"""Where numbers come from: the versions, commit and hardware of a run, for its manifest."""

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
    "stable_baselines3",
)


def begin_stretch(device: str, command: str) -> Stretch:
    """Return a stretch that starts now, on this machine."""
    return Stretch(
        started=now(),
        versions=describe_versions(),
        commit=describe_commit(),
        hardware=describe_hardware(device),
        command=command,
    )


def now() -> str:
    """Return the time of day in UTC, as manifests write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results can depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_commit() -> str | None:
    """Return the project's commit, marked if files differ from it; None outside a checkout."""
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
    """Return processor, cores, memory in GiB, and the GPU if the job uses one."""
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
