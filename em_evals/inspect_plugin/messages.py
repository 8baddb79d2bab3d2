"""Inspect's messages and tools for a chat template, and a draw as Inspect's message; no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
)
from inspect_ai.model._call_tools import parse_tool_call, tool_parse_error_message
from inspect_ai.tool import ToolCall, ToolInfo

from em_evals.errors import EmEvalsError
from em_evals.models.chat import Message, Spoken
from em_evals.models.chat.calls import Call

_UNKNOWN = "unknown"
"""Inspect's name of the function of a call that cannot be read."""


def schemas(tools: Sequence[ToolInfo]) -> list[dict[str, Any]]:
    """Return tools as chat templates take them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters.model_dump(mode="json", exclude_none=True),
            },
        }
        for tool in tools
    ]


def chat(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return a chat for a template. The answer to a call that could not be read is a message of the user's.

    Raises:
        EmEvalsError: a message holds content that is not text.
    """
    unread = {
        call.id
        for message in messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
        if call.parse_error
    }
    found: list[Message] = []
    for message in messages:
        one = _message(message, unread)
        if one["role"] == "user" and found and found[-1]["role"] == "user":
            found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n\n{one['content']}"}
        else:
            found.append(one)
    return found


def _message(message: ChatMessage, unread: set[str]) -> Message:
    parts = [] if isinstance(message.content, str) else message.content
    if other := next((part.type for part in parts if part.type not in ("text", "reasoning")), None):
        raise EmEvalsError(
            f"local models read text only, but these messages contain content of the type '{other}'."
        )
    if isinstance(message, ChatMessageTool):
        said = f"Error: {message.error.message}" if message.error else message.text
        if message.tool_call_id in unread or message.tool_call_id is None:
            return {"role": "user", "content": said}
        named = {"name": message.function or "", "tool_call_id": message.tool_call_id}
        return {"role": "tool", "content": said, **named}
    found: Message = {"role": message.role, "content": message.text}
    if isinstance(message, ChatMessageAssistant):
        thoughts = [p.reasoning for p in parts if isinstance(p, ContentReasoning) and not p.redacted]
        if any(thoughts):
            found["reasoning"] = "\n\n".join(thoughts)
        calls = [call for call in message.tool_calls or () if not call.parse_error]
        if calls:
            found["tool_calls"] = [
                {"id": call.id, "name": call.function, "arguments": call.arguments} for call in calls
            ]
    return found


def answer(
    spoken: Spoken, text: str, model: str, tools: Sequence[ToolInfo], seed: int
) -> ChatMessageAssistant:
    """Return a draw as Inspect's message.

    Args:
        spoken: its thought, answer and calls.
        text: the whole draw, for one without either.
        model: the model's name.
        tools: what it may call.
        seed: of the draw; the calls' ids are made of it.
    """
    content: str | list[Content] = text if not spoken.calls else spoken.answer or ""
    if spoken.thought is not None:
        content = [ContentReasoning(reasoning=spoken.thought)]
        content += [ContentText(text=spoken.answer)] if spoken.answer is not None else []
    calls = [_call(call, tools, f"{seed}|{i}") for i, call in enumerate(spoken.calls)]
    return ChatMessageAssistant(content=content, model=model, source="generate", tool_calls=calls or None)


def _call(call: Call, tools: Sequence[ToolInfo], place: str) -> ToolCall:
    identity = call.identity(place)
    if not call.name:
        error = tool_parse_error_message(call.arguments, ValueError(call.error))
        return ToolCall(id=identity, function=_UNKNOWN, arguments={}, parse_error=error)
    found = parse_tool_call(identity, call.name, call.arguments, list(tools))
    if call.error and not found.parse_error:
        found.parse_error = tool_parse_error_message(call.arguments, ValueError(call.error))
    return found
