"""Patches for layers of transformers whose decoding step disagrees with their pass over a whole text.

A score is computed by one forward pass over a text, a draw token by token from a cache. Both must be the same model.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def patch(model: Any) -> None:
    """Patch the layers of a model that are known to need it; all others are left unchanged.

    Mamba 2 layers clamp their time steps, softplus(dt + dt_bias), to `time_step_limit` in a pass over a text, but not
    when they continue from a state (transformers 5.19; it matters in Nemotron-H and Zamba 2, whose lower limit is
    `time_step_min`). Clamping dt itself, where the layer projects it, acts on both, and does not change what is already
    clamped.
    """
    for module in model.modules():
        limit = getattr(module, "time_step_limit", None)
        if limit is None or not hasattr(module, "dt_bias") or not hasattr(module, "in_proj"):
            continue
        low, high = (float(bound) for bound in limit)
        if low > 0 or math.isfinite(high):
            module.in_proj.register_forward_hook(_clamp(module.dt_bias, low, high))


def _clamp(bias: torch.Tensor, low: float, high: float) -> Any:
    """Return a hook on a projection whose last outputs are dt, one for each head."""
    # The inverse of softplus: log(exp(x) - 1).
    least = math.log(math.expm1(low)) if low > 0 else -math.inf
    most = math.log(math.expm1(high)) if math.isfinite(high) else math.inf

    def hook(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        heads = bias.shape[0]
        steps = output[..., -heads:].float() + bias.float()
        clamped = steps.clamp(least, most) - bias.float()
        return torch.cat([output[..., :-heads], clamped.to(output.dtype)], dim=-1)

    return hook
