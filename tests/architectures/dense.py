"""Transformers with dense MLPs, without recurrent layers."""

from __future__ import annotations

from tests.architectures.sizes import SWITCH, WINDOW, Factory, entry
from tests.architectures.tokenizer import START

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
GLOBAL_LOCAL = {
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
LAST_FULL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
}


def longrope(rotated: int) -> dict[str, object]:
    """Rope of Phi-3-mini-128k for `rotated` dimensions: other factors beyond the switch, and a scaled attention."""
    half = rotated // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * number for number in range(half)],
        "long_factor": [2.0 + 1.5 * number for number in range(half)],
    }


DENSE: dict[str, Factory] = {
    "llama": entry("llama"),
    "llama-tied-bias": entry("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-llama3-rope": entry("llama", rope_parameters=LLAMA3),
    "llama-dynamic-ntk": entry("llama", rope_parameters=DYNAMIC, max_position_embeddings=SWITCH),
    "llama-yarn": entry("llama", rope_parameters=YARN),
    "qwen2": entry("qwen2"),
    "qwen2-window": entry("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen3": entry("qwen3"),
    "gemma": entry("gemma"),
    "gemma2": entry(
        "gemma2",
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3-text": entry(
        "gemma3_text",
        sliding_window=WINDOW,
        query_pre_attn_scalar=24,
        layer_types=SLIDING,
        rope_parameters=GLOBAL_LOCAL,
    ),
    "vaultgemma": entry(
        "vaultgemma",
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0,
    ),
    "mistral": entry("mistral", sliding_window=None),
    "mistral-window": entry("mistral", sliding_window=WINDOW),
    "ministral": entry("ministral", sliding_window=WINDOW, layer_types=LAST_FULL),
    "ministral3": entry(
        "ministral3",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": SWITCH,
            "max_position_embeddings": 192,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    "phi": entry("phi", num_key_value_heads=4),
    "phi3": entry("phi3", sliding_window=None),
    "phi3-window": entry("phi3", sliding_window=WINDOW),
    "phi3-longrope": entry(
        "phi3",
        sliding_window=None,
        original_max_position_embeddings=SWITCH,
        rope_parameters=longrope(16),
    ),
    "phi4-mini": entry(
        "phi3",
        sliding_window=None,
        tie_word_embeddings=True,
        original_max_position_embeddings=SWITCH,
        rope_parameters=longrope(12) | {"partial_rotary_factor": 0.75},
    ),
    "granite": entry("granite", MULTIPLIERS),
    "granite-swa": entry("granite_swa", MULTIPLIERS, sliding_window=WINDOW, layer_types=LAST_FULL),
    "nemotron": entry("nemotron"),
    "olmo": entry("olmo", clip_qkv=1.5),
    "olmo2": entry("olmo2"),
    "olmo3": entry("olmo3", sliding_window=WINDOW, layer_types=SLIDING),
    "glm": entry("glm"),
    "glm4": entry("glm4"),
    "ernie4-5": entry("ernie4_5"),
    "exaone4": entry("exaone4", sliding_window=WINDOW, layer_types=LAST_FULL),
    "cohere": entry("cohere", logit_scale=0.7, use_qk_norm=True),
    "cohere2": entry("cohere2", logit_scale=0.7, sliding_window=WINDOW, layer_types=LAST_FULL),
    "starcoder2-window": entry("starcoder2", sliding_window=WINDOW),
    "smollm3": entry("smollm3", no_rope_layers=[1, 1, 0, 1]),
    "seed-oss": entry("seed_oss"),
    "stablelm": entry("stablelm", use_qkv_bias=True),
    "stablelm-parallel": entry("stablelm", use_parallel_residual=True, qk_layernorm=True),
    "gpt2": entry("gpt2", n_inner=96),
    "gpt-neo": entry("gpt_neo", attention_types=[[["global", "local"], 2]], num_layers=4, window_size=WINDOW),
    "gpt-neox": entry("gpt_neox"),
    "gpt-neox-serial": entry("gpt_neox", use_parallel_residual=False),
    "gptj": entry("gptj", rotary_dim=8),
    "gpt-bigcode": entry("gpt_bigcode"),
    "opt": entry("opt", ffn_dim=96, word_embed_proj_dim=64),
    "bloom": entry("bloom"),
    "mpt": entry("mpt", d_model=64, n_heads=4, n_layers=4, expansion_ratio=2, max_seq_len=512),
    "falcon": entry("falcon", ffn_hidden_size=96),
    "falcon-new": entry("falcon", ffn_hidden_size=96, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": entry("falcon", ffn_hidden_size=96, alibi=True, parallel_attn=False, multi_query=False),
    "hunyuan-dense": entry("hunyuan_v1_dense"),
    "arcee": entry("arcee"),
    "apertus": entry("apertus"),
    "helium": entry("helium"),
    "persimmon": entry("persimmon"),
    "nanochat": entry("nanochat", final_logit_softcapping=4.0),
    "diffllama": entry("diffllama"),
    "bitnet": entry("bitnet"),
    "cwm": entry(
        "cwm", bos_token_id=START, sliding_window=WINDOW, layer_types=LAST_FULL, rope_parameters=LLAMA3
    ),
    "minicpm3": entry(
        "minicpm3",
        {
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        num_key_value_heads=4,
        scale_emb=3.0,
        scale_depth=1.4,
        dim_model_base=32,
    ),
}
