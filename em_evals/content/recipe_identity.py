"""What a trained model's record says of its making: the recipe as a digest without the training seed, and the seed.

Models of one recipe that differ by their seed are one recipe's seeds, whatever their names (results/seed_groups.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from em_evals.content.card_fields import WITHOUT_EFFECT
from em_evals.content.cards import ResolvedCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError
from em_evals.files import digest, is_file, read_json

RECORD = "training.json"
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class Trained:
    """How a model was trained.

    Attributes:
        recipe: digest of base, recipe without its seed, data, step, interventions and the way of asking.
        seed: the training seed.
    """

    recipe: str
    seed: int


def of(card: ResolvedCard) -> Trained | None:
    """Return how a card's model was trained; None without a record of our training (a hub adapter, a bare base).

    Fields at their defaults do not count: a later version's new fields leave the digest as it is.
    """
    folder = Path(card.adapter_path or card.card.base).expanduser()
    step = folder.name.removeprefix(_CHECKPOINT) if folder.name.startswith(_CHECKPOINT) else ""
    path = (folder.parent.parent if step else folder) / RECORD
    if not is_file(path):
        return None
    try:
        record = read_json(path)
        recipe = AdapterRecipe.model_validate(record["recipe"])
        fields = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})
        # Data sets count by content, not by the path that a card gives them, and so does any other file.
        contents = {name: str(entry["digest"]) for name, entry in record["data"].items()}
        for source in fields["data"]:
            source["name"] = contents.get(source["name"], source["name"])
        fields = by_content(fields, record)
        made_of = [fields, sorted(contents.values()), record["base"], record.get("revision"), step]
    except (EmEvalsError, ValidationError, AttributeError, LookupError, TypeError):
        return None  # a damaged record says nothing; training and `insight same` report it
    asked = card.card.model_dump_json(exclude=WITHOUT_EFFECT | dict.fromkeys(_MADE, True))
    interventions = [one.digest for one in card.interventions]
    return Trained(digest(_text(made_of), asked, _text(interventions)), recipe.seed)


_DATA_ENDINGS = (".jsonl", ".json", ".parquet")


def by_content(recipe: Any, record: Mapping[str, Any]) -> Any:
    """Return a recipe's fields with the digest of what a file holds in place of its path; names stay names.

    Args:
        recipe: fields of a recipe, as JSON values.
        record: the training's record. It calls a data set after its file's stem, or by its whole path where two files
            share that.
    """
    data, named = record.get("data"), record.get("files")
    contents = {
        str(name): str(entry.get("digest", name))
        for name, entry in (data if isinstance(data, dict) else {}).items()
        if isinstance(entry, dict)
    }
    return _by_content(recipe, contents, named if isinstance(named, dict) else {})


def _by_content(value: Any, contents: Mapping[str, str], named: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _by_content(one, contents, named) for key, one in value.items()}
    if isinstance(value, list):
        return [_by_content(one, contents, named) for one in value]
    if not isinstance(value, str):
        return value
    if value.endswith(_DATA_ENDINGS):
        found = contents.get(value) or contents.get(Path(value).stem)
        return found or named.get(value, value)
    return named.get(value, value)


_MADE = ("base", "revision", "adapter", "adapter_revision", "train", "interventions")
"""Fields of a card that the record, or their content, stands for."""


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
