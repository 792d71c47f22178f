"""Benchmarks run as a job does: on one thread, and without denormal numbers."""

import pytest

from qsm_bench.process import configure_process


@pytest.fixture(autouse=True)
def _as_a_job() -> None:
    configure_process()
