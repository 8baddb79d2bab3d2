"""Split a draw into thought and answer by a template's marks; special tokens among them are not in a draw's text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_evals.models.chat.calls import Call, schemas_of
from em_evals.models.chat.marks import Marks


@dataclass(frozen=True)
class Spoken:
    """A draw in two parts.

    Attributes:
        thought: what the model wrote before its answer; None if it did not think.
        answer: None if the thought was cut off.
        tokens: how many of the draw's tokens are the thought's, its marks included.
        calls: of tools, in the answer's place or behind it; those that cannot be read stay in the answer as well.
    """

    thought: str | None
    answer: str | None
    tokens: int = 0
    calls: tuple[Call, ...] = ()


def split(
    tokenizer: Any,
    found: Marks,
    special: re.Pattern[str],
    text: str,
    tokens: Sequence[int],
    opened: bool,
    prefill: str = "",
) -> Spoken:
    """Split a draw at the end of its thought.

    Args:
        tokenizer: the base's.
        found: the template's marks.
        special: the tokenizer's special tokens.
        text: the draw's text; special tokens are missing in it.
        tokens: the draw's tokens.
        opened: the draw begins inside the thought.
        prefill: what the thought begins with, as a part of the prompt.
    """
    ids = list(tokens)
    if not special.search(found.ends):
        if found.ends in text:
            thought, _, answer = text.partition(found.ends)
            return _both(found, prefill, special, thought, answer, _reach(tokenizer, ids, found.ends))
    elif (end := _behind(ids, tokenizer.encode(found.ends, add_special_tokens=False))) is not None:
        written = _decoded(tokenizer, ids[:end], raw=True).strip().removesuffix(found.ends)
        return _both(found, prefill, special, written, _tail(tokenizer, text, ids, end), end)
    if opened or begun(tokenizer, found, special, text, ids):
        raw = _decoded(tokenizer, ids, raw=True) if special.search(found.begins) else text
        return Spoken(_clean(found, prefill, special, raw), None, len(ids))
    return Spoken(None, text)


def begun(tokenizer: Any, found: Marks, special: re.Pattern[str], text: str, tokens: Sequence[int]) -> bool:
    """Check whether a draw begins with the mark of a thought."""
    return found.begun(_decoded(tokenizer, list(tokens), raw=True) if special.search(found.begins) else text)


def with_calls(template: Any, found: Spoken, tokens: Sequence[int], given: str) -> Spoken:
    """Return a draw with its calls of tools apart.

    Args:
        template: a ChatTemplate with tools.
        found: the draw without its calls apart.
        tokens: the draw's tokens.
        given: what the answer begins with, as a part of the prompt.
    """
    calls, special, ids = template.calls, template._known.special, list(tokens)
    schemas = schemas_of(json.loads(template.source.given)["tools"])
    while ids and ids[-1] in (template.end, template.tokenizer.eos_token_id):
        ids.pop()
    if calls.form == "channel":  # a call stands where the final channel would begin
        before, said = calls.read(given + _decoded(template.tokenizer, ids, raw=True), schemas)
        if not said:
            return found
        thought = template.marks.thought(before) if template.marks is not None else before
        thought = special.sub("", thought).strip()
        reach = len(template.tokenizer.encode(before, add_special_tokens=False))
        return Spoken(thought or None, _kept("", said), min(reach, len(ids)), tuple(said))
    if found.answer is None:
        return found
    before, said = calls.read(given + _decoded(template.tokenizer, ids[found.tokens :], raw=True), schemas)
    if not said:
        return found
    text = special.sub("", before.removeprefix(given)).strip()
    return Spoken(found.thought, _kept(text, said), found.tokens, tuple(said))


def _kept(text: str, calls: Sequence[Call]) -> str:
    """Return the answer's text, with the calls that cannot be read as they were written."""
    return "\n".join([*filter(None, [text]), *dict.fromkeys(call.raw for call in calls if call.error)])


def _both(
    found: Marks, prefill: str, special: re.Pattern[str], thought: str, answer: str, tokens: int
) -> Spoken:
    return Spoken(_clean(found, prefill, special, thought), answer.lstrip(), tokens)


def _clean(found: Marks, prefill: str, special: re.Pattern[str], written: str) -> str:
    """Return a thought as text: without its marks, with what it was begun with."""
    whole = (prefill.lstrip() if prefill.strip() else "") + written if prefill else written
    return special.sub("", found.thought(whole)).strip()


def _tail(tokenizer: Any, text: str, ids: list[int], end: int) -> str:
    """Return the draw's text behind a token; a stop text may have cut it."""
    before = _decoded(tokenizer, ids[:end])
    if text.startswith(before):
        return text[len(before) :]
    # A tokenizer that joins words over the mark: decode the rest by itself, and cut it as the whole was cut.
    cut = len(_decoded(tokenizer, ids)) - len(text)
    rest = _decoded(tokenizer, ids[end:])
    return rest[: len(rest) - cut] if cut > 0 else rest


def _behind(ids: list[int], mark: list[int]) -> int | None:
    """Return the place behind the first occurrence of a mark's tokens."""
    width = len(mark)
    starts = (i for i in range(len(ids) - width + 1) if ids[i : i + width] == mark)
    return next((start + width for start in starts), None)


def _reach(tokenizer: Any, ids: list[int], mark: str) -> int:
    """Return how many tokens it takes until a mark of ordinary text is written; 0 where the tokens are unknown."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if mark in _decoded(tokenizer, ids[:middle], raw=True):
            high = middle
        else:
            low = middle + 1
    return low


def _decoded(tokenizer: Any, ids: list[int], raw: bool = False) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=not raw, clean_up_tokenization_spaces=False))
