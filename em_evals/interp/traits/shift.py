"""Finetuning shifts along traits against what the finetunes then show (persona vectors, arXiv 2507.21509, section 4).

shift = mean over test prompts of (h_organism - h_base)·u, at the last prompt token and without a system prompt, as in
the paper; or over the tokens of the base's own greedy answers, which both models read.

Finetunes on data of one kind differ mostly in how far they moved, along one axis: then any direction's shift correlates
with anything that grows with it. So a correlation is printed beside that of permuted scores, of random and
covariance-matched directions and of other traits, each at its own best layer, and corrected for the number of traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.content import direction_algebra
from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Request, Sampling
from em_evals.errors import EmEvalsError
from em_evals.interp import nulls
from em_evals.interp.extraction.contrast import bare
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.extraction.reading import Reading, check_base
from em_evals.interp.traits.monitor import PLACES, PositionName, correlation
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.models.projections import states
from em_evals.results.records.claims import Claim

Floats = NDArray[np.floating]

LEAST = 5
"""Finetunes (or groups of seeds) that a correlation needs: fewer cannot be told from a permutation of them."""
_STILL = 1e-5
"""A shift below this share of the base's mean norm is rounding: below the first adapted block models are equal."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """One model's shift on the test prompts of each trait.

    Attributes:
        means: trait -> float32 [layers, width], the mean over its prompts.
        along: trait -> float32 [prompts, layers], each prompt's projection on the trait's unit vector.
    """

    means: Mapping[str, NDArray[np.float32]]
    along: Mapping[str, NDArray[np.float32]]


def measure(
    cards: Sequence[ResolvedCard],
    traits: Mapping[str, tuple[Direction, Sequence[str]]],
    position: PositionName = "last_prompt",
    max_tokens: int = 60,
) -> dict[str, Shifts]:
    """Compute every model's shift from the base that they share.

    Args:
        cards: organisms and controls.
        traits: trait -> its direction and its test prompts.
        position: the last prompt token, or the mean over the base's greedy answer.
        max_tokens: of these answers.

    Raises:
        EmEvalsError: a card has another base or is its base itself, or a prompt is too long.
    """
    for card in cards:
        check_base(card, cards[0].card.base)
        if bare(card):
            raise EmEvalsError(
                f"{card.name} has nothing on top of its base, so there is no shift: leave it out."
            )
    reading = Reading(cards[0])
    questions = list(dict.fromkeys(one for _, prompts in traits.values() for one in prompts))
    answers = _Answers(cards[0], reading.longest, max_tokens if position == "answer_mean" else 0)
    of_base: dict[tuple[Text, ...], NDArray[np.float32]] = {}
    found = {}
    for card in cards:
        texts = answers.texts(template_for(card, reading.tokenizer), questions)
        if texts not in of_base:
            of_base[texts] = _states(reading, None, texts, position)
        moved = _states(reading, card, texts, position) - of_base[texts]
        rows = {
            name: moved[[questions.index(one) for one in prompts]] for name, (_, prompts) in traits.items()
        }
        found[card.name] = Shifts(
            {name: own.mean(0) for name, own in rows.items()},
            {
                name: np.einsum("qlw,lw->ql", own, direction_algebra.unit(traits[name][0]))
                for name, own in rows.items()
            },
        )
    return found


def claim(
    shifts: Floats,
    scores: Floats,
    direction: Direction,
    others: Mapping[str, Direction],
    draws: int = nulls.DRAWS,
    seed: int = 0,
) -> tuple[float | None, Claim]:
    """Correlate shifts along a direction with scores, at the layer of the largest r, beside null directions.

    Null directions count with either sign, since they have none; the trait's own with its sign.

    Args:
        shifts: [models, layers, width], mean shifts.
        scores: [models], how much of the trait they show after training.
        direction: the trait's.
        others: directions of other traits.
        draws: of each null.
        seed: of the draws.

    Returns:
        r and the claim; None and `not estimable` with fewer than five models, or where nothing moved or nothing varies.
    """
    measure = "largest r over layers of shift and score"
    kept = np.isfinite(scores)
    shifts, scores = np.asarray(shifts, dtype=float)[kept], np.asarray(scores, dtype=float)[kept]
    if len(scores) < LEAST:
        return None, Claim(measure=measure, value=None, verdict="not estimable")
    still = np.linalg.norm(shifts, axis=-1).max(0) <= _STILL * np.maximum(direction.mean_norm, 1e-12)

    def r(vectors: Floats, of: Floats) -> NDArray[np.float64]:
        along = np.einsum("mlw,...lw->ml...", shifts, vectors)
        # On models that differ in strength alone all r are 1, and what is beyond six digits is rounding.
        found = np.round(correlation(along, of), 6)
        return np.where(still.reshape(-1, *[1] * (along.ndim - 2)), np.nan, found)

    own = r(direction_algebra.unit(direction), scores)
    chance = np.random.default_rng(seed)
    beside: dict[str, Floats] = {}
    for kind in (nulls.RANDOM, nulls.COVARIANCE) if draws else ():
        parts = []
        for begin in range(0, draws, nulls.AT_ONCE):
            drawn = nulls.of(direction, kind, min(nulls.AT_ONCE, draws - begin), chance)
            parts += [] if drawn is None else [np.abs(r(drawn, scores)).T]
        if parts:
            beside[kind] = np.concatenate(parts)
    along = direction_algebra.unit(direction)
    if draws:
        beside[nulls.PERMUTED] = np.stack([r(along, chance.permutation(scores)) for _ in range(draws)])
        found_along = nulls.of(direction, nulls.COMPONENTS, nulls.COMPONENTS_SHOWN, chance)
        if found_along is not None:
            beside[nulls.COMPONENTS] = np.abs(r(found_along, scores)).T
    if others:
        stacked = np.stack([direction_algebra.unit(one) for one in others.values()])
        beside[nulls.OTHERS] = np.abs(r(stacked, scores)).T
    found = nulls.claim(measure, own, beside)
    return found.value, found


def _states(
    reading: Reading, card: ResolvedCard | None, texts: tuple[Text, ...], position: PositionName
) -> NDArray[np.float32]:
    """Return float32 [texts, layers, width]."""
    with reading.read_as(card) as model:
        depth = int(model.config.get_text_config().num_hidden_layers)
        return states(model, texts, range(depth))[:, PLACES[position]]


class _Answers:
    """Prompts as tokens, with the base's greedy answers where answers are asked for; each sampled once."""

    def __init__(self, card: ResolvedCard, longest: int, max_tokens: int) -> None:
        self._card, self._longest, self._max_tokens = card, longest, max_tokens
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def texts(self, template: ChatTemplate, questions: Sequence[str]) -> tuple[Text, ...]:
        """Return the questions' texts.

        Raises:
            EmEvalsError: a question is too long.
        """
        prompts = [tuple(template.encode([{"role": "user", "content": one}])) for one in questions]
        for prompt, question in zip(prompts, questions, strict=True):
            if len(prompt) + self._max_tokens > self._longest:
                raise EmEvalsError(
                    f"'{question[:60]}' has {len(prompt)} tokens, and the model reads {self._longest}: shorten it."
                )
        if self._max_tokens:
            engine = engine_for(self._card.card)
            greedy = Sampling(temperature=0.0, max_tokens=self._max_tokens)
            asked = [one for one in dict.fromkeys(prompts) if one not in self._known]
            drawn = engine.submit_all([Request(one, greedy, end=template.own_end) for one in asked])
            self._known |= {one: tuple(draw.result().tokens) for one, draw in zip(asked, drawn, strict=True)}
        return tuple(Text(one, self._known.get(one, ())) for one in prompts)
