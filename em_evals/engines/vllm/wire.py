"""The JSON of a completion request and its answer, for vLLM's server. Knows no server and no connection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.random import SeedSequence

from em_evals.engines import finite
from em_evals.engines.protocol import Draw, Request, StopReason, TokenLogprob
from em_evals.engines.stops import stop_tokens
from em_evals.engines.vllm.plugin import ANSWER_START

_MINUS_INFINITY = -9999.0


def body(tokenizer: Any, request: Request, name: str, room: int) -> dict[str, Any]:
    """Return the completions request for a draw from the model `name`, limited to `room` new tokens.

    Raises:
        EmEvalsError: a stop text cannot be found.
    """
    sampling = request.sampling
    asked: dict[str, Any] = {
        "model": name,
        "prompt": list(request.prompt),
        # vLLM generates at least one token; with `max_tokens: 0` it is discarded.
        "max_tokens": max(1, min(sampling.max_tokens, room)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "seed": seed_of(sampling.seed),
        "stop": list(sampling.stop),
        "add_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    ends = {end for end in (request.end, request.call_end) if end is not None}
    if ends := ends | stop_tokens(tokenizer, sampling.stop):
        asked["stop_token_ids"] = sorted(ends)
    if sampling.max_tokens:
        # Drawn tokens always come with their own log-probability, which says whether the model is broken.
        asked["logprobs"] = sampling.top_logprobs if sampling.logprobs else 0
    if sampling.prompt_logprobs is not None:
        asked["prompt_logprobs"] = sampling.prompt_logprobs
    if request.answer_start is not None:
        asked["vllm_xargs"] = {ANSWER_START: request.answer_start}
    return asked


def seed_of(seed: int) -> int:
    """Return a 63-bit seed for vLLM: the same number where it fits, else a digest of it."""
    if 0 <= seed < 2**63:
        return seed
    return int(SeedSequence(seed % 2**128).generate_state(1, "uint64")[0] >> 1)


def read(tokenizer: Any, request: Request, choice: dict[str, Any], room: int) -> Draw:
    """Parse one choice of a completion into a draw; `room` is the value that the request was made with.

    Raises:
        EmEvalsError: a log-probability is not finite.
    """
    draw = finite.require(_draw(tokenizer, request, choice, room), request)
    if not request.sampling.logprobs:
        # A server that is not ours may leave out what it was asked for.
        given = (choice.get("logprobs") or {}).get("token_logprobs") or []
        own = [TokenLogprob(token, _number(value)) for token, value in zip(draw.tokens, given, strict=False)]
        if (place := finite.first(own)) is not None:
            raise finite.error(request, "answer", place, own[place].logprob)
    return draw


def _draw(tokenizer: Any, request: Request, choice: dict[str, Any], room: int) -> Draw:
    sampling = request.sampling
    first = sampling.prompt_logprobs_from
    places = zip(request.prompt[first:], (choice.get("prompt_logprobs") or ())[first:], strict=False)
    prompt_logprobs = [
        _entry(
            {int(name): _number(value["logprob"]) for name, value in place.items()},
            token,
            sampling.prompt_logprobs or 0,
        )
        for token, place in places
        if place
    ]
    if sampling.max_tokens == 0:
        return Draw("", [], "max_tokens", [], prompt_logprobs)
    tokens = [int(token) for token in choice["token_ids"]]
    logprobs = []
    if sampling.logprobs:
        given = choice["logprobs"]
        for token, logprob, top in zip(tokens, given["token_logprobs"], given["top_logprobs"], strict=True):
            values = {
                int(name.removeprefix("token_id:")): _number(value) for name, value in (top or {}).items()
            }
            logprobs.append(_entry({**values, token: _number(logprob)}, token, sampling.top_logprobs))
    text = text_of(tokenizer, tokens, sampling.stop)
    reason: StopReason = "stop"
    if choice["finish_reason"] == "length":
        reason = "model_length" if room < sampling.max_tokens else "max_tokens"
    return Draw(text, tokens, reason, logprobs, prompt_logprobs)


def text_of(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> str:
    """Return a draw's text, without special tokens, up to the first stop text."""
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    cuts = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(cuts)] if cuts else text


def _number(logprob: float | None) -> float:
    """Return a log-probability as vLLM meant it: JSON has no NaN, and vLLM writes -9999 for -infinity."""
    if logprob is None:
        return math.nan
    return logprob if logprob > _MINUS_INFINITY else -math.inf


def _entry(values: dict[int, float], token: int, top: int) -> TokenLogprob:
    """Return a token's log-probability with the `top` most likely tokens among `values`."""
    likeliest = sorted(values.items(), key=lambda item: -item[1])[:top]
    return TokenLogprob(token, values[token], tuple(likeliest))
