"""A card's recipe with the command line's values, without torch: a card that cannot be trained is refused at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from em_evals.content import validation_errors
from em_evals.content.cards import ModelCard
from em_evals.content.recipes import AdapterRecipe
from em_evals.errors import EmEvalsError


def recipe_of(
    card: ModelCard, name: str, path: Path, seed: int | None = None, max_steps: int | None = None
) -> AdapterRecipe:
    """Return the card's recipe with the command line's values.

    Raises:
        EmEvalsError: the card has no recipe, or a number is out of range.
    """
    if card.train is None:
        raise EmEvalsError(
            f"the card {name} has no `train:` section: add one that says how to train it.", path
        )
    if card.template:
        raise EmEvalsError(
            "a recipe trains with the chat template's own defaults: leave `template:` out of this card, and set it in "
            "one that extends it.",
            path,
        )
    instead = {"seed": seed, "max_steps": max_steps}
    given = {key: value for key, value in instead.items() if value is not None}
    try:
        # Of interventions only the fields that were set: an op refuses those that it does not read.
        return AdapterRecipe.model_validate(card.train.model_dump(exclude_unset=True) | given)
    except ValidationError as error:
        raise EmEvalsError(f"training {name}: {validation_errors.explain(error, AdapterRecipe)[1]}") from None
