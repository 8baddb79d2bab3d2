"""Compile interventions into the weights, where that is exact: a steered model without cost at inference.

- `ablate` with `site: writes` is (I - U Uᵀ) on every matrix and bias that writes into the stream (Arditi et al. 2024,
  arXiv 2406.11717): a plain checkpoint, or one additional rank in a LoRA for each direction.
- `add` at all positions is a bias on the block's last projection, where the architecture has one: a checkpoint.
- `scale_adapter` is a scaled LoRA.

Everything else is refused by name. The result is proved before it is moved into place: the model with hooks, the
compiled model in memory, and the written folder, loaded from disk by stock transformers and PEFT, must give the same
log-probabilities in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from em_evals import files
from em_evals.content.cards import ModelCard, ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.errors import EmEvalsError
from em_evals.models import bases, compiled_checkpoint, compiled_lora, invariants, quantization
from em_evals.models.changes import changes
from em_evals.models.chat import own
from em_evals.models.intervention_tables import Rows
from em_evals.models.interventions import Pair, Steering, load
from em_evals.models.lora import Bank
from em_evals.models.lora.fit import Fit
from em_evals.models.lora.parts import Parts
from em_evals.models.lora.parts import load as load_parts

Target = Literal["lora", "checkpoint"]


def compile_card(card: ResolvedCard, to: Target, folder: Path) -> Path:
    """Write a card's model with its interventions compiled into the weights.

    Args:
        card: what to compile; its adapter becomes part of the result.
        to: `checkpoint`, a whole model; `lora`, a PEFT adapter on the card's base.
        folder: where; must not exist or be empty.

    Returns:
        The folder.

    Raises:
        EmEvalsError: an intervention or an option of the adapter has no exact form there (says which and why), the
            result differs from the model with hooks, or the folder is in use.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EmEvalsError(f"{folder} is not empty; name another folder.")
    for one in card.interventions:
        _possible(one, to)
    if to == "lora" and card.adapter_path is None and not card.interventions:
        raise EmEvalsError(f"{card.name} is a bare base: there is nothing to compile.")
    _refuse_quantized(card)
    with torch.no_grad(), files.atomic_folder(folder) as scratch:
        model = bases.load_model(in_float32(card.card))
        pairs = load([one for one in card.interventions if one.op != "scale_adapter"], model.config)
        adapter, ids, expected = _hooked(model, card, pairs)
        if to == "checkpoint":
            wanted = compiled_checkpoint.write(model, adapter, pairs, card.card, scratch, ids, expected)
            del model, adapter
            found = invariants.logits(bases.load_model(_as_base(card, scratch)), ids)
        else:
            wanted = expected
            removed = [one.unit for pair in pairs for one in changes(*pair, 0)]
            compiled_lora.write(model, adapter, removed, card.card, scratch)
            del model, adapter
            found = invariants.logits(_as_adapter(card, scratch), ids)
        invariants.check_same(found, wanted, "written")
        _keep_template(card, scratch)
        _record(card, scratch, invariants.apart(found, expected))
    return folder


def _keep_template(card: ResolvedCard, folder: Path) -> None:
    """Save an adapter's own chat template with what it was compiled into."""
    tokenizer = bases.load_tokenizer(card.card)
    if own.settle(card, tokenizer):
        tokenizer.save_pretrained(folder)


def _record(card: ResolvedCard, folder: Path, apart: float) -> None:
    """Record what was compiled, and how far it is from the model with hooks (bfloat16 rounds its weights)."""
    facts = {
        "card": card.name,
        "card_digest": card.digest,
        "base": card.card.base,
        "interventions": [one.model_dump(mode="json", exclude_defaults=True) for one in card.interventions],
        "largest_difference": apart,
    }
    (folder / "em_evals.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def in_float32(card: ModelCard) -> ModelCard:
    """Return the card with its base in float32, whole on one device."""
    fields = {"dtype": "float32", "device_map": None, "max_memory": None}
    return card.model_copy(update={"engine": card.engine.model_copy(update=fields)})


def _hooked(
    model: Any, card: ResolvedCard, pairs: Sequence[Pair]
) -> tuple[Parts | None, torch.Tensor, torch.Tensor]:
    """Return the card's adapter, token ids to compare on, and the logits of the model with hooks."""
    bank, steering = Bank(model), Steering(model)
    try:
        with ExitStack() as stack:
            slot = steering.register(pairs)
            stack.enter_context(steering.rows(Rows(torch.tensor([slot], device=model.device))))
            adapter, ids = None, invariants.random_ids(model)
            if card.adapter_path is not None:
                scales = [one for one in card.interventions if one.op == "scale_adapter"]
                name = bank.load(card.adapter_path, scales)
                adapter = load_parts(bank.fit(name), model, scales)
                ids = torch.cat([ids, _own_tokens(bank.fit(name), ids)], dim=1)
                stack.enter_context(bank.rows([name]))
            return adapter, ids, invariants.logits(model, ids)
    finally:
        steering.remove()
        bank.close()


def _own_tokens(fit: Fit, like: torch.Tensor) -> torch.Tensor:
    """Return tokens [1, tokens] for which an adapter has rows of its own: random ids would miss them."""
    chosen = [index for piece in fit.pieces for index in piece.indices[:4]]
    return torch.tensor([sorted(set(chosen))], dtype=like.dtype, device=like.device)


def _as_base(card: ResolvedCard, folder: Path) -> ModelCard:
    return in_float32(card.card).model_copy(update={"base": str(folder), "revision": None})


def _as_adapter(card: ResolvedCard, folder: Path) -> Any:
    from peft import PeftModel

    base = bases.load_model(in_float32(card.card))
    try:
        return PeftModel.from_pretrained(base, folder).eval()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise EmEvalsError(
            f"PEFT cannot load the compiled adapter ({str(error)[:200]}); nothing was written."
        ) from None


def _refuse_quantized(card: ResolvedCard) -> None:
    if method := quantization.name_of(card.card, bases.load_config(card.card)):
        raise EmEvalsError(
            f"{card.card.base} is quantized ({method}), and quantized weights cannot hold compiled interventions: name "
            "its 16-bit base in the card."
        )


def _possible(one: Intervention, to: Target) -> None:
    """Refuse interventions without an exact form, whatever the architecture."""
    said = f"`{one.op}`"
    if one.op == "scale_adapter":
        return
    if one.skip != "none" or one.positions != "all":
        field = f"skip: {one.skip}" if one.skip != "none" else f"positions: {one.positions}"
        raise EmEvalsError(
            f"{said} with `{field}` cannot be compiled: weights act on every token in the same way."
        )
    # What is not known to have an exact form is refused, including ops that are added later.
    if one.op != "add" and not (one.op == "ablate" and one.site == "writes"):
        hint = " (`ablate` with `site: writes` can be)" if one.op == "ablate" else ""
        raise EmEvalsError(
            f"{said} of a block's output cannot be compiled: no weight of the block computes it{hint}."
        )
    if one.op == "add" and to == "lora":
        raise EmEvalsError("`add` is a bias, and a LoRA has none: compile it with `--to checkpoint`.")
