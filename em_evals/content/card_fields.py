"""Which fields of a card say something about its model's answers: what a card's digest is made of."""

from __future__ import annotations

from typing import Any

from em_evals.content.card_schema import ModelCard
from em_evals.content.recipes import AdapterRecipe

WITHOUT_EFFECT: dict[str, Any] = {
    **dict.fromkeys(("description", "source", "extends", "control_of", "architecture", "adapter_base"), True),
    "engine": {
        "device_map",
        "max_memory",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_loras",
    },
}
"""Fields that say nothing about the model's answers: what was measured before memory ran out still holds after it."""


_LATER = ("learn", "optimizer", "start_from", "preference", "features")
"""Fields of recipes that came after cards had digests."""


def of_answers(card: ModelCard) -> str:
    """Return a card's fields as JSON, without those that say nothing about answers.

    Fields that came later are left out where they are unset: cards had digests before there were such fields.
    """
    unset: dict[str, Any] = {
        name: True for name in ("thinking", "template", "quantize") if not getattr(card, name)
    }
    if card.train is not None:
        unset["train"] = _unset(card.train)
    if card.generation.max_reasoning_tokens is None:
        unset["generation"] = {"max_reasoning_tokens"}
    return card.model_dump_json(exclude=WITHOUT_EFFECT | unset)


def _unset(recipe: AdapterRecipe) -> dict[str, Any]:
    """Return a recipe's later fields that it leaves at their defaults, which were every recipe's before."""
    plain = AdapterRecipe.model_construct()
    fields = {name: True for name in _LATER if getattr(recipe, name) == getattr(plain, name)}
    return fields | ({} if recipe.method.quantize else {"method": {"quantize"}})
