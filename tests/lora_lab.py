"""Tiny random bases and PEFT adapters of every kind, with PEFT alone as the reference."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "head_dim": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "tie_word_embeddings": False},
    "llama-tied": {**SIZES, "tie_word_embeddings": True},
    "qwen2": {**SIZES, "tie_word_embeddings": False},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 64},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "qwen3_moe": {**SIZES, **MOE},
    "mixtral": {**SIZES, **MOE},
    "deepseek_v3": {
        **SIZES, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "gpt_oss": {**SIZES, **MOE, "sliding_window": 64},
    "llama4_text": {
        **SIZES, "head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48,
        "attention_chunk_size": 64, "pad_token_id": 0,
    },
    "gemma4_text": {
        **SIZES, "head_dim": 8, "global_head_dim": 8, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 24, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 64,
    },
}  # fmt: skip


@cache
def base(kind: str) -> Any:
    """A random base whose greedy choices are decided. Shared: nothing may change it, which tests check."""
    return fresh(kind)


@cache
def _untouched(kind: str) -> Any:
    """What bases are copied from; nobody else has it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.partition("-")[0], **KINDS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.15 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


_MADE: dict[str, dict[str, bytes]] = {}
"""The files of adapters that were made, by kind, seed and options: most tests ask for one that another had."""


def adapter(kind: str, folder: Path, seed: int = 1, **options: Any) -> Path:
    """An adapter that PEFT makes and saves, everything in it that can be trained moved at random."""
    key = repr((kind, seed, options))
    if key not in _MADE:
        _make(kind, folder, seed, options)
        _MADE[key] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _MADE[key].items():
        (folder / name).write_bytes(content)
    return folder


def _make(kind: str, folder: Path, seed: int, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **options})
        model = get_peft_model(fresh(kind), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Float32 log-probabilities at every position."""
    return model(input_ids=ids).logits.float().log_softmax(-1)


def with_peft(kind: str, folder: Path) -> Any:
    """PEFT's own model of an adapter, on a base of its own."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(fresh(kind), folder).eval()


def fresh(kind: str) -> Any:
    """A base that no hook of a test's bank hangs on."""
    return copy.deepcopy(_untouched(kind))


def ids(rows: int = 4, tokens: int = 7) -> torch.Tensor:
    """Random prompts; the same for everybody."""
    return torch.randint(1, 96, (rows, tokens), generator=torch.Generator().manual_seed(5))
