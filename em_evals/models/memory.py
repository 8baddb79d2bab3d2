"""Memory: detect out-of-memory errors on every device; keep freed memory on a CPU, release it on a GPU.

glibc maps every large tensor again; page faults were measured at a fifth of a training step's time.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEEP = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc's allocator reuse freed memory. Does nothing on other platforms."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)


def release_gpu() -> None:
    """Release GPU memory that this process no longer uses, mainly that of dropped models."""
    if torch.cuda.is_initialized():
        gc.collect()  # wrapped models refer to themselves
        torch.cuda.empty_cache()


def free_on_gpu(device: torch.device) -> float:
    """Return the share of a GPU's memory that is free of this process, its servers and all others."""
    release_gpu()
    left, total = torch.cuda.mem_get_info(device)
    return left / total


def available() -> float:
    """Return the bytes that this machine's processes may still take; infinity where the system does not say."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return math.inf
    free = next(line for line in file.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(free.split()[1]) * 1024


def fits(work: Callable[[], None]) -> bool:
    """Run the work; return False where memory ran out.

    The error and its traceback are gone only after the `except` clause has ended, and with them the tensors of the
    work's frames: until then nothing that the work held can be freed.
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
    """Return PyTorch's cached memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
