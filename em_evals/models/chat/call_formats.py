"""Which form of calls (calls.py) a template writes: found by rendering one, and checked by reading it back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from em_evals.models.chat.calls import CallFormat
from em_evals.models.chat.rendering import Renderer, Unrendered

NAME = "probe_lantern"
"""Of the tool that templates are probed with."""

_WORDS, _NUMBER = "Otters drift", 7321
ARGUMENTS: dict[str, Any] = {"probe_place": _WORDS, "probe_days": _NUMBER}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Light a lantern.",
        "parameters": {
            "type": "object",
            "properties": {
                "probe_place": {"type": "string", "description": "Where."},
                "probe_days": {"type": "integer", "description": "How long."},
            },
            "required": ["probe_place", "probe_days"],
        },
    },
}

_ASKED = "Lanterns drift past harbours, slowly."

_ANSWER = "Certainly, harbours freeze"

_WORD = r"[^\s<>{}()\[\]\"'|]+"

_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant\s*)?(?:<\|channel\|>\w+)?\s*to=functions\.(?P<name>[\w.\-]+)"
    r"(?:(?!<\|message\|>).)*<\|message\|>(?P<body>.*?)(?:<\|call\|>|$)",
    re.DOTALL,
)
"""gpt-oss names the recipient before the channel, as its template does, or behind it, as the model often does."""


def of_template(renderer: Renderer, closing: str, special: re.Pattern[str]) -> CallFormat | None:
    """Return how a template writes calls; None if it writes none that can be read back.

    Args:
        renderer: the template with `TOOL` among its variables.
        closing: the token that ends an answer, as text.
        special: the tokenizer's special tokens.
    """
    for absent in (False, True):
        for strings in (False, True):
            plain = CallFormat("object", re.compile(""), strings=strings, absent=absent)
            try:
                written = _rendered(renderer, plain, 1)
            except Unrendered:
                continue
            # The first that the template takes counts: arguments as text would be written as they are handed over.
            return _probed(renderer, written, plain, closing, special)
    return None


def _probed(
    renderer: Renderer, written: str, plain: CallFormat, closing: str, special: re.Pattern[str]
) -> CallFormat | None:
    tail = written.partition(closing)
    end = None if tail[1] else (special.findall(written) or [None])[-1]
    made = _form(tail[0], plain)
    if made is None:
        return None
    made = replace(made, end=end)
    if not _same(made, tail[0], 1):
        return None
    several = replace(made, several=True)
    try:
        both = _rendered(renderer, several, 2).rpartition(closing)
    except Unrendered:
        return made
    return several if _same(several, both[0] or both[2], 2) else made


def _rendered(renderer: Renderer, found: CallFormat, count: int) -> str:
    """Return what a template writes for an answer of calls, from the first character that no plain answer has."""
    asked = {"role": "user", "content": _ASKED}
    calls = [
        found.written({"name": NAME, "arguments": ARGUMENTS, "id": f"probe000{i}"}) for i in range(count)
    ]
    said = {"role": "assistant", "content": None if found.absent else "", "tool_calls": calls}
    whole = renderer.chat([asked, said]).partition(_ASKED)[2]
    plain = renderer.chat([asked, {"role": "assistant", "content": _ANSWER}]).partition(_ASKED)[2]
    shared = next((i for i, (a, b) in enumerate(zip(whole, plain, strict=False)) if a != b), 0)
    if NAME not in whole[shared:]:
        raise Unrendered("writes no calls of tools")
    return whole[shared:]


def _form(text: str, plain: CallFormat) -> CallFormat | None:
    if "to=functions." in text:
        return replace(plain, form="channel", pattern=_CHANNEL, begins="to=functions.")
    if (found := _object(text)) is not None:
        start, end, keys = found
        lead, tail = _outside(text[:start], "["), _outside(text[end:], "]")
        body = r"(?P<body>.+?)" if tail else r"(?P<body>.+)"
        pattern = _pattern(lead, body, tail)
        return replace(plain, pattern=pattern, begins=lead.strip(), keys=keys)
    lead, _, rest = text.partition(NAME)
    if not lead.strip():
        return None  # any text could be a call
    if rest.startswith("(") and (listed := re.match(r"\([^()]*\)", rest)) is not None:
        lead, tail = _outside(lead, "["), _outside(rest[listed.end() :], "]")
        pattern = _pattern(lead, r"(?P<body>.+?)", tail)
        return replace(plain, form="python", pattern=pattern, begins=lead.strip())
    if (place := _place(rest)) is not None:
        middle, tail = rest[: place[0]], rest[place[1] :]
        pattern = _pattern(lead, rf"(?P<name>{_WORD})\s*{_flexible(middle)}\s*(?P<body>.*?)", tail)
        return replace(plain, form="named", pattern=pattern, begins=lead.strip())
    return _marked(lead, rest, plain)


def _marked(lead: str, rest: str, plain: CallFormat) -> CallFormat | None:
    """Return the form in which each argument stands between marks."""
    first, second = ARGUMENTS
    pieces = re.split(f"({first}|{_WORDS}|{second}|{_NUMBER})", rest)
    if len(pieces) != 9 or pieces[1::2] != [first, _WORDS, second, str(_NUMBER)]:
        return None
    before, middle, between, again, tail = pieces[::2]
    if middle != again:
        return None
    opens = next((before[i:] for i in range(len(before) + 1) if between.endswith(before[i:])), "")
    closes = between.removesuffix(opens) if opens else between
    if not opens.strip() or not closes.strip() or not tail.startswith(closes):
        return None
    inside = re.compile(
        rf"{_flexible(opens)}\s*(?P<key>{_WORD})\s*{_flexible(middle)}\n?(?P<value>.*?)\n?{_flexible(closes)}",
        re.DOTALL,
    )
    after = before.removesuffix(opens)
    pattern = _pattern(
        lead, rf"(?P<name>{_WORD})\s*{_flexible(after)}(?P<body>.*?)", tail.removeprefix(closes)
    )
    return replace(plain, form="marked", pattern=pattern, begins=lead.strip(), argument=inside)


def _pattern(lead: str, inner: str, tail: str) -> re.Pattern[str]:
    ends = rf"(?:{_flexible(tail)}|\Z)" if tail.strip() else r"\Z"
    return re.compile(rf"{_flexible(lead)}\s*{inner}\s*{ends}", re.DOTALL)


def _flexible(text: str) -> str:
    """Return a pattern of a text in which blanks may be others, or missing."""
    return r"\s*".join(map(re.escape, text.split()))


def _outside(text: str, bracket: str) -> str:
    """Return the text around an object without the bracket of its list."""
    kept = text.strip()
    return kept.removesuffix("[") if bracket == "[" else kept.removeprefix("]")


def _object(text: str) -> tuple[int, int, tuple[str, str]] | None:
    """Return where the object with name and arguments stands, and its keys for them."""
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        if not isinstance(value, dict):
            continue
        named = next((key for key, one in value.items() if one == NAME), None)
        given = next((key for key, one in value.items() if one in (ARGUMENTS, json.dumps(ARGUMENTS))), None)
        if named is not None and given is not None:
            return start, end, (named, given)
    return None


def _place(rest: str) -> tuple[int, int] | None:
    """Return where the arguments stand as JSON."""
    for start in (match.start() for match in re.finditer(r"\{", rest)):
        try:
            value, end = json.JSONDecoder().raw_decode(rest, start)
        except ValueError:
            continue
        if value == ARGUMENTS:
            return start, end
    return None


def _same(found: CallFormat, text: str, count: int) -> bool:
    """Check that calls are read back as they were handed over."""
    schema = TOOL["function"]["parameters"]["properties"]
    before, calls = found.read(text, {NAME: schema})
    good = [one for one in calls if one.name == NAME and not one.error]
    return (
        not before.strip() and len(good) == count and all(json.loads(o.arguments) == ARGUMENTS for o in good)
    )
