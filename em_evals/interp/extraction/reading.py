"""A base in memory, run as any of its cards: bare, with an adapter, with interventions.

For measurements on every token of given texts. Drawing answers and scoring pairs is left to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content import adapter_folders
from em_evals.content.cards import ResolvedCard
from em_evals.engines.pool import base_in_memory
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import group_sums
from em_evals.interp.extraction.prefix_tree import Position, Text
from em_evals.interp.fixed_answers import given
from em_evals.models.chat import template_for


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
        self.longest = self._engine.scored_len
        self._base = card.card.base

    @contextmanager
    def read_as(self, card: ResolvedCard | None) -> Iterator[Any]:
        """Yield the model that a card describes (None: the bare base), inside the context.

        Raises:
            EmEvalsError: the card has another base, its adapter or directions do not fit, or an intervention acts on
                prompts or answers only.
        """
        if card is not None:
            check_base(card, self._base)
        adapter, interventions = (card.adapter_path, card.interventions) if card is not None else (None, ())
        with self._engine.activations(adapter, interventions) as base:
            yield base.model


def read_texts(
    card: ResolvedCard, texts: Sequence[tuple[str, str]], position: Position, system: str | None = None
) -> NDArray[np.float32]:
    """Compute mean activations of (question, answer) pairs; an answer may be empty where the position is the prompt's.

    Args:
        card: the card whose model reads the texts.
        texts: the pairs.
        position: which tokens of a text are averaged.
        system: a system message before each question.

    Returns:
        float32 [texts, layers, width], each text's mean after each decoder block.

    Raises:
        EmEvalsError: a text has no token at the position or is too long, or the card's engine is not transformers.
    """
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    rows = [given(template, question, answer, system) for question, answer in texts]
    for row, (question, _) in zip(rows, texts, strict=True):
        if len(row.prompt) + len(row.answer) > reading.longest:
            raise EmEvalsError(
                f"'{question[:60]}' and its answer have {len(row.prompt) + len(row.answer)} tokens, and the model "
                f"reads {reading.longest}: shorten them."
            )
    made = [Text(row.prompt, row.answer, str(number)) for number, row in enumerate(rows)]
    with reading.read_as(card) as model:
        return group_sums(model, made, position).vectors
