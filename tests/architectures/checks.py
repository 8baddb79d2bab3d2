"""Asking the product's engine, and comparing what it answers with what plain transformers says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from em_evals.engines.protocol import Draw, Request, Sampling
from tests.architectures.lab import Lab, Says

TOLERANCE = 1e-4
"""Of a log-probability, in nats, in float32."""

PATIENCE = 120
"""Seconds that a draw may take."""


@contextmanager
def engine(lab: Lab, **options: Any) -> Iterator[Any]:
    """The product's engine on the lab's base, in float32."""
    from em_evals.engines.hf.engine import HFEngine
    from tests.tiny_models import card

    made = HFEngine(card(lab.base, device="cpu", **options))
    try:
        yield made
    finally:
        made.close(PATIENCE)


def ask(engine: Any, requests: Sequence[Request]) -> list[Draw]:
    """Submit all, wait for all."""
    return [future.result(PATIENCE) for future in [engine.submit(request) for request in requests]]


def greedy(prompt: Sequence[int], count: int, **more: Any) -> Request:
    """Ask for so many likeliest tokens."""
    return Request(tuple(prompt), Sampling(temperature=0, max_tokens=count, logprobs=True), **more)


def scored(prompt: Sequence[int], answer: Sequence[int], **more: Any) -> Request:
    """Ask what an answer's tokens are given."""
    sampling = Sampling(max_tokens=0, prompt_logprobs=0, prompt_logprobs_from=len(prompt))
    return Request((*prompt, *answer), sampling, answer_start=len(prompt), **more)


def check(lab: Lab, request: Request, draw: Draw, says: Says) -> None:
    """Compare a draw, or scores, with what plain means say."""
    if draw.stop_reason == "model_length":
        assert len(request.prompt) + request.sampling.max_tokens > lab.limit, "it would have fitted"
        if not draw.tokens:
            return
    if request.sampling.max_tokens == 0:
        start = request.sampling.prompt_logprobs_from
        expected = says(request.prompt).log_softmax(-1)
        given = draw.prompt_logprobs
        assert [entry.token for entry in given] == list(request.prompt[start:]), "other tokens were scored"
        _near(
            [entry.logprob for entry in given],
            [expected[start - 1 + i, t] for i, t in enumerate(request.prompt[start:])],
        )
        return
    expected = _steps(request.prompt, draw.tokens, says, lab.by_length)
    assert len(draw.tokens) == len(draw.logprobs)
    whole = len(draw.tokens) == request.sampling.max_tokens
    assert whole or draw.stop_reason in ("stop", "model_length"), (
        f"{len(draw.tokens)} tokens, {draw.stop_reason}"
    )
    _near(
        [entry.logprob for entry in draw.logprobs],
        [row[t] for row, t in zip(expected, draw.tokens, strict=True)],
    )
    if request.sampling.temperature == 0:
        missed = max(float(row.max() - row[t]) for row, t in zip(expected, draw.tokens, strict=True))
        assert missed <= TOLERANCE, f"a token was taken that is {missed:.2g} nats below the likeliest"


def _steps(prompt: Sequence[int], drawn: Sequence[int], says: Says, by_length: bool) -> Any:
    """Log-probabilities [drawn, vocabulary] before each drawn token."""
    import torch

    if by_length:
        rows = [says((*prompt, *drawn[:count]))[-1] for count in range(len(drawn))]
        return torch.stack(rows).log_softmax(-1)
    return says((*prompt, *drawn[:-1]))[len(prompt) - 1 :].log_softmax(-1)


def _near(found: Sequence[Any], expected: Sequence[Any]) -> None:
    one, other = (np.array([float(value) for value in values]) for values in (found, expected))
    off = float(np.abs(one - other).max()) if len(one) else 0.0
    assert off <= TOLERANCE, f"a log-probability is off by {off:.2g} nats"
