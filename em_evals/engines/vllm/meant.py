"""What a request for a card means to vLLM: the card's identity, the fields that steer it, what its answer may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from em_evals import files
from em_evals.engines.vllm.asgi import RefusedError
from em_evals.engines.vllm.plugin import ANSWER_START, SLOT
from em_evals.engines.vllm.variants import Variant

_NOT_JSON = "not JSON compliant"
"""Part of the error of an answer that holds NaN or infinity."""


def stamp(key: str, base: str) -> str:
    """Return what a model is: the content of its variant, and its base as the server names it."""
    return files.digest(key, base)


def rewrite(request: dict[str, Any], variant: Variant, model: str, slot: int) -> None:
    """Rewrite a client's valid request for vLLM.

    Raises:
        RefusedError: it asks for what would not be steered, or hides where its answer begins although the interventions
            depend on that.
    """
    own = request.get("vllm_xargs") or {}
    start = own.pop(ANSWER_START, None)
    request["model"] = model
    if slot:
        if request.get("use_beam_search"):
            raise RefusedError(
                400,
                "vLLM's beam search drops interventions: leave `use_beam_search` out, or use a model without them.",
            )
        own[SLOT] = slot
        if start is not None:
            own[ANSWER_START] = start
        elif variant.positional and request.get("continue_final_message"):
            raise RefusedError(
                400,
                "this model's interventions depend on where the answer begins, which `continue_final_message` hides: "
                f"send token ids to /v1/completions with vllm_xargs {{'{ANSWER_START}': N}}.",
            )
        begins = str(start) if start is not None else _digest(request.get("prompt"), request.get("messages"))
        # Of fixed length: vLLM allows 128 characters, and the client may have a salt of its own.
        salts = (variant.salt(begins), request.get("cache_salt") or "")
        request["cache_salt"] = files.digest(*salts)
    request["vllm_xargs"] = own or None


def _digest(*parts: Any) -> str:
    """Digest the prompt: equal prompts have equal tokens, so their answers begin at the same place."""
    return files.digest(*[json.dumps(part, sort_keys=True) for part in parts])


@contextmanager
def finite(name: str) -> Iterator[None]:
    """Refuse what a broken model computes: vLLM cannot write NaN or infinity as JSON."""
    try:
        yield
    except ValueError as error:
        if _NOT_JSON not in str(error):
            raise
        raise RefusedError(
            422,
            f"the model {name} gives a log-probability that is NaN or infinite: its weights, directions or scales are "
            "too large for its dtype. Nothing was measured.",
        ) from None
