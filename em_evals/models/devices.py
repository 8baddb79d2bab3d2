"""Devices and dtypes: what cards name, and what `auto` means on this machine.

torch is imported where it is asked for. A build of torch for CPUs alone says so in a file: `em-evals doctor` and the
choice of an engine need not wait for its import there.
"""

from __future__ import annotations

import math
import os
import platform
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    import torch

_ACCELERATORS = ("cuda", "hip", "rocm", "xpu")
"""What torch/version.py names if a build has it."""


def choose_device(name: str) -> torch.device:
    """Return the device that a card names; `auto` is the first of cuda, mps, cpu that exists.

    Raises:
        EmEvalsError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EmEvalsError(f"there is no device '{name}'; use cpu, cuda, cuda:N or mps.") from None
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, math.inf):
        raise EmEvalsError(
            f"this process sees no device '{name}' ({there['cuda']} CUDA GPUs); `device: auto` takes the best there is."
        )
    return device


def visible_from(index: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES for a process that uses its first GPU: this process's, from `cuda:index` on."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    return every[index:]


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a torch dtype; `auto` is bfloat16 where the processor computes in it, else float32.

    A CPU without bfloat16 instructions emulates them, at half of float32's measured speed and with less precision. A
    GPU without them uses float16.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16


def kind(name: str) -> str:
    """Return the type of the device that a card names, such as `cuda`, without torch where its build leaves no choice.

    Raises:
        EmEvalsError: there is no such device here.
    """
    return "cpu" if name in ("auto", "cpu") and _for_cpus_alone() else choose_device(name).type


def automatic() -> tuple[str, str]:
    """Return the device and the dtype that `auto` takes, as `("cpu", "float32")`.

    Linux names bfloat16 instructions by the rule of torch: the processor has them and the system saves their registers.
    """
    known = platform.machine() in ("x86_64", "AMD64") and Path("/proc/cpuinfo").is_file()
    if known and _for_cpus_alone():
        flags = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
        return "cpu", "bfloat16" if "avx512_bf16" in flags else "float32"
    device = choose_device("auto")
    return str(device), str(choose_dtype("auto", device)).removeprefix("torch.")


def _for_cpus_alone() -> bool:
    """Return whether torch was built without accelerators; a build that cannot be read may have any."""
    if (loaded := sys.modules.get("torch")) is not None:
        build = vars(loaded.version)
    else:
        spec = find_spec("torch")
        file = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
        build = runpy.run_path(str(file)) if file is not None and file.is_file() else {}
    return "cuda" in build and not any(map(build.get, _ACCELERATORS)) and sys.platform != "darwin"
