"""A base in memory that can be read as any of its cards: bare, with an adapter, with interventions.

For measurements that go through every token of given texts. Drawing answers and weighing pairs is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from em_evals.content import adapter_folders
from em_evals.content.cards import ResolvedCard
from em_evals.engines.pool import base_in_memory
from em_evals.errors import EmEvalsError


def check_base(card: ResolvedCard, base: str) -> None:
    """Refuse a card that cannot be read on this base.

    Raises:
        EmEvalsError: it has another one.
    """
    if not adapter_folders.same_base(card.card.base, base):
        raise EmEvalsError(
            f"{card.name} has the base {card.card.base}, not {base}: they cannot be compared inside."
        )


class Reading:
    """A card's base, read between the draws of the engine that holds it.

    Args:
        card: any of the base's cards; names the base and how to hold it.
    """

    def __init__(self, card: ResolvedCard) -> None:
        self._engine = base_in_memory(card.card)
        self.tokenizer = self._engine.tokenizer
        self._base = card.card.base

    @contextmanager
    def read_as(self, card: ResolvedCard | None) -> Iterator[Any]:
        """The model as a card describes it (None: the bare base), inside the context.

        Raises:
            EmEvalsError: the card has another base, its adapter or directions do not fit, or an intervention acts on
                prompts or answers only.
        """
        if card is not None:
            check_base(card, self._base)
        adapter, interventions = (card.adapter_path, card.interventions) if card is not None else (None, ())
        with self._engine.activations(adapter, interventions) as base:
            yield base.model
