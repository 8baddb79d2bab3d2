"""A base in memory that can be read as any of its cards: bare, with an adapter, with interventions.

For measurements that go through every token of given texts. Drawing answers and weighing pairs is the engine's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from em_evals import adapters
from em_evals.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.intervention import Intervention
from em_evals.models import bases
from em_evals.models.adapters import with_adapter
from em_evals.models.interventions import Rows, Steering, refuse_positions


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
    """One base, loaded once.

    Args:
        card: any of the base's cards; names the base and how to hold it.
    """

    def __init__(self, card: ResolvedCard) -> None:
        self.tokenizer = bases.load_tokenizer(card.card)
        self._base = card.card.base
        self._plain = bases.load_model(card.card)
        self._model = self._plain
        self._steering = Steering(self._plain)
        self._names: dict[tuple[str, tuple[Intervention, ...]], str] = {}
        self._numbers = itertools.count()

    @contextmanager
    def read_as(self, card: ResolvedCard | None) -> Iterator[Any]:
        """The model as a card describes it (None: the bare base), inside the context.

        Raises:
            EmEvalsError: the card has another base, its adapter or directions do not fit, or an intervention acts on
                prompts or answers only.
        """
        import torch

        with ExitStack() as stack:
            if card is None:
                if self._model is not self._plain:
                    stack.enter_context(self._model.disable_adapter())
                yield self._model
                return
            check_base(card, self._base)
            refuse_positions(card.interventions)
            if card.adapter_path is not None:
                name = self._adapter(card)  # may wrap the model
                self._model.set_adapter(name)
            elif self._model is not self._plain:
                stack.enter_context(self._model.disable_adapter())
            slot = torch.tensor([self._steering.slot(card.interventions)], device=self._plain.device)
            stack.enter_context(self._steering.rows(Rows(slot)))
            yield self._model

    def _adapter(self, card: ResolvedCard) -> str:
        scales = tuple(one for one in card.interventions if one.op == "scale_adapter")
        key = (str(card.adapter_path), scales)
        if key not in self._names:
            name = f"adapter{next(self._numbers)}"
            self._model = with_adapter(self._model, str(card.adapter_path), name, scales)
            self._names[key] = name
        return self._names[key]
