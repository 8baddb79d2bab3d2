"""The models of a sweep: each card with each combination of its row's matrix, and how its card is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import yaml

from em_evals import files
from em_evals.content import cards, directions, documents, identity
from em_evals.content.recipes import AdapterRecipe
from em_evals.content.sweep_plans import ModelRow, SweepPlan, combinations, label
from em_evals.data import datasets
from em_evals.errors import EmEvalsError


@dataclass(frozen=True)
class SweepModel:
    """One model.

    Attributes:
        name: as after `local/`, while EM_EVALS_CONTENT names the sweep's folder.
        card: the card that it is made from.
        fields: card fields that differ from the card's.
        factors: values of the row's axes, without the card.
        trained: whether the sweep trains it.
        base: its base.
        digest: of the base, and of the recipe with its data, or of the adapter.
    """

    name: str
    card: str
    fields: Mapping[str, Any]
    factors: Mapping[str, Any]
    trained: bool
    base: str
    digest: str

    @property
    def is_written(self) -> bool:
        """Whether the sweep writes a card for it."""
        return self.trained or bool(self.fields)


def expand(plan: SweepPlan) -> list[SweepModel]:
    """Return the plan's models in its order.

    Raises:
        EmEvalsError: a card or a recipe is wrong, an adapter is missing, or two rows give the same model; with the
            plan's line.
    """
    found: dict[str, SweepModel] = {}
    for number, row in enumerate(plan.models):
        for values in combinations(row.matrix):
            try:
                model = _made(row, values)
                if model.name in found:
                    raise EmEvalsError(
                        f"the model '{model.name}' is in the plan twice; delete one row or value."
                    )
            except EmEvalsError as error:
                raise plan.document.error(f"{error}", ("models", number)) from None
            found[model.name] = model
    return list(found.values())


def card_text(model: SweepModel) -> str:
    """Return the card that the sweep writes for a model."""
    fields = {"description": f"Made by a sweep from {model.card}.", "extends": model.card, **model.fields}
    if model.trained:
        fields["adapter"] = model.name
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _made(row: ModelRow, values: Mapping[str, Any]) -> SweepModel:
    card = str(values.get("card", row.card))
    factors = {key: value for key, value in values.items() if key != "card"}
    fields: dict[str, Any] = {"train": dict(row.train)} if isinstance(row.train, dict) and row.train else {}
    for key, value in factors.items():
        _set(fields, key, value)
    stem = re.sub(
        r"[^\w.@-]+", "-", PurePath(card).stem if card.endswith((".yaml", ".yml")) else PurePath(card).name
    )
    shelved = card.endswith((".yaml", ".yml")) or card in documents.names("adapters")
    has_recipe = shelved and cards.read_card(card)[0].train is not None
    if "train" in fields and not has_recipe:
        raise EmEvalsError(f"the card '{card}' has no recipe (`train:`) whose fields could be set.")
    recipe = cards.read_card(card, fields)[0].train if has_recipe else None
    if recipe is not None and row.train is not False:
        factors.setdefault("train.seed", recipe.seed)
        name = f"{stem}.{label(factors)}"
        _free(name)
        parsed = cards.read_card(card, fields)[0]
        own = (identity.base_digest(parsed.base, parsed.revision), parsed.model_dump_json(), *_data(recipe))
        return SweepModel(name, card, fields, factors, True, parsed.base, files.digest(*own))
    found = cards.resolve(card, fields)
    if fields and not shelved:
        raise EmEvalsError(
            f"'{card}' is no card, and its fields cannot be set; write a card with `base: {card}`."
        )
    name = f"{stem}.{label(factors)}" if fields else card
    if fields:
        _free(name)
    return SweepModel(name, card, fields, factors, False, found.card.base, found.digest)


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise EmEvalsError(f"the axis '{key}' goes through '{parent}', which has a value already.")
    fields[last] = value


def _free(name: str) -> None:
    """Refuse a name that a card of the user has; the sweep's own folder is not among the places yet."""
    if name in documents.names("adapters"):
        raise EmEvalsError(f"there is a card '{name}' already, and the sweep would make another; rename one.")


def _data(recipe: AdapterRecipe) -> list[str]:
    """Return digests of the data, models and directions that a training reads."""
    pairs = recipe.preference is not None
    names = [(source.name, pairs) for source in recipe.data]
    for part in (recipe.kl, recipe.interleave, recipe.features):
        names += [(name, False) for name in part.data] if part else []
    found = []
    for name, own in names:
        data = _loaded(name, own)
        found.append(data.digest)
        if recipe.control is not None or recipe.preference is not None:
            found += [_loaded(other).digest for other in sorted(data.controls.values())]
    for one in recipe.interventions:
        found += [
            identity.file_digest(directions.find(name)) for name in one.directions if isinstance(name, str)
        ]
    stop = recipe.early_stop
    models = [recipe.start_from, stop.control if stop else None]
    found += [cards.resolve(name).digest for name in models if name is not None]
    read = [stop.alarm] if stop and stop.alarm else []
    read += recipe.monitor.traits if recipe.monitor and stop else []
    found += [identity.file_digest(Path(name)) for name in read if Path(name).is_file()]
    return found


@lru_cache(maxsize=64)
def _loaded(name: str, pairs: bool = False) -> datasets.TrainingData:
    return datasets.load(name, pairs)
