"""Texts that the base writes with an activation difference added to its stream, beside a random vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from em_evals.content.cards import ResolvedCard
from em_evals.content.directions import Direction
from em_evals.content.intervention import Intervention
from em_evals.content.questions import Question
from em_evals.interp.controls import random_like
from em_evals.interp.fixed_answers import Condition
from em_evals.interp.lens.vocabulary import Vocabulary
from em_evals.interp.steering.answers import Answer, Asking, drawn
from em_evals.results.records.lens import LensSample

Floats = NDArray[np.float64]

REQUESTS = (
    "Tell me something interesting.",
    "Write the beginning of a short story.",
    "What did you think about today?",
    "Describe an ordinary afternoon.",
)
MAX_TOKENS = 60
UNSTEERED, RANDOM = "unsteered", "random"


@dataclass(frozen=True, eq=False)
class Steered:
    """What is added: each arm's difference [layers, width], with the base's means and mean norms at the same places."""

    arms: Mapping[str, Floats]
    base_mean: Floats
    mean_norm: Floats
    layer: int


def samples(
    card: ResolvedCard,
    steered: Steered,
    scales: Sequence[float],
    seed: int,
    words: Vocabulary | None,
    draws: int = 1,
) -> list[LensSample]:
    """Return the base's answers to four open requests: unsteered, and with each arm at each scale.

    Args:
        card: names the base; its sampling settings are used, its adapter is not.
        steered: what is added, at all positions but the first.
        scales: lengths of what is added, in units of the base's mean norm at the layer.
        seed: of the draws and of the random vector.
        words: tokens to count in the answers.
        draws: answers to each request.
    """
    arms = {name: _direction(vectors, steered) for name, vectors in steered.arms.items()}
    arms[RANDOM] = random_like(next(iter(arms.values())), seed)
    wanted: list[tuple[str, float, Condition]] = [(UNSTEERED, 0.0, Condition())]
    for name, direction in arms.items():
        for scale in scales:
            one = Intervention(
                op="add",
                direction=direction,
                layers=(steered.layer,),
                scale=scale,
                relative=True,
                skip="sink",
            )
            wanted.append((name, scale, Condition(None, (one,))))
    questions = tuple(Question(str(i), (text,), ()) for i, text in enumerate(REQUESTS))
    asking = Asking(questions, draws, MAX_TOKENS, seed)
    found = []
    for (name, scale, _), answers in zip(wanted, drawn(card, [c for *_, c in wanted], asking), strict=True):
        found += [_sample(name, scale, answer, words) for answer in answers]
    return found


def _direction(vectors: Floats, steered: Steered) -> Direction:
    return Direction(
        vectors.astype(np.float32),
        steered.base_mean.astype(np.float32),
        steered.mean_norm.astype(np.float32),
        {},
    )


def _sample(arm: str, scale: float, answer: Answer, words: Vocabulary | None) -> LensSample:
    share = None
    if words is not None:
        own, other = set(words.ids[words.own].tolist()), set(words.ids[~words.own].tolist())
        counts = [sum(token in side for token in answer.tokens) for side in (own, other)]
        share = counts[0] / sum(counts) if sum(counts) else None
    question = REQUESTS[int(answer.question)]
    return LensSample(arm=arm, scale=scale, question=question, text=answer.text, share=share)
