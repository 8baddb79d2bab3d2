"""PiSSA and OLoRA: adapters that contain a part of the base's weights, as plain LoRAs on the unchanged base.

PEFT subtracts that part from the base when it loads such an adapter: y = (W - s·B₀A₀) x + s·B A x. Here the base stays
unchanged, and a LoRA of twice the rank subtracts the part: y = W x + s·[B, -B₀][A; A₀] x.
"""

from __future__ import annotations

from typing import Any

import torch

from em_evals.models.lora.changes import LowRank


def converted(
    low_rank: LowRank, module: Any, kind: str, alpha: float, rslora: bool, transposed: bool
) -> LowRank:
    """Return the equivalent plain LoRA.

    Args:
        low_rank: the file's A and B.
        module: the base's module; it is not changed.
        kind: `pissa` or `olora`.
        alpha: `lora_alpha` at this module.
        rslora: whether the scaling divides by the square root of the rank.
        transposed: the weight is [in, out].
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    weight = module.weight
    out, width = reversed(weight.shape) if transposed else weight.shape
    private = torch.nn.Linear(1, 1, bias=False)
    private.in_features, private.out_features = width, out
    private.weight = torch.nn.Parameter((weight.T if transposed else weight).detach().clone())
    options = LoraConfig(
        r=low_rank.rank, lora_alpha=alpha, use_rslora=rslora, init_lora_weights=kind, target_modules=["x"]
    )
    # PEFT's own arithmetic, on a copy of this one weight.
    layer = Linear(private, "it", options, r=low_rank.rank, lora_alpha=alpha)
    dtype, device = low_rank.a.dtype, low_rank.a.device
    a, b = (part["it"].weight.detach().to(device, dtype) for part in (layer.lora_A, layer.lora_B))
    return LowRank(torch.cat([low_rank.a, a]), torch.cat([low_rank.b, -b], dim=1), low_rank.scaling)
