"""OpenAI's chat messages and tools as chat templates take them, and calls of tools as OpenAI's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from em_evals import parsing
from em_evals.errors import EmEvalsError
from em_evals.models.chat import Message
from em_evals.models.chat.calls import Call

_FREE = (None, "auto", "none")
"""Values of `tool_choice` that force nothing."""


def about_tools(body: Mapping[str, Any]) -> bool:
    """Return whether a chat request gives tools, asks for a call, or has calls in its history."""
    return bool(
        body.get("tools")
        or body.get("tool_choice") not in _FREE
        or any(one["role"] == "tool" or one.get("tool_calls") for one in body["messages"])
    )


def tools_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools of a request as chat templates take them.

    Raises:
        EmEvalsError: the request forces a call, or its messages contain calls and it gives no tools.
    """
    if body.get("tool_choice") not in _FREE:
        raise EmEvalsError(
            "the served models cannot be forced to call a tool: set `tool_choice` to auto, or leave it out."
        )
    if not body.get("tools") and about_tools(body):
        raise EmEvalsError(
            "these messages contain calls of tools, and no tools are given: send `tools` with every request of a chat."
        )
    return [
        {
            "type": "function",
            "function": {
                "name": one["function"]["name"],
                "description": one["function"].get("description") or "",
                "parameters": one["function"].get("parameters") or {"type": "object", "properties": {}},
            },
        }
        for one in body.get("tools") or ()
    ]


def messages_of(given: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return a chat for a template.

    Raises:
        EmEvalsError: a call's arguments are no JSON object, a result has no call, or no answer can follow.
    """
    named: dict[str, str] = {}
    found = [_message(one, f"messages.{place}", named) for place, one in enumerate(given)]
    if found and found[-1].get("tool_calls"):
        raise EmEvalsError(
            "the last message calls a tool: add the tool's result, a message of the role 'tool'."
        )
    return found


def _message(message: Mapping[str, Any], place: str, named: dict[str, str]) -> Message:
    """Return a message; `named` has the names of the tools called so far, by the call's id."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    if message.get("tool_calls") and role != "assistant":
        raise EmEvalsError(f"`{place}` has `tool_calls`, which only the assistant's messages have.")
    if role == "tool":
        called = message.get("tool_call_id")
        if called not in named:
            raise EmEvalsError(
                f"`{place}` answers the call '{called}', which no message before it makes: set `tool_call_id` to "
                "the call's `id`."
            )
        return {"role": role, "content": text, "name": named[called], "tool_call_id": called}
    found: Message = {"role": role, "content": text}
    if role == "assistant" and (thought := message.get("reasoning_content") or message.get("reasoning")):
        found["reasoning"] = thought
    if calls := [_call(one, place) for one in message.get("tool_calls") or ()]:
        named |= {one["id"]: one["name"] for one in calls}
        found["tool_calls"] = calls
    return found


def _call(call: Mapping[str, Any], place: str) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = parsing.json_value(function["arguments"] or "{}")
    except EmEvalsError:
        arguments = None
    if not isinstance(arguments, dict):
        raise EmEvalsError(
            f"the arguments of the call of '{function['name']}' in `{place}` are no JSON object as text."
        )
    return {"id": call["id"], "name": function["name"], "arguments": arguments}


def calls_of(calls: Sequence[Call], seed: int) -> list[dict[str, Any]]:
    """Return the calls that can be read as OpenAI's JSON; their ids are those of the local provider."""
    return [
        {
            "id": call.identity(f"{seed}|{i}"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for i, call in enumerate(calls)
        if not call.error
    ]
