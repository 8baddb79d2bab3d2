"""Draw freeform answers under many conditions, and measure what needs no judge.

Two numbers, neither of which measures coherence: how much an answer repeats itself, and how unlikely it is for the
base. Word salad is unlikely, a stuck answer repeats; sense and nonsense of equal fluency are not distinguished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from em_evals import files
from em_evals.content.cards import ResolvedCard
from em_evals.content.questions import Question
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Request, Sampling
from em_evals.interp.extraction.prefix_tree import Text
from em_evals.interp.fixed_answers import Condition, log_probabilities
from em_evals.models.chat import ChatTemplate, template_for

_GRAM = 4


@dataclass(frozen=True)
class Answer:
    """One draw: the question's id, the text, and all of its tokens, the end of turn included."""

    question: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Asking:
    """What is asked and how: the first wording of each question, `draws` times, with `max_tokens` each.

    A draw's seed depends on `seed`, question and number, and not on the condition: conditions share random numbers.
    """

    questions: tuple[Question, ...]
    draws: int = 1
    max_tokens: int = 60
    seed: int = 0

    def prompts(self, template: ChatTemplate) -> dict[str, tuple[int, ...]]:
        """Return each question's token ids, by its id."""
        return {one.id: _prompt(template, one) for one in self.questions}

    def own_seed(self, question: str, number: int) -> int:
        """Return the seed of a question's draw."""
        return int(files.digest(f"{self.seed}|{question}|{number}"), 16) % 2**31


def drawn(card: ResolvedCard, conditions: Sequence[Condition], asking: Asking) -> Iterator[list[Answer]]:
    """Yield the answers under each condition, in order; all are queued at once and share batches.

    Temperature, top_p and top_k are the card's.
    """
    engine = engine_for(card.card)
    settings = card.card.generation
    wanted = [(one.id, number) for one in asking.questions for number in range(asking.draws)]
    asked: dict[str, dict[str, tuple[int, ...]]] = {}
    requests: list[Request] = []
    for condition in conditions:
        template = condition.template(card, engine.tokenizer)
        if template.digest not in asked:
            asked[template.digest] = asking.prompts(template)
        prompts = asked[template.digest]
        for question, number in wanted:
            sampling = Sampling(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=asking.max_tokens,
                seed=asking.own_seed(question, number),
            )
            requests.append(
                Request(
                    prompts[question],
                    sampling,
                    condition.adapter,
                    condition.interventions,
                    end=template.own_end,
                )
            )
    futures = engine.submit_all(requests)
    try:
        results = iter(futures)
        for _ in conditions:
            draws = [(question, next(results).result()) for question, _ in wanted]
            yield [Answer(question, draw.text, tuple(draw.tokens)) for question, draw in draws]
    finally:
        for future in futures:
            future.cancel()


def base_losses(
    card: ResolvedCard, groups: Sequence[Sequence[Answer]], asking: Asking
) -> Iterator[list[float]]:
    """Compute the loss of the base (no adapter, not steered) on each answer after its question, nats per token.

    Args:
        card: names the base.
        groups: answers to `asking`, by condition.
        asking: what was asked.

    Yields:
        A group's losses, in the order of its answers; NaN for an answer without tokens.
    """
    engine = engine_for(card.card)
    prompts = asking.prompts(template_for(card, engine.tokenizer))
    rows = [(Condition(), Text(prompts[one.question], one.tokens)) for group in groups for one in group]
    found = log_probabilities(engine, rows)
    for group in groups:
        yield [
            -sum(values) / len(values) if values else float("nan") for values in (next(found) for _ in group)
        ]


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of an answer's token 4-grams that occurred before, 0 to 1; 0 for answers too short for two."""
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _prompt(template: ChatTemplate, question: Question) -> tuple[int, ...]:
    turns = [{"role": turn.role, "content": turn.content} for turn in question.chat(0)]
    return tuple(template.encode(turns))
