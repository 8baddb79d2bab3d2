"""A base in memory, run as any of its cards: bare, with an adapter, with interventions.

For measurements on every token of given texts. Drawing answers and scoring pairs is left to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from em_evals.content import adapter_folders
from em_evals.content.cards import ResolvedCard
from em_evals.engines.pool import base_in_memory
from em_evals.errors import EmEvalsError
from em_evals.models.interventions import Rows, refuse_positions


def check_base(card: ResolvedCard, base: str) -> None:
    """Refuse a card that has another base.

    Raises:
        EmEvalsError: it has another base.
    """
    if not adapter_folders.same_base(card.card.base, base):
        raise EmEvalsError(
            f"{card.name} has the base {card.card.base}, not {base}: they cannot be compared inside."
        )


class Reading:
    """A card's base, used between the draws of the engine that holds it.

    Args:
        card: any of the base's cards; names the base and how to load it.
    """

    def __init__(self, card: ResolvedCard) -> None:
        self._engine = base_in_memory(card.card)
        self.tokenizer = self._engine.tokenizer
        self._base = card.card.base

    @contextmanager
    def read_as(self, card: ResolvedCard | None) -> Iterator[Any]:
        """Yield the model that a card describes (None: the bare base), inside the context.

        Raises:
            EmEvalsError: the card has another base, its adapter or directions do not fit, or an intervention acts on
                prompts or answers only.
        """
        import torch

        if card is not None:
            check_base(card, self._base)
            refuse_positions(card.interventions)
        with self._engine.borrow() as base:
            if card is None:
                yield base.model
                return
            name = self._engine.adapters.name(base.bank, card.adapter_path, card.interventions)
            slot = torch.tensor([base.steering.slot(card.interventions)], device=base.device)
            with base.bank.rows([name]), base.steering.rows(Rows(slot)):
                yield base.model
