"""The models that are compared with their base: cards of one base, each another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from em_evals.content.cards import ResolvedCard, resolve
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.reading import check_base


def changed_cards(names: Sequence[str], fields: Mapping[str, Any]) -> list[ResolvedCard]:
    """Return cards, all of the first one's base.

    Args:
        names: their names; the organism's is the first.
        fields: card fields that win over the cards'.

    Raises:
        EmEvalsError: a card has another base, does not differ from it, or is the same model as another.
    """
    found = [resolve(name, fields) for name in names]
    digests: dict[str, str] = {}
    for card in found:
        check_base(card, found[0].card.base)
        if card.adapter_path is None and not card.interventions:
            raise EmEvalsError(
                f"{card.name} has neither an adapter nor interventions: it does not differ from its base. A full "
                "finetune is its own base, and cannot be read."
            )
        if card.digest in digests:
            raise EmEvalsError(f"{card.name} and {digests[card.digest]} are one model; name different ones.")
        digests[card.digest] = card.name
    return found
