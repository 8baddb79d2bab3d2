"""What a model's weights take in memory, quantized or not."""

from __future__ import annotations

from typing import Any

import torch


def weight_bytes(model: Any) -> int:
    """Return the bytes of a model's weights in memory, each tensor once, with scales and statistics.

    transformers' `get_memory_footprint` counts torchao's tensors at their nominal dtype, and none of bitsandbytes'
    statistics.
    """
    seen: dict[int, int] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):
            if value is not None:
                _count(value, seen)
    return sum(seen.values())


def _count(value: torch.Tensor, seen: dict[int, int]) -> None:
    """Add the storage of a tensor, of the tensors inside it and of its statistics."""
    inner = [getattr(value, name) for name in _parts(value)]
    states = _tensors(getattr(value, "quant_state", None)) + [
        one for name in ("CB", "SCB") if (one := getattr(value, name, None)) is not None
    ]
    for part in (*inner, *states):
        _count(part, seen)
    if not inner:
        storage = value.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()


def _parts(value: Any) -> list[str]:
    """Return the names of the tensors that a tensor subclass consists of; none of a plain one."""
    if type(value) is torch.nn.Parameter or not hasattr(value, "__tensor_flatten__"):
        return []
    names: list[str] = value.__tensor_flatten__()[0]
    return names


def _tensors(state: Any) -> list[torch.Tensor]:
    """Return the tensors of a QuantState of bitsandbytes, those of its nested state included."""
    if state is None:
        return []
    own = [one for one in vars(state).values() if isinstance(one, torch.Tensor)]
    return own + _tensors(getattr(state, "state2", None))
