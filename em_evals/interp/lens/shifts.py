"""Shifts of next-token distributions between a base and finetunes over texts, as running sums.

Both distributions of a position are held only while it is read. Memory does not grow with the number of texts: sums
are kept by token for a few folds of the texts, and the contexts with the largest shifts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models.families import layout
from em_evals.models.text_batches import by_length, padded

Floats = NDArray[np.float64]

FOLDS = 16
_LOGITS_BYTES = 2**26
"""Bytes of one model's log-probabilities at a time."""
_TOKENS = 10
"""Tokens kept of a context."""


@dataclass(frozen=True, order=True)
class Context:
    """A position whose distribution moved.

    Attributes:
        kl: KL(model ‖ base) of the next token there, in nats.
        text: which text.
        position: tokens before the next one.
        tokens: those that gained most, by p (log p − log p_base), and `gains` by how much.
        realized: change of the log-probability of the text's own next token, in nats.
        other_kl: the control's KL there; NaN without a control.
    """

    kl: float
    text: int
    position: int
    tokens: tuple[int, ...] = field(compare=False)
    gains: tuple[float, ...] = field(compare=False)
    realized: float = field(compare=False)
    other_kl: float = field(compare=False)


@dataclass(eq=False)
class ModelShift:
    """Sums over positions for one model, against the base.

    Attributes:
        up: float64 [folds, tokens], sum of p (log p − log p_base): over all tokens it is KL(model ‖ base).
        down: float64 [tokens], sum of p_base (log p − log p_base): over all tokens it is −KL(base ‖ model).
        share: float64 [tokens], sum of p.
        kl: per text, the mean KL(model ‖ base) over its positions.
        realized: per text, the mean change of the log-probability of its own tokens.
    """

    up: Floats
    down: Floats
    share: Floats
    kl: list[float] = field(default_factory=list)
    realized: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Shifts:
    """All sums.

    Attributes:
        positions: float64 [folds], positions that were read.
        base: float64 [tokens], sum of p_base.
        models: one for each card, in their order.
        contexts: those of the first card with the largest KL, largest first.
    """

    positions: Floats
    base: Floats
    models: list[ModelShift]
    contexts: list[Context]


def shifts(
    reading: Reading, cards: Sequence[ResolvedCard], texts: Sequence[tuple[int, ...]], keep: int = 200
) -> Shifts:
    """Compute the shifts of cards' models on texts.

    Args:
        reading: the base.
        cards: the organism, and its control if there is one.
        texts: token ids of each text, two at least.
        keep: contexts to keep.

    Raises:
        EmEvalsError: a text is longer than the base reads, or log-probabilities are not finite.
    """
    with reading.read_as(None) as model:
        allowed, config = layout(model.config), model.config
    size = int(config.get_text_config().vocab_size)
    longest = min(reading.longest, allowed.limit or reading.longest)
    rows = [Text(text, ()) for text in texts]
    if too_long := [i for i, text in enumerate(texts) if len(text) > longest]:
        raise EmEvalsError(
            f"text {too_long[0] + 1} has {len(texts[too_long[0]])} tokens and the base reads {longest}."
        )
    found = Shifts(
        np.zeros(FOLDS),
        np.zeros(size),
        [ModelShift(np.zeros((FOLDS, size)), np.zeros(size), np.zeros(size)) for _ in cards],
        [],
    )
    for one in found.models:
        one.kl, one.realized = [0.0] * len(texts), [0.0] * len(texts)
    heap: list[Context] = []
    for batch in by_length(rows, max(1, _LOGITS_BYTES // (4 * size)), allowed):
        ids = padded([rows[i] for i in batch])
        base = _log_probabilities(reading, None, ids)
        own = [_log_probabilities(reading, card, ids) for card in cards]
        for place, number in enumerate(batch):
            ends = len(texts[number]) - 1
            nexts = torch.tensor(texts[number][1:], device=base.device)
            parts = [one[place, :ends] for one in own]
            _add(found, heap, number, base[place, :ends], parts, nexts, keep)
    found.contexts = sorted(heap, reverse=True)
    return found


@torch.inference_mode()
def _log_probabilities(reading: Reading, card: ResolvedCard | None, ids: torch.Tensor) -> torch.Tensor:
    """Return float32 [texts, tokens, vocabulary] of one model."""
    with reading.read_as(card) as model:
        device = next(model.parameters()).device
        logits: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    found = logits.float().log_softmax(-1)
    if torch.isnan(found).any():
        raise EmEvalsError(
            f"the log-probabilities of {card.name if card else 'the base'} hold NaN: its weights are damaged, or too "
            "large for its dtype."
        )
    return found


@torch.inference_mode()
def _add(
    found: Shifts,
    heap: list[Context],
    number: int,
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    nexts: torch.Tensor,
    keep: int,
) -> None:
    """Add one text: log-probabilities [positions, vocabulary] of the base and of each model."""
    fold, before = number % FOLDS, base.exp()
    found.positions[fold] += len(base)
    found.base += _sum(before)
    gains, kls = [], []
    for one, log in zip(found.models, models, strict=True):
        # A token that the vocabulary excludes (−inf) in both models has not moved.
        both = base.isfinite() & log.isfinite()
        moved = torch.where(both, log - base, torch.zeros_like(log))
        own = log.exp()
        gain = own * moved
        one.up[fold] += _sum(gain)
        one.down += _sum(before * moved)
        one.share += _sum(own)
        kl = gain.sum(-1)
        one.kl[number] = float(kl.mean())
        one.realized[number] = float(moved.gather(1, nexts[:, None]).mean())
        gains.append(gain)
        kls.append(kl)
    realized = (models[0] - base).gather(1, nexts[:, None])[:, 0]
    largest = kls[0].topk(min(keep, len(kls[0])))
    for value, place in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
        if len(heap) == keep and value <= heap[0].kl:
            break
        top = gains[0][place].topk(_TOKENS)
        other = float(kls[1][place]) if len(kls) > 1 else float("nan")
        context = Context(
            value,
            number,
            place + 1,
            tuple(top.indices.tolist()),
            tuple(top.values.tolist()),
            float(realized[place]),
            other,
        )
        (heapq.heappushpop if len(heap) == keep else heapq.heappush)(heap, context)


def _sum(values: Any) -> Floats:
    return np.asarray(values.sum(0).double().cpu().numpy())
