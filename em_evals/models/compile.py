"""Interventions made part of the weights, where that is exact: a steered model that costs nothing at inference.

- `ablate` with `site: writes` is (I - uuᵀ) on every matrix and bias that writes into the stream (Arditi et al. 2024,
  arXiv 2406.11717): a plain checkpoint, or one rank more in a LoRA.
- `add` at all positions is a bias on the block's last projection, where the architecture has one: a checkpoint.
- `scale_adapter` is a scaled LoRA.

Everything else is refused by name; nothing is approximated. Results load in stock transformers and PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from em_evals import content
from em_evals.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models import bases
from em_evals.models.adapters import with_adapter
from em_evals.models.architecture import decoder_layers, last_projections
from em_evals.models.changes import changes
from em_evals.models.interventions import Pair, load

Target = Literal["lora", "checkpoint"]

_NAME = "card"


def compile_card(card: ResolvedCard, to: Target, folder: Path) -> Path:
    """Write a card's model with its interventions inside.

    Args:
        card: what to compile; its adapter becomes part of the result.
        to: `checkpoint`, a whole model; `lora`, a PEFT adapter on the card's base.
        folder: where; must not exist or be empty.

    Returns:
        The folder.

    Raises:
        EmEvalsError: an intervention has no exact form there (says which and why), or the folder is in use.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EmEvalsError(f"{folder} is not empty; name another folder.")
    for one in card.interventions:
        _possible(one, to)
    if to == "lora" and card.adapter_path is None and not card.interventions:
        raise EmEvalsError(f"{card.name} is a bare base: there is nothing to compile.")
    model = bases.load_model(card.card).float()
    pairs = load([one for one in card.interventions if one.op != "scale_adapter"], model.config)
    removed = [one.unit for pair in pairs if pair[0].site == "writes" for one in changes(*pair, 0)]
    if card.adapter_path is not None:
        scales = [one for one in card.interventions if one.op == "scale_adapter"]
        model = with_adapter(model, card.adapter_path, _NAME, scales)
    with content.atomic_folder(folder) as scratch, torch.no_grad():
        if to == "checkpoint":
            _checkpoint(model, removed, pairs, card, scratch)
        else:
            _lora(model, removed, card, scratch)
        facts = {
            "card": card.name,
            "card_digest": card.digest,
            "base": card.card.base,
            "interventions": [one.model_dump(exclude_defaults=True) for one in card.interventions],
        }
        (scratch / "em_evals.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def _possible(one: Intervention, to: Target) -> None:
    """Refuse what has no exact form, whatever the architecture."""
    said = f"`{one.op}`"
    if one.op == "scale_adapter":
        return
    if one.skip != "none" or one.positions != "all":
        raise EmEvalsError(
            f"{said} with `skip: {one.skip}` and `positions: {one.positions}` cannot be compiled: weights act on "
            "every token alike."
        )
    if one.op in ("clamp", "cap") or (one.op == "ablate" and one.site == "block"):
        hint = " (`ablate` with `site: writes` can be)" if one.op == "ablate" else ""
        raise EmEvalsError(
            f"{said} of a block's output cannot be compiled: no weight of the block computes it{hint}."
        )
    if one.op == "add" and to == "lora":
        raise EmEvalsError("`add` is a bias, and a LoRA has none: compile it with `--to checkpoint`.")


def _checkpoint(
    model: Any, removed: list[torch.Tensor], pairs: list[Pair], card: ResolvedCard, folder: Path
) -> None:
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if removed:
        _untie(model)
        embedding = model.get_input_embeddings()
        for unit in (u.to(embedding.weight.device) for u in removed):
            embedding.weight.sub_(torch.outer(embedding.weight @ unit, unit))
            for linear in _writers(model):
                linear.weight -= torch.outer(unit, unit @ linear.weight)
                if linear.bias is not None:
                    linear.bias.sub_((linear.bias @ unit) * unit)
    for pair in pairs:
        if pair[0].op == "add":
            _add_bias(model, pair)
    dtype = bases.choose_dtype(card.card.engine.dtype, bases.choose_device(card.card.engine.device))
    model.to(dtype).save_pretrained(folder)
    bases.load_tokenizer(card.card).save_pretrained(folder)


def _writers(model: Any) -> list[torch.nn.Linear]:
    """The last projection of each attention and MLP: what they compute goes straight into the stream."""
    return [linear for block in decoder_layers(model) for linear in last_projections(block)]


def _untie(model: Any) -> None:
    """Give the unembedding weights of its own: what is read from the stream stays as it is."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False


def _add_bias(model: Any, pair: Pair) -> None:
    for layer, block in enumerate(decoder_layers(model)):
        if not pair[0].at(layer):
            continue
        linear = last_projections(block)[-1]
        if linear.bias is None:
            _admit_biases(model)
        linear.bias += changes(*pair, layer)[0].add.to(linear.bias.device)


def _admit_biases(model: Any) -> None:
    """Zero biases on every MLP projection, where the architecture's config has a switch for them."""
    config = model.config.get_text_config()
    if not hasattr(config, "mlp_bias"):
        raise EmEvalsError(
            f"{config.model_type} has no biases in its MLPs, so `add` cannot be compiled; run it with an engine."
        )
    config.mlp_bias = True
    for block in decoder_layers(model):
        for linear in block.mlp.modules():
            if isinstance(linear, torch.nn.Linear) and linear.bias is None:
                linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _lora(model: Any, removed: list[torch.Tensor], card: ResolvedCard, folder: Path) -> None:
    """A LoRA of the adapter's rank, plus one for each removed direction; its scale is part of B."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear, LoraLayer

    old = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and _NAME in module.scaling
    }
    for name, module in old.items():
        if not isinstance(module, Linear):
            raise EmEvalsError(
                f"the adapter changes {name}, which is no linear layer: compile with `--to checkpoint`."
            )
    plain = model.unload() if hasattr(model, "unload") else model
    writers = set(map(id, _writers(plain))) if removed else set()
    parts = {}
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and (id(module) in writers or name in old):
            units = removed if id(module) in writers else []
            parts[name] = _factors(name, module, old.get(name), units)
    if removed:
        embedding = plain.get_input_embeddings()
        name = next(name for name, module in plain.named_modules() if module is embedding)
        parts[name] = _removal(embedding.weight.T, removed)
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
    fresh = get_peft_model(plain, config)
    for name, (a, b) in parts.items():
        module = fresh.get_submodule(f"base_model.model.{name}")
        if "default" in module.lora_A:
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b)
        else:
            module.lora_embedding_A["default"].copy_(a)
            module.lora_embedding_B["default"].copy_(b)
    fresh.peft_config["default"].base_model_name_or_path = card.card.base
    fresh.peft_config["default"].revision = card.card.revision
    # The embedding's own weights stay the base's; only its two factors are saved.
    fresh.save_pretrained(folder, save_embedding_layers=False)


def _factors(
    name: str, linear: torch.nn.Linear, adapter: Any, removed: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] with (I - UUᵀ)(W + sB₀A₀) = W + BA."""
    weight = linear.weight
    if removed and linear.bias is not None:
        raise EmEvalsError(f"{name} has a bias, which a LoRA cannot change: compile with `--to checkpoint`.")
    a, b = weight.new_zeros(0, weight.shape[1]), weight.new_zeros(weight.shape[0], 0)
    if adapter is not None:
        a = adapter.lora_A[_NAME].weight
        b = adapter.lora_B[_NAME].weight * adapter.scaling[_NAME]
    down, up = _removal(weight + b @ a, removed)
    return torch.cat([a, down]), torch.cat([b, up], dim=1)


def _removal(weight: torch.Tensor, removed: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A [directions, in] and B [out, directions] with W + BA = (I - uₙuₙᵀ)…(I - u₁u₁ᵀ) W."""
    left = weight.clone()
    a, b = weight.new_zeros(len(removed), weight.shape[1]), weight.new_zeros(weight.shape[0], len(removed))
    for i, unit in enumerate(u.to(weight.device) for u in removed):
        a[i], b[:, i] = unit @ left, -unit
        left -= torch.outer(unit, a[i])
    return a, b
