"""LoRA layers with fewer passes over memory: the adapter's output is added inside its own matrix product.

PEFT computes y = Wx, then z = s·B(A x), then y + z: on a CPU the extra passes over activations cost as much as the
low-rank products. addmm does the product, the scale and the sum at once; the result is the same up to rounding. In a
bfloat16 base PEFT also keeps a float32 copy of every layer's input for the gradient of its float32 adapter; here the
input itself is kept, and converted again.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from em_evals.models import quantization


def fuse(model: Any) -> int:
    """Speed up a PEFT model's LoRA layers where that is exact: one plain adapter, no dropout.

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
        and layer.lora_A[name].weight.dtype in (layer.base_layer.weight.dtype, torch.float32)
        and layer.lora_B[name].bias is None
    )


def _forward(layer: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    name = layer.active_adapters[0]
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    converts = a.dtype != x.dtype
    if (
        layer.disable_adapters
        or layer.merged
        or arguments
        or options
        or (
            converts
            and (x.dtype != layer.base_layer.weight.dtype or torch.is_autocast_enabled(x.device.type))
        )
    ):
        result: torch.Tensor = type(layer).forward(layer, x, *arguments, **options)
        return result
    flat = x.reshape(-1, x.shape[-1])
    if converts:
        result = _Converted.apply(layer.base_layer(flat), flat, a, b, scale)
    else:
        low = torch.nn.functional.linear(flat, a)
        result = layer.base_layer(flat).addmm_(low, b.t(), alpha=scale)
    return result.view(*x.shape[:-1], -1)


class _Converted(torch.autograd.Function):
    """y + s·B(A x) with the adapter in float32, and x [rows, in] and y [rows, out] in another dtype.

    The gradients are those of converting x, adding in float32 and converting the sum.
    """

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        low = torch.nn.functional.linear(x.to(a.dtype), a)
        ctx.save_for_backward(x, low, a, b)
        ctx.scale = scale
        return torch.addmm(y.to(a.dtype), low, b.t(), alpha=scale).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, low, a, b = ctx.saved_tensors
        wide = grad.to(a.dtype) * ctx.scale
        into = wide @ b
        of_x = (into @ a).to(x.dtype) if ctx.needs_input_grad[1] else None
        return grad, of_x, into.t() @ x.to(a.dtype), wide.t() @ low, None
