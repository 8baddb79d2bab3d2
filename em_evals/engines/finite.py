"""A draw whose log-probabilities are not finite measures nothing: it fails, with the name of its model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from em_evals.engines.protocol import Draw, Request, TokenLogprob
from em_evals.errors import EmEvalsError


def require(draw: Draw, request: Request) -> Draw:
    """Return a draw whose log-probabilities are finite.

    Raises:
        EmEvalsError: one is NaN or infinite; names the model and the place.
    """
    for where, entries in (("prompt", draw.prompt_logprobs), ("answer", draw.logprobs)):
        if (place := first(entries)) is not None:
            raise error(request, where, place, entries[place].logprob)
    return draw


def first(entries: Sequence[TokenLogprob]) -> int | None:
    """Return the index of the first entry that is NaN or infinite; None if all are finite."""
    return next((i for i, entry in enumerate(entries) if not math.isfinite(entry.logprob)), None)


def error(request: Request, where: str, place: int, value: float, why: str = "") -> EmEvalsError:
    """Return the error of a draw.

    Args:
        request: names the adapter and the interventions.
        where: `prompt` or `answer`.
        place: index of the token among those that are reported.
        value: the log-probability.
        why: the cause, where it is known.
    """
    model = f"the adapter {request.adapter}" if request.adapter else "the base"
    if count := len(request.interventions):
        model += f" with {count} intervention{'s' if count > 1 else ''}"
    cause = why or "its weights, directions or scales are too large for its dtype"
    return EmEvalsError(
        f"{model} gives token {place} of the {where} a log-probability of {value:g}: {cause}. Nothing was measured."
    )
