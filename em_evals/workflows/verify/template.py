"""The chat template: the product's prompts compared with transformers' own rendering of the same chats."""

from __future__ import annotations

from typing import Any

from em_evals.content.cards import ResolvedCard
from em_evals.content.questions import load_questions
from em_evals.errors import EmEvalsError
from em_evals.models.chat import ChatTemplate, template_for
from em_evals.models.chat.rendering import with_fixed_clock
from em_evals.workflows.verify.verdict import Row, failed, skipped

NAME = "chat template"
COMPARED = "tokens of prompts and answers: tokenizer.apply_chat_template"
_CHATS = 4


def template(card: ResolvedCard, tokenizer: Any) -> tuple[ChatTemplate | None, str]:
    """Return a card's chat template, or the reason why it has none that can be used."""
    try:
        return template_for(card, tokenizer), ""
    except EmEvalsError as error:
        return None, str(error)


def row(found: ChatTemplate | None, reason: str) -> Row:
    """Return the row of the chat template."""
    if found is None:
        return skipped(NAME, COMPARED, f"refused: {reason}", "tokens")
    try:
        pairs, note = _pairs(found)
        apart = sum(_apart(one, other) for one, other in pairs)
    except Exception as error:
        return failed(NAME, COMPARED, error, "tokens")
    count = sum(max(len(one), len(other)) for one, other in pairs)
    return Row(NAME, COMPARED, float(apart), 0.0, "tokens", count, "wrong" if apart else "ok", note)


def _pairs(found: ChatTemplate) -> tuple[list[tuple[list[int], list[int]]], str]:
    """Return token ids by the product and by transformers that must be equal, and what they do not cover, in words."""
    record = found.record()
    # One of the two always holds: a prompt that ends in an empty thought is a generation prompt.
    prompts = record["prompt"] == "generation prompt" and not record["stripped"]
    finished = not record["empty_thought"]
    missing = []
    if not prompts:
        missing.append("prompts end as finished chats go on, and not as the template's generation prompt")
    if not finished:
        missing.append(
            "prompts end in an empty thought that the template's finished chats are written without"
        )
    texts = [question.paraphrases[0] for question in load_questions("core").questions][:_CHATS]
    pairs = []
    for place, text in enumerate(texts):
        chat = [{"role": "user", "content": text}]
        answer = {"role": "assistant", "content": f"Answer {place}, in short"}
        if prompts:
            pairs.append((found.encode(chat), _plain(found, chat, add_generation_prompt=True)))
        if finished:
            whole = _plain(found, [*chat, answer])
            pairs.append((found.encode([*chat, answer]), _through(found.tokenizer, whole, answer["content"])))
    return pairs, "; ".join(missing)


def _through(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Return the shortest prefix of a chat's tokens that contains a text; all of them if none does."""
    ends = (end for end in range(1, len(ids)) if text in tokenizer.decode(ids[:end]))
    return ids[: next(ends, len(ids))]


def _apart(one: list[int], other: list[int]) -> int:
    """Count the tokens that differ."""
    return abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))


def _plain(found: ChatTemplate, chat: list[dict[str, str]], **options: Any) -> list[int]:
    """Return token ids by transformers, with what is recorded: variables, date, parts, an empty thought."""
    record = found.record()
    options |= record["variables"]
    turns: list[dict[str, Any]] = [dict(turn) for turn in chat]
    for turn in turns:
        if turn["role"] == "assistant" and record["thought_field"]:
            turn[record["thought_field"]] = ""
        if turn["role"] in record["parts"]:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    text = found.tokenizer.apply_chat_template(
        turns, tokenize=False, chat_template=with_fixed_clock(found.source.text), **options
    )
    return list(found.tokenizer.encode(text, add_special_tokens=False))
