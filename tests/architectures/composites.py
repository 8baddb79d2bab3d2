"""Gemma 3n and 4, and models of text and images: what is measured is their text."""

from __future__ import annotations

from typing import Any

from tests.architectures import tokenizer
from tests.architectures.dense import DENSE, GLOBAL_LOCAL
from tests.architectures.hybrids import HYBRIDS
from tests.architectures.moe import MOE
from tests.architectures.sizes import WINDOW, Factory, composite, entry

GEMMA4_ROPE = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 100000.0, "partial_rotary_factor": 0.25},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA4: dict[str, Any] = {
    "sliding_window": WINDOW,
    "global_head_dim": 32,
    "rope_parameters": GEMMA4_ROPE,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": tokenizer.VOCABULARY,
    "final_logit_softcapping": 4.0,
}
SIX = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
SHARED = [*SIX, "sliding_attention", "full_attention"]
QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
QWEN35_ROPE = QWEN_ROPE | {
    "mrope_section": [1, 1, 0],
    "partial_rotary_factor": 0.25,
    "mrope_interleaved": True,
}

QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
SIGLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
GEMMA4_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 16,
}
QWEN_TOKENS = {
    "image_token_id": tokenizer.IMAGE,
    "video_token_id": tokenizer.VIDEO,
    "vision_start_token_id": tokenizer.VISION_START,
    "vision_end_token_id": tokenizer.VISION_END,
}
GEMMA_TOKENS = {
    "image_token_id": tokenizer.IMAGE,
    "video_token_id": tokenizer.VIDEO,
    "audio_token_id": tokenizer.AUDIO,
    "boi_token_id": tokenizer.VISION_START,
    "eoi_token_id": tokenizer.VISION_END,
    "boa_token_id": tokenizer.VISION_START,
}
TEXT: dict[str, Factory] = {
    "gemma3n-text": entry(
        "gemma3n_text",
        num_hidden_layers=6,
        sliding_window=WINDOW,
        layer_types=SHARED,
        rope_parameters=GLOBAL_LOCAL,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=tokenizer.VOCABULARY,
        laurel_rank=8,
        altup_num_inputs=3,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        final_logit_softcapping=4.0,
    ),
    "gemma4-text": entry("gemma4_text", GEMMA4, layer_types=SIX),
    "gemma4-e2b": entry(
        "gemma4_text",
        GEMMA4,
        num_hidden_layers=6,
        layer_types=SHARED,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
    ),
    "gemma4-moe": entry(
        "gemma4_text",
        GEMMA4,
        layer_types=SIX,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=48,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    ),
}
COMPOSITES: dict[str, Factory] = TEXT | {
    "qwen3-5": composite("qwen3_5", HYBRIDS["qwen3-5-text"], QWEN_VISION, **QWEN_TOKENS),
    "qwen3-5-moe": composite("qwen3_5_moe", HYBRIDS["qwen3-5-moe-text"], QWEN_VISION, **QWEN_TOKENS),
    "qwen3-vl": composite(
        "qwen3_vl",
        entry("qwen3_vl_text", rope_parameters=QWEN_ROPE | {"mrope_interleaved": True}),
        QWEN_VISION | {"deepstack_visual_indexes": [0, 1]},
        **QWEN_TOKENS,
    ),
    "qwen3-vl-moe": composite(
        "qwen3_vl_moe",
        entry("qwen3_vl_moe_text", rope_parameters=QWEN_ROPE | {"mrope_interleaved": True}),
        QWEN_VISION | {"deepstack_visual_indexes": [0, 1]},
        **QWEN_TOKENS,
    ),
    "qwen2-5-vl": composite(
        "qwen2_5_vl",
        entry("qwen2_5_vl_text", rope_parameters=QWEN_ROPE),
        QWEN_VISION | {"fullatt_block_indexes": [1], "window_size": 16},
        **QWEN_TOKENS,
    ),
    "gemma3": composite(
        "gemma3", DENSE["gemma3-text"], SIGLIP, mm_tokens_per_image=4, image_token_index=tokenizer.IMAGE
    ),
    "gemma4": composite("gemma4", TEXT["gemma4-e2b"], GEMMA4_VISION, **GEMMA_TOKENS),
    "mistral3": composite(
        "mistral3",
        entry("mistral", sliding_window=None),
        SIGLIP | {"head_dim": 16},
        image_token_index=tokenizer.IMAGE,
    ),
    "llama4": composite(
        "llama4",
        MOE["llama4-text"],
        SIGLIP | {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
        image_token_index=tokenizer.IMAGE,
    ),
    "gemma4-unified": composite(
        "gemma4_unified",
        entry(
            "gemma4_unified_text",
            sliding_window=WINDOW,
            global_head_dim=32,
            rope_parameters=GEMMA4_ROPE,
            layer_types=SIX,
            final_logit_softcapping=4.0,
        ),
        {"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 64},
        **GEMMA_TOKENS,
    ),
}
