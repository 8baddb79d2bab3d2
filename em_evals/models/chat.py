"""Chat messages to token ids, by the model's own template, exactly once.

Two traps are kept shut here. The template writes the BOS token itself, so the tokenizer must not add another.
And text that imitates a special token (`<|im_end|>` in an answer handed to a judge) stays text: it is encoded
letter by letter and never ends a turn.
"""

from __future__ import annotations

import re
from typing import Any

from em_evals.errors import EmEvalsError

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

# Private-use characters: they stand for imitated special tokens while the template is rendered.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


def encode_chat(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of a conversation, ready to be continued by the assistant.

    A last message by the assistant is the beginning of its answer: its tokens come right after the generation
    prompt and nothing closes them. They are encoded by themselves, so that an answer has the same tokens
    wherever it stands (`encode_text`).

    Raises:
        EmEvalsError: the tokenizer has no chat template, or the template refuses the messages.
    """
    prefill = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
    turns = messages if prefill is None else messages[:-1]
    ids = _render(tokenizer, turns)
    return ids if prefill is None else [*ids, *encode_text(tokenizer, prefill)]


def given_tokens(tokenizer: Any, messages: list[Message]) -> int:
    """How many of `encode_chat`'s tokens, at its end, are a given beginning of the answer."""
    given = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    return len(encode_text(tokenizer, given)) if given else 0


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text: no BOS, and no special token whatever the text says."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _render(tokenizer: Any, turns: list[Message]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise EmEvalsError(f"{tokenizer.name_or_path} has no chat template; em-evals asks chat models.")
    imitations: list[str] = []
    special = re.compile("|".join(re.escape(token) for token in _special_tokens(tokenizer)) or r"(?!)")

    def hide(match: re.Match[str]) -> str:
        imitations.append(match.group())
        return f"{_OPEN}{len(imitations) - 1}{_CLOSE}"

    safe = [{**turn, "content": special.sub(hide, _plain(turn["content"]))} for turn in turns]
    text = _apply_template(tokenizer, safe)
    ids: list[int] = []
    for i, part in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", text)):
        if i % 2:
            ids += encode_text(tokenizer, imitations[int(part)])
        elif part:
            ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


def _plain(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _special_tokens(tokenizer: Any) -> list[str]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)


def _apply_template(tokenizer: Any, turns: list[Message]) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        if len(turns) > 1 and turns[0]["role"] == "system":
            # Gemma's template knows no system role; its authors put such text before the first user message.
            first = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
            return _apply_template(tokenizer, [first, *turns[2:]])
        raise EmEvalsError(
            f"the chat template of {tokenizer.name_or_path} refuses these messages ({error})."
        ) from None
