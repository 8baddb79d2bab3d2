"""Freed memory: kept in the process on CPU, given back on a GPU that another process is to use.

glibc maps every large tensor anew; faulting the pages in again was measured at a fifth of a training step's time.
"""

from __future__ import annotations

import ctypes
import gc
import sys

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


def held_on_gpu(device: torch.device) -> int:
    """Bytes of a GPU that this process still needs."""
    if not torch.cuda.is_initialized():
        return 0
    release_gpu()
    return torch.cuda.memory_reserved(device)
