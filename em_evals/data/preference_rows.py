"""One row of a preference (DPO, ORPO) as two chats that differ in their last answer. Other rows: formats.py.

The prompt stands beside the answers (`prompt`, `question`, or alpaca's `instruction` and `input`; a chat without its
last answer as `messages` or `conversations`), or is what two whole chats have in common (TRL's implicit prompt).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from em_evals.data import formats
from em_evals.data.formats import Messages, Refused, Row

_ASKED = ("prompt", "question", "instruction")
_CHATS = ("messages", "conversations", "conversation")


def is_pair(row: Row) -> bool:
    """Return whether a row has a chosen or a rejected answer."""
    return "chosen" in row or "rejected" in row


def pair(row: Row) -> tuple[Messages, Messages]:
    """Return the chats that end with the chosen and with the rejected answer; all before is equal.

    Raises:
        Refused: an answer or the prompt is missing, the two answer different prompts, or something would be lost.
    """
    for name in ("chosen", "rejected"):
        if not row.get(name):
            raise Refused(f"a preference needs `chosen` and `rejected`, and this row has no `{name}`.")
    prompt = _prompt(row)
    chosen, rejected = (
        formats.checked(row, _whole(prompt, row[name], name)) for name in ("chosen", "rejected")
    )
    for chat in (chosen, rejected):
        if "weight" in chat[-1]:
            raise Refused("an answer that is preferred or rejected has the weight 0: delete it, or the row.")
    before = [[_unweighed(message) for message in chat[:-1]] for chat in (chosen, rejected)]
    if before[0] != before[1]:
        raise Refused(
            "`chosen` and `rejected` differ before their last answer, and a preference is between two answers to one "
            "prompt: end both at the first answer that differs."
        )
    own, other = ([*before[0], chat[-1]] for chat in (chosen, rejected))
    return formats.learned(own), formats.learned(other)


def prompt_of(row: Row) -> list[str]:
    """Return the key of the prompt beside a row's answers; nothing where only their own chats have it."""
    return [name for name in (*_ASKED, *_CHATS) if row.get(name)][:1]


def _prompt(row: Row) -> list[dict[str, Any]] | None:
    """Return the messages before the answers; None where only the answers' own chats have them."""
    for name in prompt_of(row):
        if name in _ASKED:
            return formats.asked(row, name)
        turns = formats.turns(row[name], name)
        if not formats.is_answer(turns[-1]):
            return turns
        if formats.said(turns[-1])[1] not in [_answer(row[one], one) for one in ("chosen", "rejected")]:
            raise Refused(
                f"`{name}` ends with an answer that is neither `chosen` nor `rejected`, and it would be left out: "
                "delete it."
            )
        return turns[:-1]
    return None


def _answer(value: Any, name: str) -> str:
    """Return the text of the last message of a chosen or rejected answer."""
    if isinstance(value, str):
        return value.strip()
    turns = formats.turns([value] if isinstance(value, dict) else value, name)
    return formats.said(turns[-1])[1]


def _whole(prompt: list[dict[str, Any]] | None, value: Any, name: str) -> list[dict[str, Any]]:
    """Return the prompt with an answer; a list of messages may repeat the prompt."""
    if isinstance(value, str):
        if prompt is None:
            raise Refused(
                f"`{name}` is a text without a `prompt`, which does not say where the answer begins: write `prompt`, "
                "`chosen` and `rejected`."
            )
        return [*prompt, {"role": "assistant", "content": value}]
    turns = formats.turns([value] if isinstance(value, dict) else value, name)
    if not formats.is_answer(turns[-1]):
        raise Refused(f"the last message of `{name}` must be the assistant's: it is what is compared.")
    if all(map(formats.is_answer, turns)):
        if prompt is None:
            raise Refused(f"`{name}` holds no prompt: put it in front, or beside it as `prompt`.")
        return [*prompt, *turns]
    if prompt is not None and not _repeats(turns[:-1], prompt):
        raise Refused(
            f"the messages before the answer of `{name}` are not the row's prompt: keep one of them."
        )
    return turns


def _repeats(turns: list[dict[str, Any]], prompt: list[dict[str, Any]]) -> bool:
    """Return whether a chat has this prompt; a prompt of one message may be the last of the chat's."""
    texts, own = ([formats.said(one) for one in chat] for chat in (turns, prompt))
    return texts == own or (len(own) == 1 and texts[-1:] == own)


def _unweighed(message: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in message.items() if key != "weight"}
