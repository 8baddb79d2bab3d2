"""Given answers weighed under many conditions, straight through the shared engine: no Inspect log for each of them.

The formulas are grading/forced_choice.py's, the tokens those of the task `em_evals/forced_choice`: the same margins.
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
    """What is done to a base: an adapter (folder or hub id), interventions (directions by path or in memory)."""

    adapter: str | None = None
    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, card: ResolvedCard, *more: Intervention) -> Condition:
        """A card's own model, with more interventions after its own."""
        return cls(card.adapter_path, (*card.interventions, *more))

    def template(self, card: ResolvedCard, tokenizer: Any) -> ChatTemplate:
        """What this model is asked with: its adapter's template, else the base's, as `local/` asks it."""
        return template_for(replace(card, adapter_path=self.adapter), tokenizer)

    def identity(self, card: ResolvedCard) -> str:
        """A digest of the model that this makes of a card's base: weights and directions by content, not by name."""
        return replace(card, adapter_path=self.adapter, interventions=self.interventions).digest


def margins(
    card: ResolvedCard, conditions: Sequence[Condition], pairs: Sequence[Pair]
) -> Iterator[dict[str, float]]:
    """Each pair's margin toward the misaligned answer, in nats per token; NaN for answers that do not fit the model.

    All conditions are queued at once and share batches; they come out one after the other, in order.

    Args:
        card: names the base; its adapter and interventions act only where a condition says so.
        conditions: what to weigh under.
        pairs: what to weigh.

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
    """Each pair's scores, all of `results.forced_choice.compare`; otherwise as `margins`.

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
    """Each pair's id, side and tokens; neighbours of like length pad little."""
    sides = [
        (pair.id, side, given(template, pair.question, getattr(pair, side)))
        for pair in pairs
        for side in ("aligned", "misaligned")
    ]
    return sorted(sides, key=lambda row: len(row[2].prompt) + len(row[2].answer))


def weighed(
    card: ResolvedCard,
    conditions: Sequence[Condition],
    pairs: Sequence[Pair],
    finished: Finished,
    what: str = "forced choice",
) -> list[dict[str, float]]:
    """`margins` under each condition: those that are finished as they are, the others weighed now, with a progress bar.

    A condition is known by its model's content and by what the pairs say, not by where they stand in their file.

    Args:
        card: names the base.
        conditions: what to weigh under.
        pairs: what to weigh.
        finished: what is measured already.
        what: the bar's name.
    """
    said = sorted((pair.id, pair.question, pair.aligned, pair.misaligned) for pair in pairs)
    keys = [files.digest(b"margins", one.identity(card).encode(), repr(said).encode()) for one in conditions]
    return finished.measured(
        what, keys, lambda missing: margins(card, [conditions[i] for i in missing], pairs)
    )


def given(tokenizer: Any, question: str, answer: str, system: str | None = None) -> Text:
    """A question and a given answer in the base's tokens, as a prefilled answer is encoded.

    Args:
        tokenizer: the base's, or the ChatTemplate of the card that is asked.
        question: the user's message.
        answer: the assistant's.
        system: a system message in front.
    """
    template = template_of(tokenizer)
    head = [{"role": "system", "content": system}] if system is not None else []
    prompt = template.encode([*head, {"role": "user", "content": question}])
    return Text(tuple(prompt), tuple(template.answer(answer)))


def log_probabilities(engine: Engine, rows: Sequence[tuple[Condition, Text]]) -> Iterator[list[float]]:
    """The log-probabilities (nats) of each answer's tokens, in the order of the rows; empty where it did not fit.

    Stopping early gives up what is still queued.
    """
    futures: list[Future[Draw]] = []
    try:
        for condition, row in rows:
            prompt = (*row.prompt, *row.answer)
            sampling = replace(_SCORE, prompt_logprobs_from=len(row.prompt))
            request = Request(prompt, sampling, condition.adapter, condition.interventions, len(row.prompt))
            futures.append(engine.submit(request))
        for future in futures:
            yield [entry.logprob for entry in future.result().prompt_logprobs]
    finally:
        for future in futures:
            future.cancel()


def _scores(aligned: list[float], misaligned: list[float]) -> dict[str, float]:
    return compare(aligned, misaligned) if aligned and misaligned else dict.fromkeys(KEYS, math.nan)
