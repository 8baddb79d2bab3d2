"""Chats to token ids: a base's or an adapter's template, checked once, for prompts, training rows and texts.

`template_of(tokenizer)` returns a base's template, `template_for(card, tokenizer)` the one for a card's model, and
`prompting(card, tokenizer)` the same with thoughts where the card lets its model think.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_evals.models.chat.own import prompting, template_for
from em_evals.models.chat.rendering import Message, Source
from em_evals.models.chat.speech import Spoken
from em_evals.models.chat.template import ChatTemplate, template_of
from em_evals.models.chat.text import encode_text

__all__ = [
    "ChatTemplate",
    "Message",
    "Source",
    "Spoken",
    "encode_chat",
    "encode_text",
    "prompting",
    "template_for",
    "template_of",
]


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Encode messages with a tokenizer's own template (`ChatTemplate.encode`).

    Raises:
        EmEvalsError: the tokenizer has no chat template, or the template refuses the messages.
    """
    return template_of(tokenizer).encode(messages)
