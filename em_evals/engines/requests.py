"""From a chat to the draws that an engine is asked for: the one way, for the provider and the public API alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from em_evals.content.cards import ResolvedCard
from em_evals.engines.protocol import Draw, Engine, Request, Sampling, ThoughtLimit
from em_evals.models.chat import ChatTemplate, Message


def requests(
    card: ResolvedCard, template: ChatTemplate, messages: Sequence[Message], sampling: Sampling, n: int = 1
) -> list[Request]:
    """Return the requests for n draws of a card's answer to a chat.

    The first draw has the seed itself; the others' are far apart from it and from each other.

    Args:
        card: whose adapter and interventions act.
        template: the card's, for its engine's tokenizer.
        messages: the chat; a last message of the assistant is a prefill.
        sampling: how to draw; its seed is the first draw's.
        n: number of draws.
    """
    prompt = tuple(template.encode(messages))
    answer_start = len(prompt) - template.given(messages)
    limit = _limit(template, messages, sampling.max_reasoning_tokens)
    return [
        Request(
            prompt,
            replace(sampling, seed=sampling.seed + (index << 64)),
            card.adapter_path,
            card.interventions,
            answer_start,
            template.own_end,
            limit,
            template.call_end,
        )
        for index in range(n)
    ]


def _limit(template: ChatTemplate, messages: Sequence[Message], tokens: int | None) -> ThoughtLimit | None:
    """Return the limit of the thought that follows a chat; None where nothing limits it, or none follows."""
    if tokens is None or (found := template.awaits(messages)) is None:
        return None
    close = tuple(template.tokenizer.encode(found.after, add_special_tokens=False))
    return ThoughtLimit(tokens, None if template.opened else found.begins, found.ends, close)


def all_draws(engine: Engine, asked: Sequence[Request]) -> list[Draw]:
    """Submit requests together and wait for every draw; where one fails, the others are given up."""
    futures = engine.submit_all(asked)
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
