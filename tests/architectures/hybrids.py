"""Models with recurrent or convolution layers, alone or beside attention."""

from __future__ import annotations

from tests.architectures.dense import MULTIPLIERS
from tests.architectures.moe import DENSE_FIRST
from tests.architectures.sizes import DELTA, LATENT, MAMBA2, Factory, entry

LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
CONV = ["conv", "full_attention", "conv", "full_attention"]
# transformers clamps time steps from below in prefills only: a bound that is not reached keeps decoding equal to them.
UNCLAMPED = {"time_step_min": 1e-5}
MAMBA1 = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}

HYBRIDS: dict[str, Factory] = {
    "qwen3-next": entry("qwen3_next", DELTA, layer_types=LINEAR, mlp_only_layers=[1]),
    "qwen3-5-text": entry("qwen3_5_text", DELTA, layer_types=LINEAR),
    "qwen3-5-moe-text": entry("qwen3_5_moe_text", DELTA, layer_types=LINEAR),
    "granite4": entry(
        "granitemoehybrid", MAMBA2, MULTIPLIERS, shared_intermediate_size=48, layer_types=LINEAR
    ),
    "granite4-dense": entry(
        "granitemoehybrid",
        MAMBA2,
        MULTIPLIERS,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=96,
        layer_types=LINEAR,
        position_embedding_type="rope",
    ),
    "falcon-h1": entry(
        "falcon_h1",
        MAMBA2,
        mamba_d_ssm=128,
        lm_head_multiplier=0.7,
        embedding_multiplier=3.0,
        mlp_multipliers=[0.8, 0.6],
        key_multiplier=0.7,
        attention_out_multiplier=0.6,
        attention_in_multiplier=0.9,
        ssm_multipliers=[0.9, 0.8, 0.7, 0.6, 0.5],
        ssm_in_multiplier=0.8,
        ssm_out_multiplier=0.7,
    ),
    "nemotron-h": entry(
        "nemotron_h",
        UNCLAMPED,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
        num_hidden_layers=5,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
        use_mamba_kernels=False,
        moe_shared_expert_intermediate_size=48,
        routed_scaling_factor=1.7,
    ),
    "lfm2": entry("lfm2", layer_types=CONV, block_multiple_of=16),
    "lfm2-moe": entry("lfm2_moe", layer_types=CONV, num_dense_layers=1),
    "bamba": entry("bamba", MAMBA2, attn_layer_indices=[1, 3]),
    "jamba": entry("jamba", MAMBA1, attn_layer_period=2, attn_layer_offset=1),
    "zamba": entry(
        "zamba",
        MAMBA1,
        layers_block_type=["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        num_hidden_layers=5,
        attention_hidden_size=128,
        attention_head_dim=32,
        num_key_value_heads=4,
    ),
    "zamba2": entry(
        "zamba2",
        UNCLAMPED,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=16,
        n_mamba_heads=8,
        mamba_ngroups=1,
        chunk_size=8,
        use_mamba_kernels=False,
        num_key_value_heads=4,
        num_mem_blocks=1,
        adapter_rank=8,
        use_shared_attention_adapter=True,
        use_mem_rope=True,
        head_dim=32,
    ),
    "olmo-hybrid": entry("olmo_hybrid", DELTA, layer_types=LINEAR, linear_num_key_heads=4),
    "minimax": entry(
        "minimax",
        layer_types=LINEAR,
        block_size=8,
        full_attn_alpha_factor=1.3,
        full_attn_beta_factor=0.7,
        linear_attn_alpha_factor=1.2,
        linear_attn_beta_factor=0.8,
        mlp_alpha_factor=0.9,
        mlp_beta_factor=0.6,
    ),
    "kimi-linear": entry(
        "kimi_linear",
        LATENT,
        q_lora_rank=None,
        num_shared_experts=1,
        num_experts_per_token=2,
        layer_types=LINEAR,
        mlp_layer_types=DENSE_FIRST,
        linear_head_dim=16,
        linear_num_heads=4,
    ),
    "recurrent-gemma": entry(
        "recurrent_gemma", lru_width=64, attention_window_size=8, logits_soft_cap=4.0, num_key_value_heads=1
    ),
    "mamba": entry("mamba", state_size=8, time_step_rank=4),
    "mamba2": entry("mamba2", state_size=16, num_heads=8, head_dim=16, n_groups=2, chunk_size=8),
    "falcon-mamba": entry("falcon_mamba", state_size=8, time_step_rank=4),
    "rwkv": entry("rwkv", attention_hidden_size=64, context_length=512, rescale_every=0),
    "xlstm": entry("xlstm", num_heads=4, chunk_size=8, num_blocks=4, embedding_dim=64),
}
