"""A card as a plain LoRA on its base: the adapter's own, with one additional rank for each ablated direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from em_evals.content.cards import ModelCard
from em_evals.errors import EmEvalsError
from em_evals.models.architecture import decoder_layers, embeddings, last_projections
from em_evals.models.lora.changes import LowRankEmbedding
from em_evals.models.lora.parts import Parts

_Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A [rank, in] and B [out, rank] of each module, with the scale in B; an embedding's `in` is its vocabulary."""


def write(
    model: Any, adapter: Parts | None, removed: Sequence[torch.Tensor], card: ModelCard, folder: Path
) -> None:
    """Save one adapter that has the effect of all of this.

    Args:
        model: the base in float32; it is wrapped in PEFT.
        adapter: the card's own.
        removed: unit vectors that are ablated from everything that is written into the stream, in this order.
        card: names the base.
        folder: where.

    Raises:
        EmEvalsError: the adapter has more than plain LoRAs, or a direction must be ablated where a LoRA cannot do it.
    """
    from peft import LoraConfig, get_peft_model

    parts = _factors(adapter) if adapter is not None else {}
    if removed:
        parts |= _removals(model, parts, removed)
    ranks = {name: len(a) for name, (a, _) in parts.items()}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(parts),
    )
    try:
        fresh = get_peft_model(model, config)
    except (ValueError, TypeError) as error:  # PEFT has LoRAs for some kinds of modules only
        raise EmEvalsError(
            f"PEFT makes no LoRA of this ({' '.join(str(error).split())[:200]}): compile with `--to checkpoint`."
        ) from None
    for name, (a, b) in parts.items():
        module = fresh.get_submodule(f"base_model.model.{name}")
        if "default" in module.lora_A:
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
        else:
            module.lora_embedding_A["default"].copy_(a)
            module.lora_embedding_B["default"].copy_(b)
    fresh.peft_config["default"].base_model_name_or_path = card.base
    fresh.peft_config["default"].revision = card.revision
    # The embedding's own weights stay the base's; only its two factors are saved.
    fresh.save_pretrained(folder, save_embedding_layers=False)


def _factors(adapter: Parts) -> _Factors:
    """Return the adapter's own matrices, by module."""
    for piece in adapter.fit.beyond():
        plain_embedding = piece.what == "embedding" and "magnitude" not in piece.keys
        if not plain_embedding:
            words = "DoRA on the embedding" if piece.what == "embedding" else piece.words
            raise EmEvalsError(
                f"the adapter has {words}, which a plain LoRA does not hold: compile with `--to checkpoint`."
            )
    low_ranks: dict[str, Any] = dict(adapter.low_ranks)
    for name, parts in adapter.changes.items():
        for one in parts:
            if isinstance(one, LowRankEmbedding):
                low_ranks[name] = one
    return {name: (one.a, one.b * one.scaling) for name, one in low_ranks.items()}


def _removals(model: Any, parts: _Factors, removed: Sequence[torch.Tensor]) -> _Factors:
    """Return the factors of every module that writes: the adapter's own, and those that ablate the directions."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for embedding in embeddings(model):
        name = names[id(embedding)]
        found[name] = _without(embedding.weight.T, parts.get(name), removed)
    for block in decoder_layers(model):
        for module in last_projections(block):
            name = names[id(module)]
            if not isinstance(module, torch.nn.Linear | Conv1D):
                raise EmEvalsError(
                    f"{name} holds experts, which no plain LoRA changes: compile with `--to checkpoint`."
                )
            if module.bias is not None:
                raise EmEvalsError(
                    f"{name} has a bias, which a LoRA cannot change: compile with `--to checkpoint`."
                )
            matrix = module.weight.T if isinstance(module, Conv1D) else module.weight
            found[name] = _without(matrix, parts.get(name), removed)
    return found


def _without(
    weight: torch.Tensor, own: tuple[torch.Tensor, torch.Tensor] | None, removed: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute A [rank, in] and B [out, rank] with (I - UUᵀ)(W + B₀A₀) = W + BA."""
    a, b = own or (weight.new_zeros(0, weight.shape[1]), weight.new_zeros(weight.shape[0], 0))
    down, up = _removal(weight + b @ a, removed)
    return torch.cat([a, down]), torch.cat([b, up], dim=1)


def _removal(weight: torch.Tensor, removed: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute A [directions, in] and B [out, directions] with W + BA = (I - uₙuₙᵀ)…(I - u₁u₁ᵀ) W."""
    left = weight.clone()
    a, b = weight.new_zeros(len(removed), weight.shape[1]), weight.new_zeros(weight.shape[0], len(removed))
    # Each step removes u (uᵀ W') from what the earlier steps left: one rank, A = uᵀ W' and B = -u.
    for i, unit in enumerate(u.to(weight.device) for u in removed):
        a[i], b[:, i] = unit @ left, -unit
        left -= torch.outer(unit, a[i])
    return a, b
