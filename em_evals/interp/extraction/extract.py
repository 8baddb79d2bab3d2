"""Directions from contrasts: the mean difference of activations, layer by layer (arXiv 2506.11618, section 3).

With the evidence that a reader needs to trust one (trust.py): it is found on half of the questions and compared with
the other half's and with null distributions, and a harmless control of the same recipe shows how much of it is style.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_evals import files, locks, progress
from em_evals.content import direction_algebra
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.errors import EmEvalsError
from em_evals.interp.extraction.activations import GroupSums, group_sums
from em_evals.interp.extraction.chunks import Elsewhere, Wanted
from em_evals.interp.extraction.contrast import Contrast, Side, bare, encode
from em_evals.interp.extraction.prefix_tree import Position, Text
from em_evals.interp.extraction.reading import Reading, check_base
from em_evals.interp.extraction.trust import Sides, folds, measured
from em_evals.models import bases
from em_evals.models.chat import template_for

MINIMUM = 10
"""Minimum number of answers per side, on the half of the questions that the direction is found on."""

_CLUSTERS = 200
"""Sums to keep for each half of the questions: 6,000 would take 6 GB per side, at 48 layers of width 5,120."""


@dataclass(frozen=True)
class Settings:
    """How a direction is extracted.

    Attributes:
        position: which tokens of a text are averaged.
        split: find on one half of the questions, compare with the other; off: find on all.
        minimum: minimum number of answers per side.
        max_length: maximum tokens of a text.
        seed: of the null draws.
    """

    position: Position = "answer_mean"
    split: bool = True
    minimum: int = MINIMUM
    max_length: int = 2048
    seed: int = 0


def extract(
    card: ResolvedCard,
    contrast: Contrast,
    settings: Settings = Settings(),
    control: ResolvedCard | None = None,
    orthogonal_to: Direction | None = None,
    state: Path | None = None,
    elsewhere: Elsewhere | None = None,
) -> Direction:
    """Compute direction[l] = mean of the positive side - mean of the negative side after block l, over texts.

    Args:
        card: the model under test; its base is loaded once and read as every model of the contrast.
        contrast: the two sides.
        settings: how.
        control: the same recipe on harmless data; its movement along the direction is reported.
        orthogonal_to: a direction (the control's) that is removed from the result.
        state: a folder for sums: an interrupted extraction resumes from it, and others that read the same texts with
            the same models reuse them (not with `elsewhere`). The caller deletes it.
        elsewhere: reads the texts in other processes; None: in this one.

    Returns:
        The direction. Its metadata hold, layer by layer, `held_out_cosine` (with the other half's direction),
        `reliability` (its square root, the estimated cosine with the true direction), the `claim` with its nulls, and
        `movement`: how far along it the card and the control are from their base on the held-out texts, in units of
        its norm; None where the norm is 0. What cannot be computed is left out (trust.py).

    Raises:
        EmEvalsError: too few answers on a side (says how many are needed), a model does not fit, or there is nothing
            to contrast at the position.
    """
    _possible(contrast, settings)
    if control is not None:
        check_base(control, card.card.base)
    # A process that leaves the reading to others holds no base.
    reading = Reading(card) if elsewhere is None else None
    tokenizer = reading.tokenizer if reading is not None else bases.load_tokenizer(card.card)
    texts, found, held_out = _texts(card, contrast, settings, tokenizer)
    passes = Passes(card, reading, settings.position, state)
    if elsewhere is not None:
        passes.read_elsewhere(elsewhere, _wanted(card, contrast, control, texts))
    sides = Sides(
        passes.read(contrast.positive, texts["positive"]), passes.read(contrast.negative, texts["negative"])
    )
    base = [passes.read(Side((), None), side) for side in texts.values()]
    direction = _mean_difference(card, contrast, settings, sides, base, found)
    along = None
    if orthogonal_to is not None:
        direction = direction_algebra.orthogonalise(direction, orthogonal_to)
        along = direction_algebra.unit(orthogonal_to).astype(float)
    known = measured(direction, (sides.only(found), sides.only(held_out)), along, settings.seed)
    if control is not None:
        models = {card.name: card, control.name: control}
        known["movement"] = _movement(passes, texts, held_out or found, direction, models)
    return replace(direction, metadata=direction.metadata | known)


def _wanted(
    card: ResolvedCard, contrast: Contrast, control: ResolvedCard | None, texts: Mapping[str, list[Text]]
) -> Wanted:
    """Return all that an extraction reads, and who reads it."""
    own = {"positive": contrast.positive.reader, "negative": contrast.negative.reader}
    moved = [None] if control is None else [None, card, control]
    return [(reader, side) for name, side in texts.items() for reader in (own[name], *moved)]


def _texts(
    card: ResolvedCard, contrast: Contrast, settings: Settings, tokenizer: Any
) -> tuple[dict[str, list[Text]], set[str], set[str]]:
    """Return the encoded texts by side, and the questions to find on and to test on.

    Raises:
        EmEvalsError: too few answers on a side.
    """
    # The card's template for both sides, whichever model reads them: models are compared on the same tokens.
    template = template_for(card, tokenizer)
    texts = {
        name: encode(template, side.chats, settings.max_length)
        for name, side in (("positive", contrast.positive), ("negative", contrast.negative))
    }
    found, held_out = halves([text.group for side in texts.values() for text in side], settings.split)
    for name, side in texts.items():
        _enough(name, sum(text.group in found for text in side), len(side), settings)
    cluster = _clusters(found) | _clusters(held_out)
    clustered = {
        name: [replace(text, group=cluster[text.group]) for text in side] for name, side in texts.items()
    }
    return clustered, found, held_out


def _mean_difference(
    card: ResolvedCard,
    contrast: Contrast,
    settings: Settings,
    sides: Sides,
    base: Sequence[GroupSums],
    found: set[str],
) -> Direction:
    """Return the direction on the questions to find on, with its folds over all questions.

    Raises:
        EmEvalsError: both sides have the same activations.
    """
    direction = mean_difference(
        sides, base, found, _provenance(card, contrast, settings, sides.only(found), found)
    )
    if direction is None:
        raise EmEvalsError(
            f"both sides have the same activations at {settings.position} ({contrast.how}): there is no direction "
            "between them; take other texts, or another --position."
        )
    return direction


def mean_difference(
    sides: Sides, base: Sequence[GroupSums], found: set[str], metadata: dict[str, Any]
) -> Direction | None:
    """Return the mean difference on the questions to find on; None where it is rounding alone.

    Args:
        sides: both sides' sums, by question.
        base: the bare base's sums on the same texts, a side each.
        found: the questions to find on; folds are over all.
        metadata: of the direction.
    """
    own = [side.only(found) for side in base]
    direction = Direction(
        sides.only(found).difference().astype(np.float32),
        np.mean([part.mean() for part in own], axis=0).astype(np.float32),
        np.mean([part.mean_norm() for part in own], axis=0).astype(np.float32),
        metadata,
        folds(sides, base),
    )
    return direction if direction_algebra.beyond_rounding(direction).any() else None


class Passes:
    """Activations of texts by models, each computed once and kept until the extraction is complete."""

    def __init__(
        self,
        card: ResolvedCard,
        reading: Reading | None,
        position: Position,
        state: Path | None,
        what: str = "texts",
    ) -> None:
        # Which base, and how it is loaded: states of another base must not be used, even with equal tokens.
        self._base = replace(card, adapter_path=None, interventions=()).digest
        self._card, self._reading, self._position = card, reading, position
        self._state, self._what = state, what
        self._done: dict[str, GroupSums] = {}

    def read(self, side: Side, texts: Sequence[Text]) -> GroupSums:
        """Return the sums of texts as a side's model reads them; computed once."""
        who = _who(side.reader)
        identity = self._identity(who, texts)
        if identity not in self._done:
            kept = self._state / f"{identity}.safetensors" if self._state else None
            self._reading = self._reading or Reading(self._card)
            named = f"{self._what}, read by {who.name if who else 'the base'}"
            with (
                locks.alone(kept) if kept else nullcontext(),  # another process may be reading the same
                progress.bar(named, len(texts)) as advance,
                self._reading.read_as(who) as model,
            ):
                self._done[identity] = group_sums(model, texts, self._position, kept, advance)
        return self._done[identity]

    def read_elsewhere(self, elsewhere: Elsewhere, wanted: Wanted) -> None:
        """Have texts read in other processes, all at once: `read` then returns their sums."""
        distinct = {self._identity(_who(reader), texts): (_who(reader), texts) for reader, texts in wanted}
        with progress.bar(self._what, sum(len(texts) for _, texts in distinct.values())) as advance:
            found = elsewhere(list(distinct.values()), advance)
        self._done |= dict(zip(distinct, found, strict=True))

    def _identity(self, who: ResolvedCard | None, texts: Sequence[Text]) -> str:
        return files.digest(self._base, who.digest if who else "", self._position, repr(texts))


def _who(reader: ResolvedCard | None) -> ResolvedCard | None:
    """Return None for a card without adapter and interventions: it is its base, which is not computed twice."""
    return None if bare(reader) else reader


def _possible(contrast: Contrast, settings: Settings) -> None:
    if contrast.by_answers and settings.position != "answer_mean":
        raise EmEvalsError(
            f"--position {settings.position} reads nothing of the answers, and only they differ here "
            f"({contrast.how}): take answer_mean, or --contrast models."
        )


def halves(groups: Sequence[str], split: bool) -> tuple[set[str], set[str]]:
    """Split questions into those to find on and to test on, by digests of their ids: the same in every extraction."""
    every = _ordered(groups)
    if not split:
        return set(every), set()
    return set(every[: (len(every) + 1) // 2]), set(every[(len(every) + 1) // 2 :])


def _clusters(questions: set[str]) -> dict[str, str]:
    """Return the question under which each is summed: itself, or a representative of its cluster if they are too many.

    Digests decide the clusters: a bootstrap over such clusters estimates the same as one over the questions.
    """
    every = _ordered(questions)
    return {question: every[number % _CLUSTERS] for number, question in enumerate(every)}


def _ordered(questions: Iterable[str]) -> list[str]:
    return sorted(set(questions), key=files.digest)


def _enough(name: str, here: int, total: int, settings: Settings) -> None:
    minimum = max(settings.minimum, 1)  # an empty side has no mean
    if here >= minimum:
        return
    half = f" ({total} before half of the questions were kept for testing)" if settings.split else ""
    raise EmEvalsError(
        f"the {name} side has {here} answers{half}, and a direction needs {minimum}: draw more answers, or "
        "lower --minimum and read its reliability."
    )


def _movement(
    passes: Passes,
    texts: Mapping[str, Sequence[Text]],
    groups: set[str],
    direction: Direction,
    models: Mapping[str, ResolvedCard],
) -> dict[str, list[float | None]]:
    """Compute (mean of the model - mean of its base)·u / |v| on the same texts, by layer: 1 is the direction's norm."""

    def mean(reader: ResolvedCard | None) -> NDArray[np.float64]:
        # All texts of a side are read, though only some count: most sides are computed already.
        parts = [passes.read(Side((), reader), side).only(groups) for side in texts.values()]
        weights = [part.counts.sum() for part in parts]
        return np.asarray(np.average([part.mean() for part in parts], axis=0, weights=weights))

    lengths = np.where(
        direction_algebra.beyond_rounding(direction), np.linalg.norm(direction.vectors, axis=1), np.inf
    )
    along = direction_algebra.unit(direction)
    base = mean(None)
    moved = {name: _rounded(((mean(card) - base) * along).sum(1) / lengths) for name, card in models.items()}
    # Below the first adapted block the two models are equal: there is no direction.
    return {
        name: [value if there else None for value, there in zip(values, np.isfinite(lengths), strict=True)]
        for name, values in moved.items()
    }


def _provenance(
    card: ResolvedCard,
    contrast: Contrast,
    settings: Settings,
    found: Sides,
    questions: set[str],
) -> dict[str, Any]:
    return {
        "base": card.card.base,
        "revision": card.card.revision,
        "card": card.name,
        "card_digest": card.digest,
        "how": contrast.how,
        "position": settings.position,
        "counts": [int(side.counts.sum()) for side in (found.positive, found.negative)],
        "questions": sorted(questions),
        "sources": contrast.sources,
        "seed": settings.seed,
    }


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 6) for value in values]
