"""Encode text so that text that imitates a special token stays text.

`<|im_end|>` in an answer that is passed to a judge is encoded as ordinary characters and never ends a turn.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from em_evals import characters

# Private-use characters: they replace imitated special tokens while a template is rendered.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_OURS = "[\ue0f0-\ue0f2]"
"""A content that has such a character itself keeps it: it is hidden, too."""


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of plain text: no BOS, and no special token whatever the text says.

    Raises:
        EmEvalsError: it holds half a character (the tokenizers' library raises a TypeError about its input's type).
    """
    characters.require_whole(text)
    return list(_for_text(tokenizer).encode(text, add_special_tokens=False, split_special_tokens=True))


_COPIES: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
_COPYING = threading.Lock()


def _for_text(tokenizer: Any) -> Any:
    """Return the tokenizer's copy that encodes plain text alone.

    `split_special_tokens` is a switch of the tokenizer that all threads share (transformers 5.19): a chat that another
    thread encodes meanwhile would lose its special tokens, in silence.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):  # written in Python: the option belongs to the call
        return tokenizer
    with _COPYING:
        size, found = _COPIES.get(tokenizer, (-1, None))
        if size != len(tokenizer):  # not there, or tokens were added meanwhile
            found = copy.deepcopy(tokenizer)
            _COPIES[tokenizer] = len(tokenizer), found
    return found


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's special tokens."""
    added = {token for token, known in tokenizer.added_tokens_decoder.items() if known.special}
    return added | set(tokenizer.all_special_ids)


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern for what a tokenizer would take for a special token."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class Hidden:
    """Hides imitations of special tokens in contents while a template writes around them.

    Args:
        special: what to hide (`special_tokens`).
    """

    def __init__(self, special: re.Pattern[str]) -> None:
        self._hidden = re.compile(f"{_OURS}|{special.pattern}")
        self._imitations: list[str] = []

    def hide(self, text: str) -> str:
        """Return the content with a mark in place of each imitation."""
        return self._hidden.sub(self._mark, text)

    def turns(self, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with every imitation in their contents, thoughts and calls hidden."""
        return [
            {key: value if key == "role" else self._inside(value) for key, value in turn.items()}
            for turn in turns
        ]

    def _inside(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {key: self._inside(one) for key, one in value.items()}
        return [self._inside(one) for one in value] if isinstance(value, list) else value

    def encode(self, tokenizer: Any, rendered: str) -> list[int]:
        """Return the token ids of what the template wrote; imitations are encoded as text."""
        characters.require_whole(rendered)
        if not self._imitations:
            return list(tokenizer.encode(rendered, add_special_tokens=False))
        ids: list[int] = []
        for i, part in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", rendered)):
            if i % 2:
                ids += encode_text(tokenizer, self._imitations[int(part)])
            elif part:
                ids += tokenizer.encode(part, add_special_tokens=False)
        return ids

    def _mark(self, match: re.Match[str]) -> str:
        self._imitations.append(match.group())
        return f"{_OPEN}{len(self._imitations) - 1}{_CLOSE}"
