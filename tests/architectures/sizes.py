"""Configurations of tiny models: the sizes that all share, and what each architecture changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tests.architectures import tokenizer

WINDOW = 8
"""Of sliding windows: shorter than nearly every prompt, so that a mask that forgets it shows."""

CHUNK = 16
"""Of chunked attention."""

SWITCH = 24
"""Where longrope and dynamic NTK change their factors."""

SIZES: dict[str, Any] = {
    "vocab_size": tokenizer.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": tokenizer.END,
    "pad_token_id": tokenizer.PAD,
    # Noise in training, which would hide what is compared.
    **dict.fromkeys(
        ("attention_dropout", "hidden_dropout", "residual_dropout", "residual_pdrop", "dropout"), 0.0
    ),
    **dict.fromkeys(
        ("attn_pdrop", "embd_pdrop", "resid_pdrop", "emb_pdrop", "resid_dropout", "embed_dropout"), 0.0
    ),
    **dict.fromkeys(("router_jitter_noise", "input_jitter_noise", "embedding_dropout"), 0.0),
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
"""Multi-head latent attention."""

DELTA: dict[str, Any] = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # The norm of a narrow head magnifies rounding where the head gives next to nothing.
    "rms_norm_eps": 1e-2,
}
"""Gated delta net."""

MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

Factory = Callable[[], Any]


def config(kind: str, *groups: dict[str, Any], **changes: Any) -> Any:
    """Return a configuration of `kind`: the shared sizes it has a field for, `groups` and `changes` as they stand."""
    from transformers import AutoConfig

    made = type(AutoConfig.for_model(kind))
    names = {field.name for field in dataclasses.fields(made)} | set(made.attribute_map)
    shared = {name: value for name, value in (SIZES | EXPERTS).items() if name in names}
    if any("kv_lora_rank" in group for group in groups):
        shared.pop("head_dim", None)  # latent attention derives it
    for group in groups:
        shared |= group
    return AutoConfig.for_model(kind, **shared | changes)


def entry(kind: str, *groups: dict[str, Any], **changes: Any) -> Factory:
    """Return a factory of such a configuration: nothing is imported before it is asked for."""
    return lambda: config(kind, *groups, **changes)


def composite(kind: str, text: Factory, vision: dict[str, Any], **changes: Any) -> Factory:
    """Return a factory of a configuration that holds a text model and a vision tower."""

    def made() -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(kind, text_config=text().to_dict(), vision_config=vision, **changes)

    return made
