"""Float32 matrix products on AMD processors, by oneDNN in the place of MKL.

PyTorch computes them with MKL. On one core of a Zen 4, oneDNN was 1.07 to 1.11 times as fast for a block's matrices,
and 1.2 to 1.5 times for the vocabulary's. It adds the same products in another order, so sums differ by rounding.
bfloat16 takes oneDNN anyway.
"""

from __future__ import annotations

import platform
from pathlib import Path
from types import MethodType
from typing import Any

import torch


def speed_up(model: Any) -> None:
    """Let a float32 model's linear modules on a CPU multiply by oneDNN, where that was found to be faster.

    Passes with gradients, and weights that are something else when the module is called, are computed as before.
    """
    if not _faster():
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear and "forward" not in vars(module):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight, module.bias
    plain = type(weight) is torch.nn.Parameter or type(weight) is torch.Tensor
    # oneDNN reads a bias as if it were contiguous, and says nothing.
    whole = bias is None or (bias.is_contiguous() and bias.dtype == torch.float32)
    if (
        torch.is_grad_enabled()
        or not (plain and whole)
        or not input.is_cpu
        or not input.dtype == weight.dtype == torch.float32
    ):
        return torch.nn.functional.linear(input, weight, bias)
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def _faster() -> bool:
    """Return whether this processor is one whose products were measured, and this PyTorch has oneDNN's function."""
    processor = Path("/proc/cpuinfo")
    return (
        platform.system() == "Linux"
        and processor.is_file()
        and "AuthenticAMD" in processor.read_text("utf-8", "replace")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
