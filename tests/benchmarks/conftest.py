"""Benchmarks run as a job does: on one thread, and without denormal numbers."""

from collections.abc import Iterator

import pytest
import torch

from qsm_bench.process import settle


@pytest.fixture(autouse=True)
def _as_a_job() -> Iterator[None]:
    threads = torch.get_num_threads()
    settle()
    yield
    # Other tests want their processor back.
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
