"""Memory: running out of it is noticed on every device, and what is freed is kept on a CPU, given back on a GPU.

glibc maps every large tensor anew; faulting the pages in again was measured at a fifth of a training step's time.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEEP = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse what it frees. Does nothing on other platforms."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)


def release_gpu() -> None:
    """Give back what this process holds of its GPUs and nobody uses any more, dropped models above all."""
    if torch.cuda.is_initialized():
        gc.collect()  # wrapped models refer to themselves
        torch.cuda.empty_cache()


def free_on_gpu(device: torch.device) -> float:
    """Share of a GPU's memory that nobody holds: neither this process, nor a server that it started, nor others."""
    release_gpu()
    left, total = torch.cuda.mem_get_info(device)
    return left / total


def fits(work: Callable[[], None]) -> bool:
    """Do the work; False where memory ran out.

    Only after the `except` has ended is the error gone, and with its traceback the tensors of the work's frames: until
    then nothing that it held can be freed.
    """
    try:
        work()
    except Exception as error:
        if not _out_of_memory(error):
            raise
        return False
    return True


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's and MPS's allocators have no class of their own for it.
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in words)


def free() -> None:
    """Give the device what PyTorch keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
