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


def free_on_gpu(device: torch.device) -> float:
    """Share of a GPU's memory that nobody holds: neither this process, nor a server that it started, nor others."""
    release_gpu()
    free, total = torch.cuda.mem_get_info(device)
    return free / total
