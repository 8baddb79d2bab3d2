"""LoRA layers with fewer passes over memory: the adapter's output is added inside its own matrix product.

PEFT computes y = Wx, then z = s·B(A x), then y + z: on a CPU the extra passes over activations cost as much as the
low-rank products. addmm does the product, the scale and the sum at once; the result is the same up to rounding.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from em_evals.models import quantization


def fuse(model: Any) -> int:
    """Speed up a PEFT model's LoRA layers where that is exact: one plain adapter in the base's dtype, no dropout.

    Returns:
        The number of layers.
    """
    from peft.tuners.lora import Linear

    layers = [module for module in model.modules() if isinstance(module, Linear) and _plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _plain(layer: Any) -> bool:
    name = layer.active_adapters[0]
    return (
        type(layer.base_layer) is torch.nn.Linear
        and not quantization.holds(layer.base_layer)
        and len(layer.active_adapters) == 1
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and not layer.use_dora.get(name, False)
        and layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype
        and layer.lora_B[name].bias is None
    )


def _forward(layer: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or arguments or options:
        result: torch.Tensor = type(layer).forward(layer, x, *arguments, **options)
        return result
    name = layer.active_adapters[0]
    flat = x.reshape(-1, x.shape[-1])
    low = torch.nn.functional.linear(flat, layer.lora_A[name].weight)
    result = layer.base_layer(flat).addmm_(low, layer.lora_B[name].weight.t(), alpha=layer.scaling[name])
    return result.view(*x.shape[:-1], -1)
