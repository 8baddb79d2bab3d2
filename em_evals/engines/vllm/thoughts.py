"""Limited thoughts on vLLM: a draw whose thought reaches its limit is cut there, closed, and continued by a second one.

Which tokens are kept is decided as on the transformers engine (engines/watch.py). The first request may draw the answer
too, so a draw whose thought stays within its limit is the draw without a limit. The second has a seed of its own,
derived from the draw's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from em_evals.engines.protocol import Draw, Request, ThoughtLimit
from em_evals.engines.vllm.wire import text_of
from em_evals.engines.watch import answer_from

_SECOND = 1 << 120
"""Apart from the seeds of other draws (engines/requests.py)."""


def first(request: Request) -> Request:
    """Return the request for a thought and its answer at once."""
    assert request.thought is not None  # noqa: S101 - asked for limited thoughts only
    most = request.thought.tokens + request.sampling.max_tokens
    return replace(request, sampling=replace(request.sampling, max_tokens=most), thought=None)


def second(tokenizer: Any, request: Request, drawn: Draw) -> Request | None:
    """Return the request for the answer behind a thought that reached its limit; None where it did not.

    Args:
        tokenizer: the base's.
        request: the draw that was asked for.
        drawn: what came of `first`.
    """
    limit = request.thought
    if limit is None or not _exceeded(tokenizer, limit, drawn):
        return None
    prompt = (*request.prompt, *drawn.tokens[: limit.tokens], *limit.close)
    asked = request.sampling
    sampling = replace(
        asked,
        seed=asked.seed + _SECOND,
        # The closing tokens are a part of this prompt, and their log-probabilities a part of the draw's.
        prompt_logprobs=asked.top_logprobs if asked.logprobs else None,
        prompt_logprobs_from=len(prompt) - len(limit.close),
    )
    start = len(request.prompt) if request.answer_start is None else request.answer_start
    return replace(request, prompt=prompt, sampling=sampling, answer_start=start, thought=None)


def joined(tokenizer: Any, request: Request, drawn: Draw, answer: Draw | None) -> Draw:
    """Return the whole draw.

    Args:
        tokenizer: the base's.
        request: the draw that was asked for.
        drawn: what came of `first`.
        answer: what came of `second`; None where it was not needed.
    """
    limit, asked = request.thought, request.sampling
    assert limit is not None  # noqa: S101 - asked for limited thoughts only
    if answer is not None:
        kept = drawn.tokens[: limit.tokens]
        tokens = [*kept, *limit.close, *answer.tokens]
        logprobs = [*drawn.logprobs[: len(kept)], *answer.prompt_logprobs, *answer.logprobs]
        text = text_of(tokenizer, tokens, asked.stop)
        return Draw(
            text, tokens, answer.stop_reason, logprobs if asked.logprobs else [], drawn.prompt_logprobs
        )
    start = answer_from(tokenizer, limit, drawn.tokens) or 0
    most = start + asked.max_tokens
    if len(drawn.tokens) <= most:
        return drawn
    text = text_of(tokenizer, drawn.tokens[:most], asked.stop)
    return replace(
        drawn, text=text, tokens=drawn.tokens[:most], logprobs=drawn.logprobs[:most], stop_reason="max_tokens"
    )


def _exceeded(tokenizer: Any, limit: ThoughtLimit, drawn: Draw) -> bool:
    ended = len(drawn.tokens) == limit.tokens and drawn.stop_reason == "stop"
    reached = len(drawn.tokens) >= limit.tokens and not ended
    return reached and answer_from(tokenizer, limit, drawn.tokens) is None
