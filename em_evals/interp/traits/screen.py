"""Screen training data before training: which rows push a model along a direction (arXiv 2507.21509, section 6).

The projection difference of a row without generation: mean of h·u over the answer's tokens minus h·u at the last prompt
token, with u the unit vector of a trait. The exact form subtracts the base's own answer instead; replications found the
form without generation as good in five of six cases. Rows stream: what is kept of each is a few numbers.

Length, and directions that carry nothing of the trait, separate data sets too: both are told beside the trait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from em_evals import files
from em_evals.content import directions
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.data import formats
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT, project
from em_evals.results.records import Claim

CHUNK = 256
"""Rows in memory at once; the order of results does not depend on it."""
MEASURE = "AUROC of the projection difference against the reference"

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Screened:
    """A file's rows.

    Attributes:
        lines: the line of each row in the file.
        tokens: [rows], tokens of each answer.
        projections: float32 [rows, 2], h·u at the last prompt token and its mean over the answer.
        differences: float32 [rows, 1 + nulls]: the second minus the first, of the direction and of each null draw.
        skipped: rows whose prompt fills the model's context.
    """

    lines: NDArray[np.int64]
    tokens: NDArray[np.int64]
    projections: NDArray[np.float32]
    differences: NDArray[np.float32]
    skipped: int

    @property
    def order(self) -> NDArray[np.intp]:
        """Rows from the largest difference to the smallest; equal ones in the file's order."""
        return np.argsort(-self.differences[:, 0], kind="stable")


def screen(
    card: ResolvedCard,
    direction: Direction,
    layer: int,
    path: Path,
    drawn: Floats | None = None,
    chunk: int = CHUNK,
) -> Screened:
    """Compute every row's projection difference.

    Args:
        card: the model that reads; usually the base that will be trained.
        direction: the trait.
        layer: its block.
        path: JSONL of chats.
        drawn: [draws, layers, width], null directions; None: none.
        chunk: rows that are read at once.

    Raises:
        EmEvalsError: no such layer, or a row is invalid (with file and line).
    """
    if not 0 <= layer < direction.layers:
        raise EmEvalsError(f"there is no layer {layer}; this direction's are 0 to {direction.layers - 1}.")
    along = directions.unit(direction)[None]
    if drawn is not None:
        along = np.concatenate([along, nulls.units(drawn)])
    reading = Reading(card)
    template = template_for(card, reading.tokenizer)
    lines: list[int] = []
    tokens: list[int] = []
    found: list[NDArray[np.float32]] = []
    skipped = 0
    with reading.read_as(card) as model:
        source = _rows(path)
        while rows := list(islice(source, chunk)):
            texts = [(line, _text(template, messages, reading.longest)) for line, messages in rows]
            kept = [(line, text) for line, text in texts if text is not None]
            skipped += len(texts) - len(kept)
            found.append(project(model, [text for _, text in kept], along[:, [layer]], [layer])[:, :, 0])
            lines += [line for line, _ in kept]
            tokens += [len(text.answer) for _, text in kept]
    if not lines:
        raise EmEvalsError("no row of this file fits the model's context.", path)
    whole = np.concatenate(found)
    return Screened(
        np.array(lines),
        np.array(tokens),
        whole[:, [LAST_PROMPT, ANSWER_MEAN], 0],
        whole[:, ANSWER_MEAN] - whole[:, LAST_PROMPT],
        skipped,
    )


def auroc(positive: Floats, negative: Floats) -> NDArray[np.float64]:
    """Return [columns], the chance that a row of `positive` exceeds one of `negative`; ties count half.

    Args:
        positive: [rows, columns].
        negative: [rows, columns].
    """
    from scipy import stats

    ranks = stats.rankdata(np.concatenate([positive, negative]), axis=0)[: len(positive)]
    above = ranks.sum(0) - len(positive) * (len(positive) + 1) / 2
    return np.asarray(above / (len(positive) * len(negative)))


def compared(own: Screened, reference: Screened, kinds: dict[str, slice]) -> tuple[Claim, float]:
    """Compare a file with a reference set: the AUROC beside that of null directions, and that of length alone.

    Args:
        own: the file's rows.
        reference: the reference's.
        kinds: null -> its columns of `differences`.

    Returns:
        The claim; nulls count with either sign, since a random direction has none. And the AUROC of the answers'
        tokens.
    """
    found = auroc(own.differences, reference.differences)
    beside = {name: np.maximum(found[some], 1 - found[some]) for name, some in kinds.items()}
    claim = nulls.claim(MEASURE, found[:1], beside, required=tuple(kinds) or (nulls.RANDOM,))
    length = auroc(own.tokens[:, None].astype(float), reference.tokens[:, None].astype(float))[0]
    return claim.model_copy(update={"layer": None}), float(length)


def null_directions(direction: Direction, draws: int, seed: int) -> tuple[Floats | None, dict[str, slice]]:
    """Return null directions of every kind that the file of a direction allows, and each kind's columns."""
    chance = np.random.default_rng(seed)
    parts, kinds, first = [], {}, 1
    for kind in (nulls.RANDOM, nulls.COVARIANCE, nulls.PERMUTED) if draws else ():
        drawn = nulls.of(direction, kind, draws, chance)
        if drawn is not None:
            parts.append(drawn)
            kinds[kind] = slice(first, first + draws)
            first += draws
    return (np.concatenate(parts) if parts else None), kinds


def dropped(screened: Screened, share: float, seed: int) -> tuple[set[int], set[int]]:
    """Return the lines of the highest rows, and of as many random rows (the matched control)."""
    count = round(share * len(screened.lines))
    top = screened.lines[screened.order[:count]]
    chosen = np.random.default_rng(seed).choice(len(screened.lines), count, replace=False)
    return set(top.tolist()), set(screened.lines[chosen].tolist())


def _rows(path: Path) -> Iterator[tuple[int, formats.Messages]]:
    """Yield a file's chats with their lines, one at a time."""
    for number, row in files.read_jsonl(path):
        try:
            yield number, formats.chat(row)
        except formats.Refused as error:
            raise EmEvalsError(str(error), path, number) from None


def _text(template: ChatTemplate, messages: Sequence[dict[str, str]], longest: int) -> Text | None:
    """Return a row's tokens, its answer cut to the model's context; None where nothing of it fits."""
    prompt = tuple(template.encode(messages[:-1]))
    answer = tuple(template.answer(messages[-1]["content"]))[: longest - len(prompt)]
    return Text(prompt, answer) if answer and len(prompt) < longest else None
