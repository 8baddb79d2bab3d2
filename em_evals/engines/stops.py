"""Stop texts that are special tokens. A draw's text does not show them, so the draw ends at the token itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.models.chat.text import special_ids, special_tokens


def stop_tokens(tokenizer: Any, stops: Sequence[str]) -> frozenset[int]:
    """Return the ids of the stop texts that are special tokens; other stop texts are looked for in the draw's text.

    Args:
        tokenizer: the base's.
        stops: the stop texts.

    Raises:
        EmEvalsError: a stop text holds a special token beside other text, which no draw's text could show.
    """
    if not stops:
        return frozenset()
    known = {tokenizer.convert_ids_to_tokens(number): number for number in special_ids(tokenizer)}
    special = special_tokens(tokenizer)
    for stop in stops:
        if stop not in known and (found := special.search(stop)) is not None:
            raise EmEvalsError(
                f"the stop text {stop!r} holds the special token {found.group()} beside other text, which answers do "
                "not show; stop at the token alone."
            )
    return frozenset(known[stop] for stop in stops if stop in known)
