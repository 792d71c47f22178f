"""Settings of every test: one thread, repeatable randomness, no deadlines on a shared machine."""

import os

# Before NumPy is imported. Each product of matrices would otherwise wait for a second thread, which
# the tests that run beside leave no core: some tests took eight times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)
# The tests use their own folders, wherever the user keeps results.
os.environ.pop("QSM_RESULTS", None)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all imports and tests again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    """Undo what a job or a benchmark sets in its process, as it runs in this one."""
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in asking}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
