"""Screen training data before training: which rows push a model along a direction (arXiv 2507.21509, section 6).

The projection difference of a row without generation: mean of h·u over the answer's tokens minus h·u at the last prompt
token, with u the unit vector of a trait. The exact form subtracts the mean over the base's own answer instead
(own_answers.py); replications found the form without generation as good in five of six cases. Rows stream: what is kept
of each is a few numbers.

Length, language, topic, and directions that carry nothing of the trait, separate data sets too: all are told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from em_evals.content import direction_algebra
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.data import formats, row_files
from em_evals.data.separators import Separators, topic_scores
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading
from em_evals.interp.traits.own_answers import Answers
from em_evals.interp.traits.screened_parts import Part, Parts
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.models.projections import ANSWER_MEAN, LAST_PROMPT, project
from em_evals.results.records.claims import Claim
from em_evals.stats import intervals

OWN_ANSWER = 2
"""The place after LAST_PROMPT and ANSWER_MEAN."""
CHUNK = 256
"""Rows in memory at once; the order of results does not depend on it."""
MEASURE = "AUROC of the projection difference against the reference"

Floats = NDArray[np.floating]
Rows = Sequence[tuple[int, formats.Messages]]
"""Chats with their lines in a file."""


Elsewhere = Callable[[Floats, Path, int], Iterator[Part]]
"""(unit vectors [directions, 1, width], file, rows of a chunk) -> the file's chunks, in order."""


@dataclass(frozen=True, eq=False)
class Screened:
    """A file's rows.

    Attributes:
        lines: the line of each row in the file.
        tokens: [rows], tokens of each answer.
        projections: float32 [rows, 3], h·u at the last prompt token, its mean over the row's answer, and its mean over
            the model's own answer (NaN without one).
        differences: float32 [rows, 1 + nulls]: the answer's mean minus the last prompt token (`exact`: minus the own
            answer's mean), of the direction and of each null draw.
        exact: whether the model's own answers are subtracted.
        skipped: rows whose prompt fills the model's context, or that the model has no answer of its own for.
        separators: what tells files apart without a model.
    """

    lines: NDArray[np.int64]
    tokens: NDArray[np.int64]
    projections: NDArray[np.float32]
    differences: NDArray[np.float32]
    exact: bool
    skipped: int
    separators: Separators

    @property
    def order(self) -> NDArray[np.intp]:
        """Rows from the largest difference to the smallest; equal ones in the file's order."""
        return np.argsort(-self.differences[:, 0], kind="stable")

    @property
    def generation_free(self) -> NDArray[np.float32]:
        """[rows], the answer's mean minus the last prompt token."""
        return np.asarray(self.projections[:, ANSWER_MEAN] - self.projections[:, LAST_PROMPT])


def screen(
    card: ResolvedCard,
    direction: Direction,
    layer: int,
    path: Path,
    drawn: Floats | None = None,
    chunk: int = CHUNK,
    own: Answers | None = None,
    elsewhere: Elsewhere | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    state: Path | None = None,
) -> Screened:
    """Compute every row's projection difference.

    Args:
        card: the model that reads; usually the base that will be trained.
        direction: the trait.
        layer: its block.
        path: chats (JSONL or parquet).
        drawn: [draws, layers, width], null directions; None: none.
        chunk: rows that are read at once.
        own: the model's own answers, for the exact difference; None: the generation-free one.
        elsewhere: reads the file's chunks in other processes, in order (without `own`); None: in this one.
        advance: called with the number of rows that were read (a progress bar).
        state: a folder for the chunks that were read, from which an interrupted screening resumes (not with `own` or
            `elsewhere`). The caller deletes it.

    Raises:
        EmEvalsError: no such layer, or a row is invalid (with file and line).
    """
    if not 0 <= layer < direction.layers:
        raise EmEvalsError(f"there is no layer {layer}; this direction's are 0 to {direction.layers - 1}.")
    along = direction_algebra.unit(direction)[None]
    if drawn is not None:
        along = np.concatenate([along, nulls.units(drawn)])
    found: list[Part] = []
    skipped = 0
    separators = Separators()
    pairs: Iterator[tuple[Rows, Part]]
    here = along[:, [layer]]
    kept_parts = Parts(
        None if own is not None else state, card.digest.encode(), here.tobytes(), b"%d" % layer
    )
    if elsewhere is None:
        reader = RowReader(card, here, layer)
        pairs = (
            (rows, kept_parts.part(rows, partial(reader.read, rows, own)))
            for rows in chunks(_rows(path), chunk)
        )
    else:
        pairs = _beside(chunks(_rows(path), chunk), elsewhere(here, path, chunk), path)
    for rows, part in pairs:
        found.append(part)
        advance(len(rows))
        skipped += len(rows) - len(part.lines)
        kept = set(part.lines.tolist())
        if not kept <= {line for line, _ in rows}:
            raise _changed(path)
        for line, messages in rows:
            if line in kept:
                separators.add("\n".join(turn["content"] for turn in messages[:-1]), messages[-1]["content"])
    if not found:
        raise EmEvalsError("this file has no rows.", path)
    if not any(len(part.lines) for part in found):
        raise EmEvalsError("no row of this file fits the model's context.", path)
    whole = np.concatenate([part.values for part in found])
    before = whole[:, OWN_ANSWER if own is not None else LAST_PROMPT]
    return Screened(
        np.concatenate([part.lines for part in found]),
        np.concatenate([part.tokens for part in found]),
        whole[:, :, 0],
        whole[:, ANSWER_MEAN] - before,
        own is not None,
        skipped,
        separators,
    )


def _beside(rows: Iterator[Rows], parts: Iterator[Part], path: Path) -> Iterator[tuple[Rows, Part]]:
    """Yield a file's chunks with what other processes read of them."""
    for some, part in zip_longest(rows, parts):
        if some is None or part is None:
            raise _changed(path)
        yield some, part


def _changed(path: Path) -> EmEvalsError:
    return EmEvalsError("this file changed while it was read; run the command again.", path)


class RowReader:
    """Reads rows with a card's base.

    Args:
        card: the model that reads.
        along: float32 [directions, 1, width], unit vectors.
        layer: their block.
    """

    def __init__(self, card: ResolvedCard, along: Floats, layer: int) -> None:
        self._card, self._along, self._layer = card, along, layer
        self._reading = Reading(card)
        self._template = template_for(card, self._reading.tokenizer)

    def read(self, rows: Rows, own: Answers | None = None) -> Part:
        """Return what is read of rows, beside the model's own answers where they are given."""
        kept = _kept(rows, self._template, own, self._reading.longest)
        every = [text for _, texts in kept for text in texts]
        with self._reading.read_as(self._card) as model:
            read = project(model, every, self._along, [self._layer])[:, :, 0]
        return Part(
            np.array([line for line, _ in kept], dtype=np.int64),
            np.array([len(texts[0].answer) for _, texts in kept], dtype=np.int64),
            _parts(read, own is not None),
        )


def _kept(
    rows: Rows, template: ChatTemplate, own: Answers | None, longest: int
) -> list[tuple[int, list[Text]]]:
    """Return the lines of the rows that fit the model's context, and the texts to read."""
    beside = own.of(rows) if own is not None else [None] * len(rows)
    return [
        (line, texts)
        for (line, messages), answer in zip(rows, beside, strict=True)
        if (texts := _texts(template, messages, answer, longest)) is not None
    ]


def _parts(read: NDArray[np.float32], exact: bool) -> NDArray[np.float32]:
    """Return [rows, 3 places, directions]: the last prompt token, the answer's mean, the own answer's mean."""
    if not exact:
        return np.concatenate([read, np.full_like(read[:, :1], np.nan)], axis=1)
    given, own = read[0::2], read[1::2]
    return np.concatenate([given, own[:, [ANSWER_MEAN]]], axis=1)


def auroc(positive: Floats, negative: Floats) -> NDArray[np.float64]:
    """Return [columns], the chance that a row of `positive` exceeds one of `negative`; ties count half.

    Args:
        positive: [rows, columns].
        negative: [rows, columns].
    """
    from em_evals.stats import ranks  # scipy.stats comes with it

    both = np.concatenate([positive, negative]).T
    return ranks.auroc(both, np.arange(both.shape[1]) < len(positive))


@dataclass(frozen=True)
class Compared:
    """A file beside a reference set.

    Attributes:
        claim: the AUROC of the projection difference, beside that of null directions.
        alone: AUROCs of what needs no model: `length`, `language`, `topic`.
        difference: mean of the file minus mean of the reference.
        interval: of the difference, 95% (Welch).
    """

    claim: Claim
    alone: dict[str, float]
    difference: float
    interval: tuple[float, float]


def compared(own: Screened, reference: Screened, kinds: dict[str, slice]) -> Compared:
    """Compare a file with a reference set.

    Args:
        own: the file's rows.
        reference: the reference's.
        kinds: null -> its columns of `differences`; nulls count with either sign, since a random direction has none.
    """
    found = auroc(own.differences, reference.differences)
    beside = {name: np.maximum(found[some], 1 - found[some]) for name, some in kinds.items()}
    claim = nulls.claim(MEASURE, found[:1], beside)
    usual = reference.separators.usual
    scored = {
        "length": (own.tokens.astype(float), reference.tokens.astype(float)),
        "language": (own.separators.foreign(usual), reference.separators.foreign(usual)),
        "topic": topic_scores(own.separators, reference.separators),
    }
    alone = {name: float(auroc(a[:, None], b[:, None])[0]) for name, (a, b) in scored.items()}
    one, other = (part.differences[:, 0].astype(float) for part in (own, reference))
    interval = intervals.mean_difference(other, one)
    return Compared(
        claim.model_copy(update={"layer": None}), alone, float(one.mean() - other.mean()), interval
    )


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


def chunks(rows: Iterator[tuple[int, formats.Messages]], size: int) -> Iterator[Rows]:
    """Yield rows in lists of `size`."""
    while some := list(islice(rows, size)):
        yield some


def rows_at(path: Path, offset: int, before: int, count: int) -> Rows:
    """Return `count` chats of a file from a place on (`row_files.places`), with their lines."""
    return list(islice(_rows(path, offset, before), count))


def _rows(path: Path, offset: int = 0, before: int = 0) -> Iterator[tuple[int, formats.Messages]]:
    """Yield a file's chats with their lines, one at a time."""
    for number, row in row_files.read(path, offset, before):
        try:
            yield number, formats.chat(row)
        except formats.Refused as error:
            raise EmEvalsError(str(error), path, number) from None


def _texts(
    template: ChatTemplate, messages: Sequence[dict[str, str]], own: str | None, longest: int
) -> list[Text] | None:
    """Return a row's tokens, and those of the model's own answer where it is given; None where one does not fit.

    Answers are cut to the model's context.
    """
    prompt = tuple(template.encode(messages[:-1]))
    texts = [messages[-1]["content"], *([own] if own is not None else [])]
    answers = [tuple(template.answer(text))[: longest - len(prompt)] for text in texts]
    return [Text(prompt, answer) for answer in answers] if len(prompt) < longest and all(answers) else None
