"""How a process that computes updates is set up: one thread, and no needless work below torch."""

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def settle() -> None:
    """One thread, no denormal numbers, and memory that is kept for the next update.

    By default the C library gives every large array back to the system when it is freed, which
    then clears its pages again for the next one: a tenth of an update's time or more.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
