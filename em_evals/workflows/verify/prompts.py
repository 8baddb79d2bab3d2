"""Token rows that cross the borders of a model: sliding windows, chunks, and lengths at which its rope changes.

Real text, from the questions of the package. Borders that are too far to reach cheaply are named, so that the table
reports what was not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_evals.content.questions import load_questions
from em_evals.models.chat import ChatTemplate

_LONGEST = {"cuda": 4400}
"""Tokens of the longest row, by the kind of device: a GPU reaches windows of 4,096."""
_LONGEST_ELSEWHERE = 640
HEAD = 24
"""Tokens that rows with a common beginning share; the engine shares from 8 on."""
ROOM = 32
"""Tokens by which a row may grow."""
_LENGTHS = (6, 13, 27, 40, 64, 96, 130, 17)
_TAILS = (2, 5, 9, 14, 30, 3, 50, 21)
_MESSAGES = 4


@dataclass(frozen=True)
class Border:
    """A length beyond which a model computes something differently."""

    what: str
    tokens: int


def borders(config: Any) -> list[Border]:
    """Return a model's borders, from its configuration (transformers'): smallest first, each number once."""
    text = config.get_text_config()
    found = [
        Border(what, int(number))
        for name, what in (
            ("sliding_window", "window"),
            ("attention_chunk_size", "chunk"),
            ("window_size", "window"),
            ("floor_scale", "attention scale"),
        )
        if isinstance(number := getattr(text, name, None), int | float) and number > 1
    ]
    for rope in _ropes(text):
        kind = rope.get("rope_type")
        start = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if kind == "dynamic":
            start = start or getattr(text, "max_position_embeddings", None)
        if kind in ("longrope", "dynamic") and start:
            found.append(Border("rope", int(start)))
    return sorted({border.tokens: border for border in found}.values(), key=lambda one: one.tokens)


def rope_border(config: Any) -> int | None:
    """Return the length from which position encodings depend on the sequence's length so far; None if there is none."""
    return next((border.tokens for border in borders(config) if border.what == "rope"), None)


def _ropes(text: Any) -> list[dict[str, Any]]:
    found = getattr(text, "rope_parameters", None) or {}
    return [one for one in found.values() if isinstance(one, dict)] or [found]


class Prompts:
    """Rows for one model.

    Args:
        tokenizer: its tokenizer.
        template: its chat template; None where it cannot be prompted with one.
        config: its configuration, of transformers.
        model_len: maximum tokens of prompt and draw together.
        device: the kind of device, as `cpu`.
    """

    def __init__(
        self, tokenizer: Any, template: ChatTemplate | None, config: Any, model_len: int, device: str
    ) -> None:
        texts = [text for question in load_questions("core").questions for text in question.paraphrases]
        self._stream = tuple(tokenizer.encode(" ".join(texts), add_special_tokens=False))
        self._longest = min(_LONGEST.get(device, _LONGEST_ELSEWHERE), model_len - ROOM)
        bos = tokenizer.bos_token_id
        begins = tokenizer("a").input_ids[:1] == [bos] or (
            template is not None and template.encode([{"role": "user", "content": "a"}])[:1] == [bos]
        )
        self._opening = (bos,) if begins and bos is not None else ()
        every = borders(config)
        self.crossed = [border for border in every if border.tokens + 8 <= self._longest]
        self.missed = [border for border in every if border not in self.crossed]
        self.chats = self._chats(template, texts)

    @property
    def reach(self) -> str:
        """The borders that the rows do not cross, in words; empty where there is none."""
        return "; ".join(f"{border.what} of {border.tokens} tokens: not reached" for border in self.missed)

    def piece(self, place: int, tokens: int) -> tuple[int, ...]:
        """Return a row of this many tokens of text, a different one for each place."""
        return (*self._opening, *self._cut(37 * place, max(tokens - len(self._opening), 1)))

    def across(self, place: int) -> tuple[int, ...]:
        """Return a row whose draw crosses the smallest border; the longest plain one where there is no border."""
        near = self.crossed[0].tokens - 3 if self.crossed else max(_LENGTHS)
        return self.piece(place, max(min(near, self._longest), 2))

    def lengths(self) -> list[tuple[int, ...]]:
        """Return eight rows of different lengths and beginnings, some on each side of the borders."""
        wanted = list(_LENGTHS)
        for i, border in enumerate(self.crossed[-2:]):
            wanted[4 + 2 * i : 6 + 2 * i] = [border.tokens - 3, border.tokens + 7]
        return [self.piece(i, max(min(one, self._longest), 2)) for i, one in enumerate(wanted)]

    def shared(self) -> list[tuple[int, ...]]:
        """Return eight rows with one beginning and different ends, some on each side of the borders."""
        head = self.piece(11, HEAD + len(self._opening))
        tails = list(_TAILS)
        for i, border in enumerate(self.crossed[-2:]):
            tails[4 + 2 * i : 6 + 2 * i] = [max(border.tokens - len(head) + more, 4) for more in (-2, 6)]
        room = max(self._longest - len(head), 1)
        return [(*head, *self._cut(1000 + 41 * i, min(one, room))) for i, one in enumerate(tails)]

    def answers(self, place: int) -> list[tuple[int, ...]]:
        """Return three answers, two of which have a common beginning."""
        first = self._cut(3000 + place, 9)
        return [first, (*first[:5], *self._cut(3300 + place, 3)), self._cut(3600 + place, 4)]

    def _cut(self, start: int, tokens: int) -> tuple[int, ...]:
        start %= len(self._stream)
        times = (start + tokens) // len(self._stream) + 1
        return (self._stream * times)[start : start + tokens]

    def _chats(self, template: ChatTemplate | None, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if template is None:
            return [self.piece(60 + i, 20 + 7 * i) for i in range(_MESSAGES)]
        chats = [[{"role": "user", "content": text}] for text in texts[:_MESSAGES]]
        encoded = [tuple(template.encode(chat)) for chat in chats]
        return [row if len(row) <= self._longest else row[: self._longest] for row in encoded]
