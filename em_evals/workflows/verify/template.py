"""The chat template: prompts of the product beside transformers' own rendering of the same chats."""

from __future__ import annotations

import datetime
from typing import Any

from em_evals.content.cards import ResolvedCard
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.workflows.verify.verdict import Row, failed, skipped

NAME = "chat template"
COMPARED = "tokens of prompts and answers: tokenizer.apply_chat_template"
_CHATS = 4


def template(card: ResolvedCard, tokenizer: Any) -> tuple[ChatTemplate | None, str]:
    """A card's chat template, or the reason why it cannot be asked with one."""
    try:
        return template_for(card, tokenizer), ""
    except EmEvalsError as error:
        return None, str(error)


def row(found: ChatTemplate | None, reason: str) -> Row:
    """The row of the chat template."""
    if found is None:
        return skipped(NAME, COMPARED, f"refused: {reason}", "tokens")
    if adapted := _adapted(found):
        return skipped(NAME, COMPARED, f"it is not asked as transformers asks it: {adapted}", "tokens")
    texts = [question.paraphrases[0] for question in load_questions("core").questions][:_CHATS]
    apart = count = 0
    try:
        for place, text in enumerate(texts):
            chat = [{"role": "user", "content": text}]
            prompt = _plain(found, chat, add_generation_prompt=True)
            pairs = [(found.encode(chat), prompt)]
            # The finished chat begins with the prompt and the answer's tokens.
            answer = {"role": "assistant", "content": f"Answer {place}, in short"}
            begun = found.encode([*chat, answer])
            pairs.append((begun, _plain(found, [*chat, answer])[: len(begun)]))
            for one, other in pairs:
                count += max(len(one), len(other))
                apart += abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))
    except Exception as error:
        return failed(NAME, COMPARED, error, "tokens")
    word: Any = "wrong" if apart else "ok"
    return Row(NAME, COMPARED, float(apart), 0.0, "tokens", count, word)


def _plain(found: ChatTemplate, chat: list[dict[str, str]], **options: Any) -> list[int]:
    """Token ids, by transformers, which is given the recorded variables and day."""
    record = found.record()
    options |= record["variables"]
    if record["date"] is not None:
        options["strftime_now"] = datetime.date.fromisoformat(record["date"]).strftime
    text = found.tokenizer.apply_chat_template(
        chat, tokenize=False, chat_template=found.source.text, **options
    )
    return list(found.tokenizer.encode(text, add_special_tokens=False))


def _adapted(found: ChatTemplate) -> str:
    """In what messages are handed to the template otherwise than they stand; empty if they are not."""
    usual = {
        "system": "own message",
        "parts": [],
        "prompt": "generation prompt",
        "empty_thought": "",
        "stripped": False,
        "answers_begin_with": "",
    }
    record = found.record()
    return ", ".join(
        f"{name} {record[name]}" for name, value in usual.items() if (record[name] or value) != value
    )
