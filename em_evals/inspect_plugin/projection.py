"""The Inspect scorer `em_evals/projection`: how far a sample's prompt and answers lie along a direction.

`inspect score LOG --scorer em_evals/projection -S direction=FILE -S model=CARD` adds it to a log, in which every sample
then carries its own number. The numbers are those of `em-evals trait monitor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from inspect_ai.model import get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState

from em_evals.errors import EmEvalsError
from em_evals.inspect_errors import refusal
from em_evals.results.logs import number
from em_evals.results.turns import as_chat, turns
from em_evals.stats import intervals

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.content.directions import Direction

KEYS = ("last_prompt", "answer_mean")


@metric
def projection_means() -> Metric:
    """Mean projections with 95% intervals over questions; draws of a question are averaged."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        found: dict[str, float] = {}
        for key in KEYS:
            by_question: dict[str, list[float]] = {}
            for score in scores:
                value = score.score.value if isinstance(score.score.value, dict) else {}
                if not math.isnan(one := number(value.get(key))):
                    name = str((score.sample_metadata or {}).get("question_id") or score.sample_id)
                    by_question.setdefault(name, []).append(one)
            means = [sum(own) / len(own) for own in by_question.values()]
            low, high = intervals.mean(means)
            mean = sum(means) / len(means) if means else math.nan
            found |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        return found

    return compute


@scorer(metrics=[projection_means()])
def projection(direction: str, model: str | None = None, layer: int | None = None) -> Scorer:
    """Project each sample on a direction: its last prompt token, its answer, and every assistant turn.

    The unit vector is used: numbers are in units of the activations. Turns are in the score's metadata.

    Args:
        direction: a direction's name or file.
        model: the card that reads the samples; default: the `local/` model that wrote them.
        layer: the decoder block; default: the one chosen by steering, else the most reliable one.
    """
    from em_evals.content import directions

    try:
        found = directions.get(direction)
    except EmEvalsError as error:
        raise refusal(error) from None
    readers: list[_Projector] = []

    async def score(state: TaskState, target: Target) -> Score:
        try:
            if not readers:
                readers.append(_Projector(found, _card(model), layer))
            chat = as_chat(state.messages)
            # Inspect runs samples in one thread; a forward pass would stop them all.
            values = await anyio.to_thread.run_sync(readers[0].values, chat)
        except EmEvalsError as error:
            raise refusal(error) from None
        one = readers[0]
        told = {
            "direction": direction,
            "direction_digest": found.digest,
            "layer": one.layer,
            "card": one.name,
        }
        last = values[-1] if values else (math.nan, math.nan)
        return Score(
            value=dict(zip(KEYS, last, strict=True)),
            explanation=f"layer {one.layer}: "
            + ", ".join(f"{key} {value:+.3f}" for key, value in zip(KEYS, last, strict=True)),
            metadata=told | {"turns": [dict(zip(KEYS, own, strict=True)) for own in values]},
        )

    return score


def _card(name: str | None) -> ResolvedCard:
    """Return the card that reads: the one named, else that of the model under test.

    Raises:
        EmEvalsError: neither is a card of ours.
    """
    from em_evals.content.cards import ResolvedCard, resolve

    if name is not None:
        return resolve(name)
    own = getattr(get_model().api, "card", None)
    if not isinstance(own, ResolvedCard):
        raise EmEvalsError(f"{get_model()} shows no activations: name the card that reads, -S model=CARD.")
    return own


@dataclass(frozen=True)
class _Text:
    """Token ids of a prompt and of an answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class _Projector:
    """Projects chats on one direction with one card's model."""

    def __init__(self, direction: Direction, card: ResolvedCard, layer: int | None) -> None:
        from em_evals.content import direction_algebra, directions
        from em_evals.content.direction_summary import chosen_layer
        from em_evals.engines.pool import base_in_memory
        from em_evals.models.chat import template_for

        directions.check_base(direction, card.card.base, card.card.revision)
        self.layer = directions.checked_layer(direction, chosen_layer(direction) if layer is None else layer)
        self.name = card.name
        self._card, self._along = card, direction_algebra.unit(direction)[None, [self.layer]]
        self._engine = base_in_memory(card.card)
        self._template = template_for(card, self._engine.tokenizer)

    def values(self, chat: list[dict[str, str]]) -> list[tuple[float, ...]]:
        """Return (last prompt token, mean over the answer) of every assistant turn.

        Raises:
            EmEvalsError: the chat is longer than the model reads.
        """
        from em_evals.models.projections import project

        texts = []
        for place, answer in turns(chat):
            prompt = tuple(self._template.encode(chat[:place]))
            texts.append(_Text(prompt, tuple(self._template.answer(answer))))
            if (length := len(texts[-1].prompt) + len(texts[-1].answer)) > self._engine.scored_len:
                raise EmEvalsError(
                    f"a sample has {length} tokens, and {self.name} reads {self._engine.scored_len}: leave it out."
                )
        if not texts:
            return []
        with self._engine.activations(self._card.adapter_path, self._card.interventions) as base:
            found: Any = project(base.model, texts, self._along, [self.layer])
        return [tuple(map(float, row[:, 0, 0])) for row in found]
