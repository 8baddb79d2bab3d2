"""A base in memory that can be read as any of its cards: bare, with an adapter, with interventions.

For measurements that go through every token of given texts. Drawing answers and weighing pairs is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from em_evals import adapters
from em_evals.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models import bases
from em_evals.models.interventions import Rows, Steering, refuse_positions
from em_evals.models.lora import Bank, written


def check_base(card: ResolvedCard, base: str) -> None:
    """Refuse a card that cannot be read on this base.

    Raises:
        EmEvalsError: it has another one.
    """
    if not adapters.same_base(card.card.base, base):
        raise EmEvalsError(
            f"{card.name} has the base {card.card.base}, not {base}: they cannot be compared inside."
        )


class Reading:
    """One base, loaded once; adapters and interventions are hooks that act inside `read_as`.

    Args:
        card: any of the base's cards; names the base and how to hold it.
    """

    def __init__(self, card: ResolvedCard) -> None:
        self.tokenizer = bases.load_tokenizer(card.card)
        self._base = card.card.base
        self._model = bases.load_model(card.card)
        self._bank = Bank(self._model)
        self._steering = Steering(self._model)
        self._names: dict[tuple[str, int, tuple[Intervention, ...]], str] = {}

    @contextmanager
    def read_as(self, card: ResolvedCard | None) -> Iterator[Any]:
        """The model as a card describes it (None: the bare base), inside the context.

        Raises:
            EmEvalsError: the card has another base, its adapter or directions do not fit, or an intervention acts on
                prompts or answers only.
        """
        import torch

        if card is None:
            yield self._model
            return
        check_base(card, self._base)
        refuse_positions(card.interventions)
        name = None if card.adapter_path is None else self._adapter(card.adapter_path, card.interventions)
        slot = torch.tensor([self._steering.slot(card.interventions)], device=self._model.device)
        with self._bank.rows([name]), self._steering.rows(Rows(slot)):
            yield self._model

    def _adapter(self, source: str, interventions: Sequence[Intervention]) -> str:
        """The bank's name of an adapter with its scales, loaded on first use."""
        scales = tuple(one for one in interventions if one.op == "scale_adapter")
        key = (source, written(source), scales)
        if key not in self._names:
            self._names[key] = self._bank.load(source, scales)
        return self._names[key]
