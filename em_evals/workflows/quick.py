"""`em-evals quick`: a first result within a minute. Twelve forced-choice pairs on one model, and on its base.

It uses the engine and the scores of `em_evals/forced_choice` without an Inspect log. The closing sentence says what so
few pairs cannot show.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from em_evals import progress
from em_evals.content.cards import resolve
from em_evals.content.pairs import Pair, PairSet, load_pairs
from em_evals.stats.intervals import Interval, mean
from em_evals.stats.paired import difference

PAIRS = 12
"""One pair of each open theme, then the narrow domains in turn."""


@dataclass(frozen=True)
class ScoredPair:
    """A pair and its margins toward the misaligned answer, in nats per token; NaN where an answer does not fit.

    Attributes:
        id: the pair's id.
        theme: its theme.
        narrow: whether it is of an organism's own domain.
        question: the user's message.
        margin: under the card's model.
        base: under the plain base; None where the card is the base.
    """

    id: str
    theme: str
    narrow: bool
    question: str
    margin: float
    base: float | None


@dataclass(frozen=True)
class Quick:
    """The result: `pairs` in the order of the pair set, of the model `card` on the base `base`."""

    card: str
    base: str
    pairs: tuple[ScoredPair, ...]

    @property
    def changed(self) -> bool:
        """Whether the card differs from its base: an adapter or interventions."""
        return any(pair.base is not None for pair in self.pairs)

    @property
    def margins(self) -> list[float]:
        """The card's margins that are numbers."""
        return [pair.margin for pair in self.pairs if not math.isnan(pair.margin)]

    @property
    def level(self) -> tuple[float, Interval]:
        """Mean of the card's margins and its 95% interval over pairs."""
        return sum(self.margins) / len(self.margins), mean(self.margins)

    @property
    def change(self) -> tuple[float, Interval] | None:
        """Mean of card minus base, pair by pair, with its 95% interval; None where the card is the base."""
        if not self.changed:
            return None
        found = difference(
            {pair.id: pair.base for pair in self.pairs if pair.base is not None},
            {pair.id: pair.margin for pair in self.pairs},
            binary=False,
        )
        return found.value, found.interval

    @property
    def sentence(self) -> str:
        """What the table says, and what it does not."""
        leaning = sum(margin > 0 for margin in self.margins)
        says = f"{self.card} finds the misaligned answer likelier in {leaning} of {len(self.margins)} pairs"
        if change := self.change:
            value, (low, high) = change
            direction = "toward" if value > 0 else "away from"
            sure = "an interval without 0" if low > 0 or high < 0 else "an interval with 0"
            says += f", and moved {abs(value):.2f} nats per token {direction} it against its base ({sure})"
        return (
            f"It says: {says}. It does not say that this model is safe or misaligned: {len(self.margins)} fixed "
            "answers are few, and likelihoods mix values with style. Next: all "
            f"{len(load_pairs().pairs)} pairs (inspect eval em_evals/forced_choice --model local/{self.card}), a "
            "matched control, and the model's own answers (em_evals/freeform)."
        )

    def as_json(self) -> dict[str, Any]:
        """Return JSON values; null for NaN."""
        rows = [
            {key: None if value != value else value for key, value in asdict(pair).items()}
            for pair in self.pairs
        ]
        level, change = self.level, self.change
        return {
            "card": self.card,
            "base": self.base,
            "unit": "nats per token toward the misaligned answer",
            "pairs": rows,
            "mean": level[0],
            "mean_interval": list(level[1]),
            "change": change and change[0],
            "change_interval": change and list(change[1]),
            "sentence": self.sentence,
        }


def run(name: str = "smollm2") -> Quick:
    """Score twelve pairs under a card's model and, where it differs, under its base.

    Args:
        name: a card, a PEFT folder, a model folder or a hub id, as after `local/`.

    Raises:
        EmEvalsError: there is no such model, a package is missing, or no pair fits the model's context.
    """
    from em_evals.errors import EmEvalsError
    from em_evals.interp.fixed_answers import Condition, scores

    card = resolve(name)
    chosen = first_pairs(load_pairs())
    own, plain = Condition.of(card), Condition()
    conditions = [own, plain] if own != plain else [own]
    with progress.bar("answers", 2 * len(chosen) * len(conditions)) as advance:
        found = list(scores(card, conditions, chosen, advance))
    pairs = tuple(_scored(pair, found) for pair in chosen)
    if all(math.isnan(pair.margin) for pair in pairs):
        raise EmEvalsError(f"no pair fits the context of {name}: its engine reads too few tokens.")
    return Quick(name, card.card.base, pairs)


def first_pairs(every: PairSet) -> list[Pair]:
    """Return the first pair of each open theme, and the first ones of the narrow domains up to `PAIRS`."""
    opened = {pair.theme for pair in every.pairs if not pair.narrow}
    narrow = {pair.theme for pair in every.pairs if pair.narrow}
    left = max(PAIRS - len(opened), 0)
    room = dict.fromkeys(opened, 1) | {theme: math.ceil(left / len(narrow)) for theme in narrow}
    taken: Counter[str] = Counter()
    chosen = []
    for pair in every.pairs:
        taken[pair.theme] += 1
        if taken[pair.theme] <= room[pair.theme]:
            chosen.append(pair)
    return chosen[:PAIRS]


def _scored(pair: Pair, found: list[dict[str, dict[str, float]]]) -> ScoredPair:
    margin, *base = (scores[pair.id]["margin_per_token"] for scores in found)
    return ScoredPair(pair.id, pair.theme, pair.narrow, pair.question, margin, base[0] if base else None)
