"""Score fixed answers (log-likelihoods) under many conditions with the shared engine, without an Inspect log for each.

The formulas are those of grading/forced_choice.py, the tokens those of the task `em_evals/forced_choice`: same margins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Draw, Engine, Request, Sampling
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.resume import Finished
from em_evals.models.chat import ChatTemplate, template_for, template_of
from em_evals.results.forced_choice import KEYS, compare

_SCORE = Sampling(max_tokens=0, prompt_logprobs=0)


@dataclass(frozen=True)
class Condition:
    """The changes to a base: an adapter (folder or hub id), interventions (directions by path or in memory)."""

    adapter: str | None = None
    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, card: ResolvedCard, *more: Intervention) -> Condition:
        """Return a card's own model, with more interventions after its own."""
        return cls(card.adapter_path, (*card.interventions, *more))

    def template(self, card: ResolvedCard, tokenizer: Any) -> ChatTemplate:
        """Return this model's template: its adapter's, else the base's, as `local/` uses it."""
        return template_for(replace(card, adapter_path=self.adapter), tokenizer)

    def identity(self, card: ResolvedCard) -> str:
        """Return a digest of the model that this makes from a card's base: weights and directions by content."""
        return replace(card, adapter_path=self.adapter, interventions=self.interventions).digest


def margins(
    card: ResolvedCard, conditions: Sequence[Condition], pairs: Sequence[Pair]
) -> Iterator[dict[str, float]]:
    """Compute each pair's margin toward the misaligned answer, in nats per token; NaN for answers that do not fit.

    All conditions are queued at once and share batches; results come in the order of `conditions`.

    Args:
        card: names the base; its adapter and interventions act only where a condition says so.
        conditions: the conditions to score under.
        pairs: the pairs to score.

    Yields:
        Pair id -> margin, for each condition.

    Raises:
        EmEvalsError: an adapter or a direction does not fit the base.
    """
    for values in scores(card, conditions, pairs):
        yield {pair: one["margin_per_token"] for pair, one in values.items()}


def scores(
    card: ResolvedCard, conditions: Sequence[Condition], pairs: Sequence[Pair]
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield each pair's scores, all of `results.forced_choice.compare`; otherwise as `margins`.

    Yields:
        Pair id -> name of a score -> value, for each condition.
    """
    engine = engine_for(card.card)
    templates = [one.template(card, engine.tokenizer) for one in conditions]
    distinct = {template.digest: template for template in templates}
    sides = {digest: _sides(template, pairs) for digest, template in distinct.items()}
    asked = [sides[template.digest] for template in templates]
    found = log_probabilities(
        engine, [(one, row[2]) for one, rows in zip(conditions, asked, strict=True) for row in rows]
    )
    for rows in asked:
        values: dict[str, dict[str, list[float]]] = {}
        for name, side, _given in rows:
            values.setdefault(name, {})[side] = next(found)
        yield {pair.id: _scores(values[pair.id]["aligned"], values[pair.id]["misaligned"]) for pair in pairs}


def _sides(template: ChatTemplate, pairs: Sequence[Pair]) -> list[tuple[str, str, Text]]:
    """Return each pair's id, side and tokens: both sides together, since they share a question, short pairs first."""
    both = [
        [
            (pair.id, side, given(template, pair.question, getattr(pair, side)))
            for side in ("aligned", "misaligned")
        ]
        for pair in pairs
    ]
    both.sort(key=lambda sides: max(len(text.prompt) + len(text.answer) for _, _, text in sides))
    return [side for sides in both for side in sides]


def score_answers(
    card: ResolvedCard,
    conditions: Sequence[Condition],
    pairs: Sequence[Pair],
    finished: Finished,
    what: str = "forced choice",
) -> list[dict[str, float]]:
    """Return `margins` under each condition: finished ones from the file, the others scored now, with a progress bar.

    A condition is identified by its model's content and the pairs' texts, not by their places in the file.

    Args:
        card: names the base.
        conditions: the conditions to score under.
        pairs: the pairs to score.
        finished: the results so far.
        what: the bar's name.
    """
    said = sorted((pair.id, pair.question, pair.aligned, pair.misaligned) for pair in pairs)
    keys = [files.digest(b"margins", one.identity(card), repr(said)) for one in conditions]
    return finished.measured(
        what, keys, lambda missing: margins(card, [conditions[i] for i in missing], pairs)
    )


def given(tokenizer: Any, question: str, answer: str, system: str | None = None) -> Text:
    """Encode a question and a fixed answer with the base's tokens, as a prefilled answer is encoded.

    Args:
        tokenizer: the base's, or the ChatTemplate of the card's model.
        question: the user's message.
        answer: the assistant's.
        system: a system message before the question.
    """
    template = template_of(tokenizer)
    head = [{"role": "system", "content": system}] if system is not None else []
    prompt = template.encode([*head, {"role": "user", "content": question}])
    return Text(tuple(prompt), tuple(template.answer(answer)))


def log_probabilities(engine: Engine, rows: Sequence[tuple[Condition, Text]]) -> Iterator[list[float]]:
    """Yield the log-probabilities (nats) of each answer's tokens, in the order of the rows; empty where it did not fit.

    Closing the iterator early cancels what is still queued.
    """
    futures: list[Future[Draw]] = []
    try:
        futures = engine.submit_all([_scoring(condition, row) for condition, row in rows])
        for future in futures:
            yield [entry.logprob for entry in future.result().prompt_logprobs]
    finally:
        for future in futures:
            future.cancel()


def _scoring(condition: Condition, row: Text) -> Request:
    sampling = replace(_SCORE, prompt_logprobs_from=len(row.prompt))
    return Request(
        (*row.prompt, *row.answer), sampling, condition.adapter, condition.interventions, len(row.prompt)
    )


def _scores(aligned: list[float], misaligned: list[float]) -> dict[str, float]:
    return compare(aligned, misaligned) if aligned and misaligned else dict.fromkeys(KEYS, math.nan)
