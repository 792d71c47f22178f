"""Whether this machine has what torch needs to compile."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch


def why_not_compiled(device: str = "cpu") -> str | None:
    """Say what this machine lacks to compile updates for a device; None if it lacks nothing."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot trace a gradient: 2.11 or later can"
    if torch._dynamo.config.disable:
        return "TORCH_COMPILE_DISABLE is set, so torch compiles nothing"
    return why_no_kernels(device)


def why_no_kernels(device: str) -> str | None:
    """Say what this machine lacks to compile kernels for a device; None if it lacks nothing.

    On a GPU the kernels are Triton's, which compiles in C what launches them.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu and not find_spec("triton"):
        return "triton is not installed"
    if on_gpu:
        language, compilers = "C", [os.environ.get("CC", ""), "clang", "gcc"]
    else:
        usual = "clang++" if sys.platform == "darwin" else "g++"
        language, compilers = "C++", [os.environ.get("CXX", usual)]
    if not any(map(shutil.which, filter(None, compilers))):
        return f"there is no {language} compiler ({compilers[-1]})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's header files (Python.h) are not installed"
    return None
