"""What a recipe cannot be on its card's base, whatever the machine: refused by `--plan` and before a training."""

from __future__ import annotations

from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError


def check(card: ModelCard, recipe: AdapterRecipe) -> None:
    """Refuse a base that is spread over devices, and quantizations that differ or cannot be trained on.

    Raises:
        EmEvalsError: it is one of these.
    """
    if card.engine.device_map is not None:
        raise EmEvalsError(
            "a training takes one device a process: leave `device_map` out, and shard with FSDP."
        )
    kind = recipe.method.quantize or card.quantize
    if card.quantize not in (None, kind):
        raise EmEvalsError(
            f"the card says `quantize: {card.quantize}` and its `method` {kind}: say it once, or the same twice."
        )
    if kind == "int4" or (kind and recipe.method.kind == "full"):
        raise EmEvalsError(
            f"`quantize: {kind}` cannot be trained on"
            + (
                " by `kind: full`: use LoRA."
                if kind != "int4"
                else ": torchao's int4 has no gradients; say 4bit."
            )
        )
