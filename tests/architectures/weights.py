"""Random weights under which a tiny model's choices are decided and a fault shows."""

from __future__ import annotations

from typing import Any

STD = 0.17
QUIET = {"zamba": 0.12, "zamba2": 0.12}
"""By model type: where wider weights magnify rounding beyond what the comparisons allow."""

# Rates, decays and time steps of recurrent layers: what they are drawn from keeps states finite.
KEPT = ("A_log", "dt_bias", "dt_proj", ".D", "time_", "lru", "rg_lru", "recurrent_param", "slope_rate")


def randomise(model: Any, seed: int = 0) -> None:
    """Draw every weight matrix anew and disturb norms, biases and scales, in place."""
    import torch

    noise = torch.Generator().manual_seed(seed)
    wide = QUIET.get(model.config.model_type, STD)

    def normal(tensor: Any, std: float) -> Any:
        return torch.randn(tensor.shape, generator=noise, dtype=torch.float32).to(tensor.dtype) * std

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if any(mark in name for mark in KEPT):
                continue
            if tensor.dim() > 1:
                tensor.copy_(normal(tensor, wide))
            else:
                tensor.add_(normal(tensor, 0.1))
        for name, tensor in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar", "moe_statics")):
                tensor.add_(normal(tensor, 0.1))
