"""Transformers with mixtures of experts, without recurrent layers."""

from __future__ import annotations

from tests.architectures.dense import LAST_FULL, MULTIPLIERS, SLIDING, longrope
from tests.architectures.sizes import CHUNK, LATENT, SWITCH, WINDOW, Factory, entry

DENSE_FIRST = ["dense", "sparse", "sparse", "sparse"]
ROUTED = {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 1.7}
# With few heads the scores of many tokens are exactly 0, and which of them are taken is chance.
INDEXED = {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 16}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}

MOE: dict[str, Factory] = {
    "qwen2-moe": entry("qwen2_moe"),
    "qwen3-moe": entry("qwen3_moe", norm_topk_prob=True, mlp_only_layers=[1]),
    "gpt-oss": entry("gpt_oss", sliding_window=WINDOW, rope_parameters=GPT_OSS_ROPE, swiglu_limit=1.0),
    "llama4-text": entry(
        "llama4_text",
        intermediate_size_mlp=96,
        intermediate_size=48,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 1, 0, 1],
        attention_chunk_size=CHUNK,
        floor_scale=8,
        attn_scale=0.3,
    ),
    "mixtral": entry("mixtral", sliding_window=None),
    "mixtral-window": entry("mixtral", sliding_window=WINDOW),
    "phimoe": entry("phimoe", sliding_window=None, attention_bias=True, lm_head_bias=True),
    "phimoe-longrope": entry(
        "phimoe",
        sliding_window=WINDOW,
        rope_parameters=longrope(16)
        | {"short_mscale": 1.2, "long_mscale": 1.3, "original_max_position_embeddings": SWITCH},
    ),
    "granitemoe": entry("granitemoe", MULTIPLIERS),
    "granitemoe-shared": entry("granitemoeshared", MULTIPLIERS, shared_intermediate_size=48),
    "olmoe": entry("olmoe", norm_topk_prob=True),
    "flex-olmo": entry("flex_olmo"),
    "glm4-moe": entry("glm4_moe", ROUTED, use_qk_norm=True),
    "glm4-moe-lite": entry("glm4_moe_lite", LATENT, ROUTED, mlp_layer_types=DENSE_FIRST),
    "deepseek-v2": entry(
        "deepseek_v2",
        LATENT,
        first_k_dense_replace=1,
        n_shared_experts=1,
        topk_method="group_limited_greedy",
        n_group=2,
        topk_group=1,
    ),
    "deepseek-v3": entry("deepseek_v3", LATENT, ROUTED, first_k_dense_replace=1, n_group=2, topk_group=1),
    "deepseek-v32": entry("deepseek_v32", LATENT, ROUTED, INDEXED, mlp_layer_types=DENSE_FIRST),
    "glm-moe-dsa": entry("glm_moe_dsa", LATENT, ROUTED, INDEXED, mlp_layer_types=DENSE_FIRST),
    "minimax-m2": entry("minimax_m2"),
    "longcat-flash": entry(
        "longcat_flash",
        LATENT,
        head_dim=8,
        num_layers=2,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=48,
        moe_topk=2,
        zero_expert_num=2,
        routed_scaling_factor=1.7,
    ),
    "ernie4-5-moe": entry(
        "ernie4_5_moe", moe_k=2, moe_num_experts=4, moe_num_shared_experts=1, moe_layer_end_index=3
    ),
    "exaone-moe": entry(
        "exaone_moe",
        sliding_window=WINDOW,
        layer_types=LAST_FULL,
        mlp_layer_types=DENSE_FIRST,
        num_shared_experts=1,
        routed_scaling_factor=1.7,
    ),
    "hunyuan-moe": entry("hunyuan_v1_moe", moe_topk=2),
    "dots1": entry(
        "dots1",
        ROUTED,
        first_k_dense_replace=1,
        sliding_window=WINDOW,
        max_window_layers=2,
        layer_types=SLIDING,
    ),
    "jetmoe": entry("jetmoe", num_key_value_heads=2, kv_channels=16, num_attention_heads=4),
    "dbrx": entry(
        "dbrx",
        d_model=64,
        n_heads=4,
        n_layers=4,
        max_seq_len=512,
        attn_config={"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 10000.0},
        ffn_config={"hidden_size": 64, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "afmoe": entry(
        "afmoe",
        sliding_window=WINDOW,
        layer_types=SLIDING,
        num_shared_experts=1,
        route_scale=1.7,
        mup_enabled=True,
    ),
    "mimo-v2-flash": entry(
        "mimo_v2_flash",
        sliding_window=WINDOW,
        layer_types=LAST_FULL,
        mlp_layer_types=DENSE_FIRST,
        v_head_dim=8,
        routed_scaling_factor=1.7,
    ),
    "solar-open": entry("solar_open", ROUTED),
    "mistral4": entry("mistral4", LATENT, ROUTED),
}
