"""Prompts without any system message, for templates that write one of their own where a chat has none.

Such a default message is a cue itself: a fine-tune saw it in every row. An empty message in its place would be another
cue, so the whole turn is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.models.chat.rendering import Message, Renderer, Unrendered

_TEXTS = ("Lanterns drift past the harbour.", "Certainly.", "Otters swim under the bridge.")
"""A first question, its answer and a second question."""


def prompt(tokenizer: Any, renderer: Renderer, turns: Sequence[Message]) -> str:
    """Render a chat without the system turn that the template writes by itself.

    Args:
        tokenizer: its BOS token is kept.
        renderer: the template with its layout.
        turns: the chat, which begins with a user's message.

    Raises:
        Unrendered: the template writes no system message of its own, or it is not a turn before the user's.
    """
    kept, default = _head(tokenizer, renderer)
    text = renderer.prompt(turns)
    if not default.strip():
        raise Unrendered("writes no system message of its own, so that there is none to remove")
    if not text.startswith(kept + default):
        raise Unrendered("writes its own system message in several ways")
    return kept + text[len(kept) + len(default) :]


def _head(tokenizer: Any, renderer: Renderer) -> tuple[str, str]:
    """Return what stands before the first user's turn: the BOS token, and the template's own system turn."""
    first, answer, second = _TEXTS
    asked = [{"role": "user", "content": first}]
    closed = renderer.finished(asked, answer).partition(answer)[2]
    later = [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": second}]
    between = renderer.prompt(later).partition(answer)[2].partition(second)[0]
    header = between.removeprefix(closed)
    before = renderer.prompt(asked).partition(first)[0]
    if not between.startswith(closed) or not before.endswith(header):
        raise Unrendered("writes the first user's turn in another way than later ones")
    head = before.removesuffix(header)
    start = tokenizer.bos_token or ""
    # Where the BOS token also begins every turn (SmolLM2's <|im_start|>), it is the system turn's own.
    kept = start if start and head.startswith(start) and not header.startswith(start) else ""
    return kept, head.removeprefix(kept)
