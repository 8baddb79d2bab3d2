"""Calls of tools as a template writes them, and how they are read back.

Four forms cover most published templates: a JSON object that holds the name and the arguments (Hermes, Qwen, Llama,
Mistral), a name and then the arguments as JSON (DeepSeek, gpt-oss), a name and then each argument between marks
(Qwen3-Coder and Qwen3.5, GLM, Nemotron), and calls as Python writes them (LFM2). What is read back is what the template
would write, blanks aside. Which form a template has is found in call_formats.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from em_evals import files, parsing
from em_evals.errors import EmEvalsError

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

    def identity(self, place: str) -> str:
        """Return an id, a function of the call and its place: nine letters and digits, as Mistral's templates ask."""
        return files.digest(f"{place}|{self.raw}")[:9]


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
