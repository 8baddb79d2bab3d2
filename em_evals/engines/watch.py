"""Follow a draw's tokens until its thought is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.engines.protocol import ThoughtLimit


class Watch:
    """The thought of one draw.

    Args:
        tokenizer: the base's.
        limit: the thought's marks.

    Attributes:
        answer_from: where the answer begins among the draw's tokens; None while the thought lasts.
    """

    def __init__(self, tokenizer: Any, limit: ThoughtLimit) -> None:
        self._tokenizer, self._limit = tokenizer, limit
        self._begun = limit.begins is None
        # A token writes at least one byte of a mark; one more may begin before it.
        self._reach = len(limit.ends.encode()) + 1
        self.answer_from: int | None = None

    def see(self, tokens: Sequence[int]) -> None:
        """Look at the draw so far; its last token is new."""
        if self.answer_from is not None:
            return
        if not self._begun:
            written = self._decoded(tokens).lstrip()
            mark = str(self._limit.begins)
            self._begun = written.startswith(mark)
            if not self._begun and not mark.startswith(written):
                self.answer_from = 0  # it answers without a thought
        elif self._limit.ends in self._decoded(tokens[-self._reach :]):
            self.answer_from = len(tokens)

    def closed(self, tokens: Sequence[int]) -> None:
        """Begin the answer behind these tokens: the limit was reached, and the thought was closed."""
        self.answer_from = len(tokens)

    def exceeded(self, tokens: Sequence[int]) -> bool:
        """Check whether the thought lasts although its limit is reached."""
        return self.answer_from is None and len(tokens) >= self._limit.tokens

    def _decoded(self, tokens: Sequence[int]) -> str:
        return _decoded(self._tokenizer, tokens)


def answer_from(tokenizer: Any, limit: ThoughtLimit, tokens: Sequence[int]) -> int | None:
    """Return where the answer begins in a finished draw, as `Watch` finds it; None if the thought reached its limit."""
    thought = tokens[: limit.tokens]
    written = _decoded(tokenizer, thought)
    if limit.begins is not None and not written.lstrip().startswith(limit.begins):
        return None if limit.begins.startswith(written.lstrip()) else 0
    if limit.ends not in written:
        return None
    low, high = 1, len(thought)
    while low < high:  # the fewest tokens that hold the mark
        middle = (low + high) // 2
        if limit.ends in _decoded(tokenizer, thought[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
