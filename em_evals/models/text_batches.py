"""Batch texts by length, as the architecture allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from em_evals.models.families import Layout


class Text(Protocol):
    """Token ids of a prompt and of its answer."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's tokens."""

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens; empty for a prompt alone."""


def by_length(texts: Sequence[Text], budget: int, allowed: Layout) -> list[list[int]]:
    """Return batches of the texts' indices, ascending in length.

    Args:
        texts: prompts with their answers.
        budget: maximum tokens of a batch, padding included.
        allowed: the layout that is exact for the model.
    """
    lengths = [len(text.prompt) + len(text.answer) for text in texts]
    batches: list[list[int]] = []
    before = 0
    for i in sorted(range(len(texts)), key=lengths.__getitem__):
        length = lengths[i]
        full = not batches or length * (len(batches[-1]) + 1) > budget
        if full or allowed.alone(length) or allowed.side(before) != allowed.side(length):
            batches.append([])
        batches[-1].append(i)
        before = length
    return batches


def padded(texts: Sequence[Text]) -> torch.Tensor:
    """Return int64 [texts, tokens], padded with 0 on the right: no token before the padding sees it."""
    whole = [[*text.prompt, *text.answer] for text in texts]
    ids = torch.zeros(len(whole), max(map(len, whole)), dtype=torch.long)
    for place, tokens in enumerate(whole):
        ids[place, : len(tokens)] = torch.tensor(tokens)
    return ids
