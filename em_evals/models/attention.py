"""PyTorch attention that decodes grouped queries without copying keys and values.

With grouped-query attention several query heads share one key-value head. transformers repeats keys and values
for each of them at every step when there is a mask. For a single new token the heads of a group can be placed in the
query's length dimension instead, and nothing is copied. Prefill uses transformers' own function unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "em_evals_sdpa"


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with transformers' attention interface.

    Args:
        module: the attention module.
        query: [rows, heads, new, width].
        key: [rows, kv heads, all, width].
        value: as `key`.
        attention_mask: [rows, 1, new, all], or None.
        dropout: probability; prefill only.
        scaling: of the scores; None for 1 / sqrt(width).
        **kwargs: passed on to transformers' SDPA.

    Returns:
        The output [rows, new, heads, width], and no weights.
    """
    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    if new != 1 or heads == kv_heads or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.view(rows, kv_heads, heads // kv_heads, width)
    if attention_mask is not None:
        attention_mask = attention_mask.expand(-1, -1, grouped.shape[2], -1)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(rows, heads, 1, width).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
