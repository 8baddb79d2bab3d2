"""Score fixed answers (log-likelihoods) under many conditions with the shared engine, without an Inspect log for each.

The formulas are those of grading/forced_choice.py, the tokens those of the task `em_evals/forced_choice`: same margins.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.content.intervention import Intervention
from em_evals.content.pairs import Pair
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Draw, Engine, Request, Sampling
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.resume import Finished
from em_evals.models.chat import ChatTemplate, template_for, template_of
from em_evals.progress import Advance
from em_evals.results.forced_choice import KEYS, compare

_SCORE = Sampling(max_tokens=0, prompt_logprobs=0)

Key = TypeVar("Key", bound=Hashable)


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
    card: ResolvedCard, conditions: Sequence[Condition], pairs: Sequence[Pair], advance: Advance | None = None
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield each pair's scores, all of `results.forced_choice.compare`; otherwise as `margins`.

    Args:
        card: as of `margins`.
        conditions: as of `margins`.
        pairs: as of `margins`.
        advance: counts the answers that were scored, two of each pair and condition.

    Yields:
        Pair id -> name of a score -> value, for each condition.
    """
    engine = engine_for(card.card)
    templates = [one.template(card, engine.tokenizer) for one in conditions]
    distinct = {template.digest: template for template in templates}
    both = {
        digest: {pair.id: _both(template, pair) for pair in pairs} for digest, template in distinct.items()
    }
    asked = [(one, both[template.digest]) for one, template in zip(conditions, templates, strict=True)]
    yield from compared(engine, asked, advance)


def _both(template: ChatTemplate, pair: Pair) -> tuple[Text, Text]:
    return given(template, pair.question, pair.aligned), given(template, pair.question, pair.misaligned)


def compared(
    engine: Engine,
    asked: Sequence[tuple[Condition, Mapping[Key, tuple[Text, Text]]]],
    advance: Advance | None = None,
) -> Iterator[dict[Key, dict[str, float]]]:
    """Yield, for each condition, the scores of its pairs of an aligned and a misaligned answer, by their keys.

    Both of a pair are queued together, since they share a question, and short pairs first.
    """
    ordered = [
        sorted(both.items(), key=lambda item: max(len(text.prompt) + len(text.answer) for text in item[1]))
        for _, both in asked
    ]
    rows = [
        (condition, text)
        for (condition, _), pairs in zip(asked, ordered, strict=True)
        for _, both in pairs
        for text in both
    ]
    found = log_probabilities(engine, rows, advance)
    for (_, both), pairs in zip(asked, ordered, strict=True):
        values = {key: _scores(next(found), next(found)) for key, _ in pairs}
        yield {key: values[key] for key in both}


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


def log_probabilities(
    engine: Engine, rows: Sequence[tuple[Condition, Text]], advance: Advance | None = None
) -> Iterator[list[float]]:
    """Yield the log-probabilities (nats) of each answer's tokens, in the order of the rows; empty where it did not fit.

    Closing the iterator early cancels what is still queued.
    """
    futures: list[Future[Draw]] = []
    try:
        futures = engine.submit_all([_scoring(condition, row) for condition, row in rows])
        for future in futures:
            found = [entry.logprob for entry in future.result().prompt_logprobs]
            if advance is not None:
                advance(1)
            yield found
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
