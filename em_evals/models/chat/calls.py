"""How a template writes calls of tools: found by rendering one, and checked by reading it back.

Four forms cover most published templates: a JSON object that holds the name and the arguments (Hermes, Qwen, Llama,
Mistral), a name and then the arguments as JSON (DeepSeek, gpt-oss), a name and then each argument between marks
(Qwen3-Coder and Qwen3.5, GLM, Nemotron), and calls as Python writes them (LFM2). What is read back is what the template
would write, blanks aside.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from em_evals import parsing
from em_evals.errors import EmEvalsError
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

Form = Literal["object", "named", "marked", "python", "channel"]


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: of the tool; empty where it cannot be read.
        arguments: a JSON object as text; what stands in its place where it is none.
        raw: the call as the model wrote it.
        error: why it cannot be read; empty if it can.
    """

    name: str
    arguments: str
    raw: str
    error: str = ""


@dataclass(frozen=True)
class CallFormat:
    """A template's calls.

    Attributes:
        form: how name and arguments are written.
        pattern: finds a call, its `name` (unless in an object) and its `body`.
        begins: the text before a call's name or object; empty for a bare object.
        keys: of an object: those of the name and of the arguments.
        argument: of marked arguments: finds each `key` and `value`.
        several: the template writes several calls in one answer.
        strings: it wants a call's arguments as JSON text, not as an object.
        absent: it wants no content (None) beside a call.
        end: a special token behind a call, at which the model's turn ends; None where the usual end follows.
    """

    form: Form
    pattern: re.Pattern[str]
    begins: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    argument: re.Pattern[str] | None = None
    several: bool = False
    strings: bool = False
    absent: bool = False
    end: str | None = None

    def read(
        self, text: str, schemas: Mapping[str, Mapping[str, Any]] | None = None
    ) -> tuple[str, list[Call]]:
        """Return what stands before the first call, and the calls.

        Args:
            text: an answer, special tokens included.
            schemas: of each tool's parameters: JSON schemas by the parameter's name, for arguments without quotes.
        """
        if not self.begins and self.form == "object" and not text.lstrip().startswith(("{", "[")):
            return text, []
        found = list(self.pattern.finditer(text))
        if not found:
            return text, []
        calls = [call for match in found for call in self._calls(match, schemas or {})]
        if not self.begins and self.form == "object" and any(call.error for call in calls):
            return text, []  # an answer in JSON is no call unless it says so
        return text[: found[0].start()], calls if self.several else calls[:1]

    def written(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call as this template takes it: `name` and `arguments`, a JSON object."""
        arguments = call["arguments"]
        given = json.dumps(arguments, ensure_ascii=False) if self.strings else arguments
        function = {"name": call["name"], "arguments": given}
        return {"type": "function", "id": str(call.get("id", "")), "function": function}

    def _calls(self, match: re.Match[str], schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[Call]:
        raw, body = match.group(), match.group("body").strip()
        if self.form == "object":
            yield from self._objects(raw, body)
        elif self.form == "python":
            yield from _python(raw, body)
        elif self.form == "marked":
            name = match.group("name")
            yield Call(
                name, json.dumps(self._arguments(body, schemas.get(name, {})), ensure_ascii=False), raw
            )
        else:
            yield Call(match.group("name"), body or "{}", raw, _wrong(body or "{}"))

    def _objects(self, raw: str, body: str) -> Iterator[Call]:
        try:
            value = parsing.json_value(body)
        except EmEvalsError as error:
            yield Call("", body, raw, error.what)
            return
        for one in value if isinstance(value, list) else [value]:
            name = one.get(self.keys[0]) if isinstance(one, dict) else None
            if not isinstance(name, str) or not name:
                yield Call(
                    "", body, raw, f"a call is a JSON object with `{self.keys[0]}` and `{self.keys[1]}`"
                )
                continue
            given = one.get(self.keys[1], {})
            text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            yield Call(name, text, raw, _wrong(text))

    def _arguments(self, body: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        assert self.argument is not None  # noqa: S101 - of marked arguments
        found = {}
        for match in self.argument.finditer(body):
            key, value = match.group("key").strip(), match.group("value")
            kind = (schema.get(key) or {}).get("type")
            found[key] = value if kind == "string" else _value(value)
        return found


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


def _python(raw: str, body: str) -> Iterator[Call]:
    """Read calls as Python writes them: `[name(key=value), …]`, with values that are literals."""
    try:
        tree = ast.parse(body, mode="eval").body
        made = tree.elts if isinstance(tree, ast.List) else [tree]
        for one in made:
            if not isinstance(one, ast.Call) or one.args:
                raise ValueError("a call is a name with named arguments")
            values = {str(word.arg): ast.literal_eval(word.value) for word in one.keywords}
            yield Call(ast.unparse(one.func), json.dumps(values, ensure_ascii=False), raw)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        yield Call("", body, raw, f"this is no list of calls ({error})")


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


def _wrong(arguments: str) -> str:
    """Return why arguments are no JSON object; empty where they are one."""
    try:
        value = parsing.json_value(arguments)
    except EmEvalsError as error:
        return error.what
    return "" if isinstance(value, dict) else "the arguments are no JSON object"


def _value(text: str) -> Any:
    """Return an argument without quotes as what it looks like: JSON, else the text itself."""
    try:
        return parsing.json_value(text)
    except EmEvalsError:
        return text


def names_of(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of tools."""
    return [str(tool["function"]["name"]) for tool in tools]


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the parameters' schemas of tools by the tool's name."""
    functions = [tool["function"] for tool in tools]
    return {one["name"]: (one.get("parameters") or {}).get("properties") or {} for one in functions}
