"""Split pairs and questions: which choose, which report, and which are left out since a direction was found on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from em_evals import files
from em_evals.content.pairs import Pair, PairSet
from em_evals.content.questions import Question
from em_evals.errors import EmEvalsError

_ENOUGH = 8
"""Minimum pairs (or questions) per half; with fewer, those that found a direction are not left out."""

Item = TypeVar("Item", Pair, Question)


@dataclass(frozen=True)
class Halves:
    """Pairs and questions by purpose, and notes on how they were divided."""

    choosing: tuple[Pair, ...]
    reporting: tuple[Pair, ...]
    choosing_questions: tuple[Question, ...]
    reporting_questions: tuple[Question, ...]
    notes: tuple[str, ...]


def chooses(name: str) -> bool:
    """Check whether an id belongs to the choosing half: by its digest, the same in every study."""
    return int(files.digest(name), 16) % 2 == 0


def halves(
    pairs: PairSet,
    per_theme: int | None,
    questions: Sequence[Question],
    limit: int | None,
    found_on: Collection[str],
) -> Halves:
    """Divide pairs and questions in two.

    Args:
        pairs: forced-choice pairs.
        per_theme: use the first N of each theme; None for all.
        questions: open questions.
        limit: use the first N of them; None for all.
        found_on: the questions that the directions were found on (`directions.found_on`).

    Raises:
        EmEvalsError: a half is empty.
    """
    kept, told = _unseen(pairs.pairs, found_on, "pairs")
    first = set(replace(pairs, pairs=kept).first(per_theme or len(kept)))
    chosen = [pair for pair in kept if pair.id in first]
    asked, told_too = _unseen(tuple(questions), found_on, "questions")
    asked = asked[:limit]
    one, other = _divided(chosen, "pairs")
    ones, others = _divided(asked, "questions")
    domains = [sum(pair.narrow for pair in half) for half in (one, other)]
    note = (
        f"the layer was chosen on {len(one)} pairs ({domains[0]} in-domain) and {len(ones)} questions; everything "
        f"here is measured on {len(other)} others ({domains[1]} in-domain) and {len(others)} questions."
    )
    return Halves(one, other, ones, others, (note, *told, *told_too))


def names_of(item: Pair | Question) -> set[str]:
    """Return the names of a pair or question in a direction's file: ids, wordings, and their digests (contrast.py)."""
    if isinstance(item, Pair):
        ids, wordings = {item.id}, {item.question}
    else:
        ids = {item.id} | {f"{item.id}/{number}" for number in range(1, len(item.paraphrases) + 1)}
        wordings = set(item.paraphrases)
    return ids | wordings | {files.digest(text.strip()) for text in wordings}


def _unseen(
    items: tuple[Item, ...], found_on: Collection[str], what: str
) -> tuple[tuple[Item, ...], list[str]]:
    """Return items that no direction was found on, if enough are left; and the note that reports it."""
    fresh = tuple(item for item in items if not names_of(item) & set(found_on))
    seen = len(items) - len(fresh)
    if not seen:
        return items, []
    sides = [sum(chooses(item.id) for item in fresh), sum(not chooses(item.id) for item in fresh)]
    if min(sides) >= _ENOUGH:
        return fresh, [f"{seen} {what} that a direction was found on are left out."]
    return items, [
        f"{seen} of the {len(items)} {what} are among those that a direction was found on, and too few others "
        f"remain ({len(fresh)}) to leave them out: these effects are biased upward."
    ]


def _divided(items: Sequence[Item], what: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    one = tuple(item for item in items if chooses(item.id))
    other = tuple(item for item in items if not chooses(item.id))
    if not one or not other:
        raise EmEvalsError(
            f"{len(items)} {what} are too few to choose a layer on one half and to report on the other; take more."
        )
    return one, other
