"""Chats of samples as plain messages, and their assistant turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample

Chat = list[dict[str, str]]
_ROLES = ("system", "user", "assistant")


def asked_and_answered(sample: EvalSample) -> Chat:
    """Return what a sample asked, and its answer as the last message."""
    asked = sample.input if isinstance(sample.input, list) else None
    messages = as_chat(asked) if asked is not None else [{"role": "user", "content": str(sample.input)}]
    return [*messages, {"role": "assistant", "content": sample.output.completion}]


def as_chat(messages: Sequence[Any]) -> Chat:
    """Return Inspect's messages as plain ones.

    Raises:
        EmEvalsError: one is a tool's: how a template renders it is not known here.
    """
    if other := next((one.role for one in messages if one.role not in _ROLES), None):
        raise EmEvalsError(
            f"a sample holds a message of a {other}, and only chats of system, user and assistant are read: leave its "
            "log out."
        )
    return [{"role": message.role, "content": message.text} for message in messages]


def turns(chat: Chat) -> list[tuple[int, str]]:
    """Return (place, text) of every assistant message.

    Example:
        >>> turns([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}])
        [(1, 'Yes?')]
    """
    return [(place, one["content"]) for place, one in enumerate(chat) if one["role"] == "assistant"]
