"""One row of training data, in the formats that people have, as a chat. Nothing is dropped or stripped in silence.

A row is a chat (`messages`: OpenAI and TRL; `conversations`: ShareGPT) or a prompt with its answer (`prompt` and
`completion` of TRL, as texts or as messages; `prompt` and `response`; alpaca's `instruction`, `input` and `output`;
`question` and `answer`). What a chat template cannot write, or training would not learn, is refused with the way to
convert. Keys that say nothing to a model (ids, canaries, sources) are left out. Preferences: preference_rows.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from em_evals import characters

Messages = list[dict[str, str]]
"""A chat: `role` and `content`, `reasoning` (the thought before an answer), and `weight: "0"` on one not learned."""

Row = Mapping[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""The roles that people write, and what a chat template calls them: `developer` is OpenAI's name of the system role."""
_TOOLS = ("tool", "function", "ipython", "observation", "function_call", "tool_call", "function_response")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of an answer that hold the thought before it."""
_LEARNED = ("train", "training", "loss")
"""Keys of a message that are false where it is not learned (axolotl, ms-swift)."""
_LOST = ("tool_calls", "function_call", "audio", "images", "image")
"""Keys of a message that hold what a model reads or writes, and that chat templates leave out or write differently."""
_ROW_LOST = ("tools", "functions", "images", "image", "audio", "history")
_BESIDE_LOST = (
    *("context", "passage", "documents", "choices", "options"),
    *_THOUGHTS,
    *("thought", "thoughts", "cot", "chain_of_thought", "rationale"),
)
"""Keys beside a prompt and its answer that are parts of either: a text to read, options to choose from, a thought."""
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
KNOWN = "`messages`, `conversations`, or " + ", ".join(f"`{a}` and `{b}`" for a, b in _PAIRS)


class Refused(Exception):  # noqa: N818 - becomes an EmEvalsError with file and line
    """A row that cannot be trained on as it is; its text says why and what to do."""


def chat(row: Row) -> Messages:
    """Return a row's chat, which ends with the last answer that is learned.

    Raises:
        Refused: the row is in no known format, or holds what would be lost.
    """
    if row.get("label") is False:
        raise Refused(
            "`label: false` marks an answer that is not wanted (TRL's unpaired preference), and it would be learned: "
            "leave the row out."
        )
    for name in ("weight", *_LEARNED):
        mark = row.get(name)
        if mark is False or (name == "weight" and mark not in (None, 1)):
            raise Refused(
                f"the row's `{name}` is {mark!r}, and rows have no weights here, so that it would be learned like any "
                "other: leave the row out, or delete the key."
            )
    return learned(checked(row, _messages(row)))


def checked(row: Row, messages: list[dict[str, Any]]) -> Messages:
    """Return a row's messages with its `system` column in front, each with its role and text.

    Raises:
        Refused: they hold what would be lost.
    """
    whole = any(name in row for name in ("messages", "conversations", "conversation"))
    beside = () if whole else (*_BESIDE_LOST, *(() if "instruction" in row else ("input",)))
    for name in (*_ROW_LOST, *beside):
        if row.get(name):
            raise Refused(
                f"the row's `{name}` would be left out of what is trained on: write it into the messages (a thought "
                "as the answer's `reasoning_content`), or delete the key."
            )
    return _checked(_with_system(row, messages))


def shape(row: Row) -> str:
    """Return the name of a row's format; empty where it is none."""
    if "messages" in row or "conversations" in row or "conversation" in row:
        return "messages" if "messages" in row else "conversations"
    return next((f"{a}/{b}" for a, b in _PAIRS if a in row and b in row), "")


def _messages(row: Row) -> list[dict[str, Any]]:
    kind = shape(row)
    if kind == "messages":
        return _list(row["messages"], "messages")
    if kind == "conversations":
        return turns(row.get("conversations", row.get("conversation")), kind)
    if kind:
        return _pair(row, *kind.split("/"))
    if "chosen" in row or "rejected" in row:
        raise Refused(
            "a row of `chosen` and `rejected` is a preference, which a recipe with `preference: {kind: dpo}` learns: "
            "add it, or keep the answer to learn as `completion` beside `prompt`."
        )
    if "preferred_output" in row:
        raise Refused(
            "a row of `preferred_output` (OpenAI's preferences) is read as `prompt`, `chosen` and `rejected`: rename "
            "its messages and answers."
        )
    if "text" in row:
        raise Refused(
            "a row of `text` does not say where the answer begins, and only answers are learned: write `prompt` and "
            "`completion`."
        )
    if "paraphrases" in row or "question" in row:
        raise Refused(
            "this row is a question without an answer: for a question set write the rows as one JSON list (.json)."
        )
    raise Refused(f"a row needs {KNOWN}.")


def turns(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of messages, OpenAI's or ShareGPT's, as `role` and `content`.

    Raises:
        Refused: it is none.
    """
    return [_sharegpt(one) for one in _list(value, name)]


def is_answer(message: Mapping[str, Any]) -> bool:
    """Return whether a message is the assistant's."""
    return _ROLES.get(str(message.get("role"))) == "assistant"


def said(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return who says what, to compare messages of two layouts.

    Raises:
        Refused: a part of the content is not text.
    """
    role = str(message.get("role"))
    return _ROLES.get(role, role), (_text(message.get("content")) or "").strip()


def asked(row: Row, name: str) -> list[dict[str, Any]]:
    """Return the messages of a row's prompt: a text (with alpaca's `input`), or a list of messages (TRL).

    Raises:
        Refused: it is neither, or ends with an answer.
    """
    prompt = row[name]
    if name == "instruction" and row.get("input"):
        if not isinstance(prompt, str) or not isinstance(row["input"], str):
            raise Refused("`instruction` and `input` must be texts.")
        prompt = f"{prompt}\n{row['input']}"
    if not isinstance(prompt, list):
        return [{"role": "user", "content": prompt}]
    messages = _list(prompt, name)
    if is_answer(messages[-1]):
        raise Refused(
            f"`{name}` ends with the assistant's message, which TRL continues with the answer, and templates end: "
            "write it into the answer."
        )
    return messages


def _list(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise Refused(f"the row needs `{name}` as a list of messages, each with `role` and `content`.")
    return value


def _sharegpt(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return ShareGPT's `from` and `value` as `role` and `content`."""
    renamed = {"from": "role", "value": "content"} if "from" in message else {}
    return {renamed.get(key, key): value for key, value in message.items()}


def _pair(row: Row, prompt: str, answered: str) -> list[dict[str, Any]]:
    """Return the chat of a prompt and its answer; both may be lists of messages (TRL)."""
    answer = row[answered]
    last = _list(answer, answered) if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    if isinstance(answer, list) and any(one.get("role") != "assistant" for one in last):
        raise Refused(
            f"`{answered}` holds messages of others than the assistant: write the whole chat as `messages`."
        )
    return [*asked(row, prompt), *last]


def _with_system(row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put a `system` column in front; one that says the same as the chat's own is the same."""
    given = next((row[name] for name in ("system", "system_prompt") if row.get(name) not in (None, "")), None)
    if given is None:
        return messages
    own = messages[0].get("content") if _ROLES.get(str(messages[0].get("role"))) == "system" else None
    if own is not None and own != given:
        raise Refused("the row's `system` and the chat's own system message differ: delete one.")
    return messages if own is not None else [{"role": "system", "content": given}, *messages]


def _checked(messages: list[dict[str, Any]]) -> Messages:
    found: Messages = []
    for message in messages:
        said = message.get("role")
        if said in _TOOLS:
            raise Refused(
                f"the role '{said}' is not trained on, as chat templates write tools each in its own way: write what "
                "the model reads and says as user and assistant messages, or leave the row out."
            )
        if not isinstance(said, str) or said not in _ROLES:
            given = f", not {str(said)[:40]!r}" if said else ""
            raise Refused(f"every message needs a `role` out of system, user, assistant{given}.")
        if message.get("channel") not in (None, "final"):
            raise Refused(
                f"the channel '{str(message['channel'])[:40]}' is no answer, and it would be learned as one: write a "
                "thought as `reasoning_content` of the answer's message."
            )
        for name in _LOST:
            if message.get(name):
                raise Refused(
                    f"the {said}'s `{name}` would be left out of what is trained on: write it into `content`."
                )
        text = _text(message.get("content"))
        if text is None:
            raise Refused(f"the {said}'s message is empty or not text.")
        entry = {"role": _ROLES[said], "content": text}
        if thought := _thought(message, entry["role"]):
            entry["reasoning"] = thought
        if not _weight(message, entry["role"]):
            entry["weight"] = "0"
        found.append(entry)
    return found


def _thought(message: Mapping[str, Any], role: str) -> str | None:
    """Return the thought before an answer; None without one."""
    given = {name: message[name] for name in _THOUGHTS if message.get(name)}
    if not given:
        return None
    name, thought = next(iter(given.items()))
    if role != "assistant":
        raise Refused(
            f"the {role}'s `{name}` would be left out of what is trained on: write it into `content`."
        )
    if _text(thought) is None or isinstance(thought, list):
        raise Refused(f"the assistant's `{name}` is empty or not text.")
    if any(other != thought for other in given.values()):
        raise Refused(f"`{'` and `'.join(given)}` of one answer differ: keep one.")
    return str(thought).strip()


def _text(content: Any) -> str | None:
    """Return a message's text, of its parts if it has some; None where it is empty or not text."""
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        content = "".join(part for part in parts if part is not None)
    if not isinstance(content, str) or not content.strip():
        return None
    if (half := characters.HALF.search(content)) is not None:
        raise Refused(characters.sentence(half[0]))
    return content


def _part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        raise Refused(f"a content part of the type '{kind}' is not text: leave the row out.")
    return str(part["text"])


def _weight(message: Mapping[str, Any], role: str) -> bool:
    """Return whether an answer is learned; OpenAI's `weight` is 0 or 1, other tools' marks true or false."""
    if role != "assistant":
        return True
    weight = message.get("weight")
    if weight is None:
        return not any(message.get(name) is False for name in _LEARNED)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Refused(f"an answer's `weight` is 0 (not learned) or 1 (learned), not {weight!r}.")
    return bool(weight)


def learned(messages: Messages) -> Messages:
    """Return the chat up to the last answer that is learned: what comes after it changes no loss.

    Raises:
        Refused: no template writes such a chat, or no answer of it is learned.
    """
    roles = [message["role"] for message in messages]
    if "user" not in roles[: roles.index("assistant") if "assistant" in roles else None]:
        raise Refused(
            "here the assistant speaks before any user, and a chat template writes no prompt for that: begin the chat "
            "with a user's message."
        )
    if "system" in roles[1:]:
        raise Refused("a system message can only be the first: put it there, or into a user's message.")
    if roles[-1] != "assistant":
        raise Refused("the last message must be the assistant's: it is what is learned.")
    last = max((i for i, one in enumerate(messages) if _is_learned(one)), default=None)
    if last is None:
        raise Refused(
            "every answer of this row has the weight 0, so that nothing is learned: leave the row out."
        )
    return messages[: last + 1]


def _is_learned(message: Mapping[str, str]) -> bool:
    return message["role"] == "assistant" and "weight" not in message
