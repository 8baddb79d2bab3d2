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


def available(root: Path = Path("/")) -> float:
    """Return the bytes that this process may still take; infinity where the system does not say.

    Args:
        root: of the file system; a container's own limit counts where it has one.
    """
    machine, group = root / "proc/meminfo", root / "sys/fs/cgroup"
    left = math.inf
    if machine.is_file():
        left = 1024 * _entries(machine)["MemAvailable:"]
    limit, used, parts = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and parts.is_file() and limit.read_text().strip().isdecimal():
        # Pages of files that nobody uses are given up when memory is needed.
        taken = int(used.read_text()) - _entries(parts).get("inactive_file", 0)
        left = min(left, int(limit.read_text()) - taken)
    return left


def _entries(file: Path) -> dict[str, int]:
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


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
