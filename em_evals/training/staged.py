"""Staged training: begin with the weights of another card's training (`start_from`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals.content import cards, documents
from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        card: the card's name.
        digest: of its model, as caches identify it.
        adapter: the folder of its adapter; None after a full fine-tune.
        base: the folder or hub id of its base; after a full fine-tune, the trained model.
    """

    card: str
    digest: str
    adapter: str | None
    base: str

    def as_json(self) -> dict[str, Any]:
        """Return JSON values for the record."""
        return {"card": self.card, "digest": self.digest}

    def check_result(self, home: Path) -> None:
        """Refuse to train into the folder that the training begins with.

        Raises:
            EmEvalsError: it is the same.
        """
        if self.adapter is not None and Path(self.adapter).resolve() == home.resolve():
            raise EmEvalsError(f"`start_from: {self.card}` is this training's own result; name another card.")


def check_planned(card: ModelCard, recipe: AdapterRecipe) -> None:
    """Refuse a beginning that can never be right; the first stage need not be trained yet.

    Raises:
        EmEvalsError: there is no such card, it trains nothing, or it is this training itself.
    """
    name = recipe.start_from
    if name is None:
        return
    if name not in documents.names("adapters") and not name.endswith((".yaml", ".yml")):
        find(card, recipe)
        return
    first, _ = cards.read_card(name)
    if first.adapter is None:
        raise EmEvalsError(f"`start_from: {name}` is a card without an adapter: name a card that is trained.")
    if first.adapter == card.adapter:
        raise EmEvalsError(f"`start_from: {name}` is this training's own result; name another card.")


def find(card: ModelCard, recipe: AdapterRecipe) -> Start | None:
    """Find the trained model that a recipe begins with; None where it begins with the base.

    Raises:
        EmEvalsError: it is not trained yet, has another base, or was trained by another method.
    """
    if recipe.start_from is None:
        return None
    found = cards.resolve(recipe.start_from)
    start = Start(recipe.start_from, found.digest, found.adapter_path, found.card.base)
    if (start.adapter is None) != (recipe.method.kind == "full"):
        raise EmEvalsError(
            f"`start_from: {recipe.start_from}` is "
            + (
                "an adapter, and this recipe trains every weight"
                if start.adapter
                else "a whole model, and this recipe trains an adapter: name that model as `base`"
            )
            + "; both stages need the same `method`."
        )
    if start.adapter is None:
        return start
    if (found.card.base, found.card.revision) != (card.base, card.revision):
        raise EmEvalsError(
            f"`start_from: {recipe.start_from}` has the base {found.card.base}, and this card has {card.base}."
        )
    if not Path(start.adapter).is_dir():
        raise EmEvalsError(
            f"`start_from: {recipe.start_from}` is an adapter of the hub: fetch it into a folder first."
        )
    return start


def load(model: Any, start: Start, recipe: AdapterRecipe) -> None:
    """Load the first stage's adapter into a new one of the same shape.

    Raises:
        EmEvalsError: it has another rank, scaling or other modules.
    """
    from peft import load_peft_weights
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(str(start.adapter))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    method = recipe.method
    shape = {"r": method.rank, "lora_alpha": method.alpha, "use_rslora": method.rslora}
    for name, wanted in shape.items():
        if config.get(name) != wanted:
            raise EmEvalsError(
                f"`start_from: {start.card}` has {name} {config.get(name)}, and this recipe {wanted}: two stages of "
                "one adapter need the same `method`.",
                folder / "adapter_config.json",
            )
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise EmEvalsError(
                f"`start_from: {start.card}` has a `{name}`, which no `method` has: two stages of one adapter need the "
                "same `method`.",
                folder / "adapter_config.json",
            )
    tensors = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if wrong := sorted({*tensors} ^ {*own}):
        raise EmEvalsError(
            f"`start_from: {start.card}` adapts other modules than this recipe ({wrong[0]}): two stages of one adapter "
            "need the same `method`.",
            folder,
        )
    set_peft_model_state_dict(model, tensors)
