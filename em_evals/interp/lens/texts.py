"""Plain texts: shipped ones about nothing in particular, or a user's file. Their first tokens are what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals import characters, files
from em_evals.errors import EmEvalsError
from em_evals.models.chat import encode_text

NEUTRAL = Path(__file__).with_name("neutral.txt")
"""128 sentences of our own, each with another beginning; none is about advice, money, sports or health."""


@dataclass(frozen=True)
class PlainTexts:
    """Texts with the line of each in their file."""

    path: Path
    texts: tuple[str, ...]
    lines: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Identify the texts, independent of the file's formatting."""
        return files.digest(*self.texts)


def read(path: Path | None = None) -> PlainTexts:
    """Read texts: one a line, or JSONL rows with `text`.

    Args:
        path: the file; None: the shipped texts.

    Raises:
        EmEvalsError: the file has no text, or a row has none (with its line).

    Example:
        >>> len(read().texts)
        128
    """
    path = path or NEUTRAL
    rows: list[tuple[int, str]] = []
    if path.suffix == ".jsonl":
        for line, row in files.read_jsonl(path):
            if not isinstance(row.get("text"), str) or not row["text"].strip():
                raise EmEvalsError("this row has no `text`; give each row its text.", path, line)
            characters.require_whole(row["text"], path, line)
            rows.append((line, row["text"]))
    else:
        every = enumerate(files.read_text(path).split("\n"), 1)
        rows = [(line, text.strip()) for line, text in every if text.strip()]
    if not rows:
        raise EmEvalsError("this file has no texts; write one a line.", path)
    return PlainTexts(path, tuple(text for _, text in rows), tuple(line for line, _ in rows))


def encoded(tokenizer: Any, given: PlainTexts, longest: int) -> list[tuple[int, ...]]:
    """Return each text's first tokens, after the token that begins every text of the tokenizer, if it has one.

    Args:
        tokenizer: the base's.
        given: the texts.
        longest: tokens at most.
    """
    start = _start(tokenizer)
    return [(*start, *encode_text(tokenizer, text))[:longest] for text in given.texts]


def beginnings(tokenizer: Any, given: PlainTexts, positions: int) -> list[tuple[int, ...]]:
    """Return exactly `positions` tokens of each text.

    Raises:
        EmEvalsError: a text is shorter, with its line.
    """
    found = encoded(tokenizer, given, positions)
    for ids, line in zip(found, given.lines, strict=True):
        if len(ids) < positions:
            raise EmEvalsError(
                f"this text has {len(ids)} tokens, fewer than the {positions} positions that are read: make it longer, "
                f"or pass --positions {len(ids)}.",
                given.path,
                line,
            )
    return found


def _start(tokenizer: Any) -> Sequence[int]:
    """Return the token that the tokenizer puts before every text; most chat models have none."""
    first = tokenizer.encode("a", add_special_tokens=True)[:1]
    return first if first and first[0] == tokenizer.bos_token_id else ()
