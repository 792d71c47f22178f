"""The processor that a table's times are of, in words: every table of times begins with it."""

from pathlib import Path

import psutil
import torch

from qsm_bench.provenance import describe_hardware

BFLOAT16 = "avx512_bf16", "amx_bf16"
"""What Linux calls the instructions for products in bfloat16."""


def describe_core() -> str:
    """Say what one core of this machine is: processor, generation, clock, vector instructions.

    A virtual machine may hide the model's name; its family and model numbers tell the generation.
    """
    known = _first_core()
    parts = [describe_hardware("cpu")["cpu"]]
    if "cpu family" in known:
        parts.append(f"family {known['cpu family']}, model {known['model']}")
    if clock := psutil.cpu_freq():
        parts.append(f"{clock.current / 1000:.1f} GHz")
    flags = known.get("flags", "").split()
    parts += [torch.backends.cpu.get_cpu_capability(), *(x for x in BFLOAT16 if x in flags)]
    return ", ".join(parts)


def _first_core() -> dict[str, str]:
    """What Linux says of its first core; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in fields}
