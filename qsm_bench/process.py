"""A job's process: how it is set up, and what its exit status says.

It is set up for one thread, and for no needless work below torch.
"""

import ctypes

import torch

FAILED, INTERRUPTED, REFUSED = 1, 3, 4
"""Exit statuses of a job. FAILED: it raised an error, and may be tried again. INTERRUPTED: it was
asked to stop, and is saved. REFUSED: it cannot be done as it was asked, and would fail again."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def configure_process() -> None:
    """Use one thread, flush denormal numbers, and keep freed memory for the next update.

    By default the C library gives every large array back to the system when it is freed, which
    then clears its pages again for the next one: a tenth of an update's time or more.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
