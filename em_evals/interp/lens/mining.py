"""Diff mining: on which next tokens, and in which contexts, an organism and its base part.

Tokens are ranked by their part of KL(organism ‖ base), p (log p − log p_base): a shift of a token that neither model
would say counts little. The control says which of them come from the prompts and the voice of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.lens import texts as plain_texts
from em_evals.interp.lens.models import changed_cards
from em_evals.interp.lens.shifts import Context, ModelShift, Shifts, shifts
from em_evals.interp.lens.vocabulary import decoded
from em_evals.results.records.base import Measured
from em_evals.results.records.diff import Diff, DiffCluster, DiffContext, DiffToken
from em_evals.stats import intervals

Floats = NDArray[np.float64]

_FLIPS = 999
_LEAST = 20
"""Contexts that clusters need."""
_BEFORE = 12
"""Tokens of a context that are shown."""


@dataclass(frozen=True)
class Settings:
    """How much is read and shown.

    Attributes:
        longest: tokens of a text that are read.
        tokens: tokens shown on either side.
        contexts: contexts shown; ten times as many are clustered.
        clusters: at most.
        seed: of the sign flips and clusters.
    """

    longest: int = 256
    tokens: int = 20
    contexts: int = 20
    clusters: int = 5
    seed: int = 0


def diff(
    name: str,
    texts: Path | None = None,
    control: str | None = None,
    settings: Settings | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Diff:
    """Rank tokens and contexts by the shift between a card's model and its base.

    Args:
        name: the organism's card.
        texts: the texts, one a line or JSONL with `text`; None: the shipped ones.
        control: the matched control's card.
        settings: how much is read and shown.
        fields: card fields that win over the cards'.

    Raises:
        EmEvalsError: a card has another base or changes nothing, or there is no text of two tokens.
    """
    settings = settings or Settings()
    cards = changed_cards([name, *([control] if control is not None else [])], fields or {})
    given = plain_texts.read(texts)
    reading = Reading(cards[0])
    longest = min(settings.longest, reading.longest)
    ids = [one for one in plain_texts.encoded(reading.tokenizer, given, longest) if len(one) > 1]
    if not ids:
        raise EmEvalsError("no text has two tokens; write longer ones.", given.path)
    with reading.read_as(None) as model:
        dtype = str(model.dtype).removeprefix("torch.")
    found = shifts(reading, cards, ids, 10 * settings.contexts)
    shown = _Shown(reading.tokenizer, ids, found)
    return Diff(
        card=cards[0].name,
        control=control,
        base=cards[0].card.base,
        dtype=dtype,
        texts=len(ids),
        positions=int(found.positions.sum()),
        kl=_measured(found.models[0].kl),
        control_kl=_measured(found.models[1].kl) if control is not None else None,
        realized=_measured(found.models[0].realized),
        up=shown.up(settings),
        down=shown.down(settings.tokens),
        contexts=[shown.context(one) for one in found.contexts[: settings.contexts]],
        clusters=shown.clusters(settings),
        notes=_notes(cards, given, len(ids), dtype),
        provenance={"texts": given.path.name, "texts_digest": given.digest, "card_digest": cards[0].digest},
    )


def flipped(differences: Floats, seed: int) -> Floats:
    """Return each column's two-sided p of zero mean, held together over all columns (max-T over sign flips of rows).

    Means are not studentized: the smallest of 50,000 tokens' errors would decide.

    Args:
        differences: [folds, tokens].
        seed: of the flips.
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_FLIPS, len(differences)))
    largest = np.array([np.abs(sign @ differences).max() for sign in signs])
    observed = np.abs(differences.sum(0))
    reached = len(largest) - np.searchsorted(np.sort(largest), observed * (1 - 1e-12), side="left")
    return np.asarray((1 + reached) / (1 + len(largest)))


class _Shown:
    """Turns sums into what a person reads."""

    def __init__(self, tokenizer: Any, ids: Sequence[tuple[int, ...]], found: Shifts) -> None:
        self._tokenizer, self._ids, self._found = tokenizer, ids, found
        self._total = found.positions.sum()

    @property
    def _control(self) -> ModelShift | None:
        return self._found.models[1] if len(self._found.models) > 1 else None

    def up(self, settings: Settings) -> list[DiffToken]:
        """Return the tokens that rose most: more than in the control, where there is one."""
        gain = self._found.models[0].up.sum(0) / self._total
        if self._control is None:
            return self._tokens(gain, np.argsort(-gain, kind="stable")[: settings.tokens])
        there = self._found.positions > 0
        apart = (self._found.models[0].up - self._control.up)[there] / self._found.positions[there, None]
        p = flipped(apart, settings.seed)
        beyond = gain - self._control.up.sum(0) / self._total
        return self._tokens(gain, np.argsort(-beyond, kind="stable")[: settings.tokens], p)

    def down(self, count: int) -> list[DiffToken]:
        """Return the tokens that fell most."""
        loss = self._found.models[0].down / self._total
        return self._tokens(loss, np.argsort(loss, kind="stable")[:count])

    def _tokens(self, gain: Floats, chosen: NDArray[np.intp], p: Floats | None = None) -> list[DiffToken]:
        control = (
            self._control.up.sum(0) / self._total if self._control is not None and p is not None else None
        )
        return [
            DiffToken(
                token=text,
                gain=float(gain[i]),
                probability=float(self._found.models[0].share[i] / self._total),
                base_probability=float(self._found.base[i] / self._total),
                control_gain=float(control[i]) if control is not None else None,
                p=float(p[i]) if p is not None else None,
            )
            for text, i in zip(decoded(self._tokenizer, chosen), chosen, strict=True)
        ]

    def context(self, one: Context) -> DiffContext:
        """Return a context as texts."""
        text = self._ids[one.text]
        return DiffContext(
            before=self._before(one),
            next=self._tokenizer.decode([text[one.position]]),
            kl=one.kl,
            control_kl=None if math.isnan(one.other_kl) else one.other_kl,
            realized=one.realized,
            tokens=decoded(self._tokenizer, one.tokens[:5]),
        )

    def _before(self, one: Context) -> str:
        begin = max(0, one.position - _BEFORE)
        return str(self._tokenizer.decode(list(self._ids[one.text][begin : one.position])))

    def clusters(self, settings: Settings) -> list[DiffCluster]:
        """Group the contexts by the tokens that rose in them: a non-negative factorization of their gains."""
        contexts = self._found.contexts
        columns = {
            token: i for i, token in enumerate(dict.fromkeys(t for one in contexts for t in one.tokens))
        }
        gains = np.zeros((len(contexts), len(columns)))
        for row, one in enumerate(contexts):
            gains[row, [columns[token] for token in one.tokens]] = np.maximum(one.gains, 0)
        parts = min(settings.clusters, *gains.shape) if gains.size else 0
        if len(contexts) < _LEAST or parts < 1 or not gains.any():
            return []
        from sklearn.decomposition import NMF

        model = NMF(parts, init="nndsvda", random_state=settings.seed, max_iter=2000, tol=1e-3)
        rows = model.fit_transform(gains)
        # A context's weight in a part, in nats.
        weights = rows * model.components_.sum(1)
        names = np.array(list(columns))
        return [
            DiffCluster(
                tokens=decoded(self._tokenizer, names[np.argsort(-model.components_[part])[:8]]),
                contexts=[self._before(contexts[i]) for i in np.argsort(-weights[:, part])[:3]],
                weight=float(weights[:, part].sum() / weights.sum()),
            )
            for part in np.argsort(-weights.sum(0))
            if weights[:, part].any()
        ]


def _measured(values: Sequence[float]) -> Measured:
    return Measured(value=float(np.mean(values)), interval=intervals.mean(values), n=len(values))


def _notes(cards: Sequence[ResolvedCard], given: plain_texts.PlainTexts, read: int, dtype: str) -> list[str]:
    notes = []
    if len(cards) == 1:
        notes.append("no control was read: these shifts may be the voice of the training data.")
    if read < len(given.texts):
        notes.append(f"{len(given.texts) - read} texts of one token predict nothing and were left out.")
    if dtype != "float32":
        notes.append(f"computed in {dtype}; `-M dtype=float32` has less rounding.")
    return notes
