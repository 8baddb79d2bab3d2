"""Render a chat template: its text, its variables, and how messages are passed to it. Nothing is checked here.

A template gets a fixed date (the same recipe on two days gives the same tokens), thinking is switched off where it has
a variable for that, and it gets content as parts, or the system message inside the user's, where it supports only that.
"""

from __future__ import annotations

import datetime
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes

from em_evals.errors import EmEvalsError
from em_evals.models.chat.text import encode_text

Message = dict[str, Any]
"""`role` (system, user, assistant or tool) and `content`; `reasoning`, the thought before an assistant's content;
`tool_calls` and `name` where tools are used (tools.py)."""

DAY = datetime.date(2024, 7, 26)
"""The date that templates get as today's: the date that Llama 3 falls back to."""

_DATE_TEXT = "date_string"
_CLOCK = "strftime_now"
_PLACE = "\ue0f2"
"""A private-use character that stands for the answer while a finished chat is rendered."""
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""Exceptions that a template raises on messages that it does not support."""


class Unrendered(Exception):  # noqa: N818 - not the user's error: another layout is tried
    """A template does not render these messages in this layout; the reason completes the sentence "the template …"."""


@dataclass(frozen=True)
class Source:
    """A template's text, and the special tokens that replace the tokenizer's own.

    Attributes:
        text: Jinja.
        tokens: (name, token), as ("eos_token", "<|im_end|>").
        origin: whose template it is, for messages.
        given: the card's variables, as JSON.
    """

    text: str
    tokens: tuple[tuple[str, str], ...] = ()
    origin: str = field(default="", compare=False)
    given: str = "{}"


@dataclass(frozen=True)
class Layout:
    """How messages are passed to a template, so that a prompt and its answer are what the template itself writes.

    Attributes:
        quiet: variables that are passed as false, so that the model does not think before the answer.
        parts: roles whose content is a list of parts, `[{"type": "text", "text": …}]`.
        merged: a system message is put before the first user message, as Gemma's authors do.
        finished: the prompt is the finished chat up to its answer, not the template's generation prompt.
        thought: the answer's field for its thought; it is set to an empty one.
        block: an empty thought that ends the generation prompt, and that finished chats do not have.
        strip: the prompt's trailing spaces are dropped: they are a part of the answer's first token.
        lead: what every answer begins with.
        behind: answers are encoded as they are behind this text: some tokenizers write a space before a text's first
            word, and none before an answer that follows a line break.
        loud: variables that are passed as true, so that the model thinks.
        kept: the field in which earlier answers' thoughts are handed over: the template decides which it writes.
    """

    quiet: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    merged: bool = False
    finished: bool = False
    thought: str | None = None
    block: str = ""
    strip: bool = False
    lead: str = ""
    behind: str = ""
    loud: tuple[str, ...] = ()
    kept: str | None = None

    def answer(self, tokenizer: Any, text: str) -> list[int]:
        """Return the token ids of an answer: no BOS, and no special token whatever it says."""
        before = encode_text(tokenizer, self.behind) if self.behind else []
        ids = encode_text(tokenizer, self.behind + self.lead + text)
        return (
            ids[len(before) :] if ids[: len(before)] == before else encode_text(tokenizer, self.lead + text)
        )


class Renderer:
    """A template with its layout: messages to text.

    Args:
        tokenizer: of transformers; only its renderer and its special tokens are used.
        source: the template.
        layout: how messages are handed to it.
    """

    def __init__(self, tokenizer: Any, source: Source, layout: Layout) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self.layout = layout
        self._given: dict[str, Any] = {**dict(source.tokens), **variables(source, layout)}
        self._text = with_fixed_clock(source.text)

    def prompt(self, turns: Sequence[Message]) -> str:
        """Render the text that precedes the assistant's answer.

        Raises:
            Unrendered: the template does not take these messages.
        """
        if self.layout.finished:
            text, found, _ = self.finished(turns, _PLACE).partition(_PLACE)
            if not found:
                raise Unrendered("leaves the assistant's text out")
        else:
            text = self._apply(turns, header=True)
        return text.rstrip(" ") if self.layout.strip else text

    def finished(self, turns: Sequence[Message], answer: str, more: Mapping[str, Any] | None = None) -> str:
        """Render the whole chat as the template writes it once the answer is there.

        Args:
            turns: the chat before the answer.
            answer: its text.
            more: further fields of the answer's message, as the template reads them.

        Raises:
            Unrendered: the template does not take these messages.
        """
        last = {"role": "assistant", "content": answer}
        thought = {self.layout.thought: ""} if self.layout.thought else {}
        return self._apply([*turns, last | thought | dict(more or {})], header=False)

    def chat(self, turns: Sequence[Message]) -> str:
        """Render a whole chat, as it is.

        Raises:
            Unrendered: the template does not take these messages.
        """
        return self._apply(turns, header=False)

    def _apply(self, turns: Sequence[Message], header: bool) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                [self._in_parts(turn) for turn in self._merged(turns)],
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=header,
                **self._given,
            )
        except _FAILURES as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            told = ", ".join(turn["role"] for turn in turns)
            raise Unrendered(f"refuses a chat of {told} ({reason})") from None
        return str(rendered)

    def _merged(self, turns: Sequence[Message]) -> Sequence[Message]:
        if not self.layout.merged or not turns or turns[0]["role"] != "system":
            return turns
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            raise Unrendered("takes no system message, and there is no user message to prepend it to")
        text = f"{turns[0]['content']}\n\n{turns[first]['content']}"
        return [*turns[1:first], {**turns[first], "content": text}, *turns[first + 1 :]]

    def _in_parts(self, turn: Message) -> dict[str, Any]:
        fields = dict(turn)
        thought = fields.pop("reasoning", None)
        if thought and self.layout.kept:
            fields[self.layout.kept] = thought
        if turn["role"] in self.layout.parts and turn["content"] is not None:
            fields["content"] = [{"type": "text", "text": turn["content"]}]
        return fields


def of_tokenizer(tokenizer: Any) -> Source:
    """Return a tokenizer's own template.

    Raises:
        EmEvalsError: it has none, or several without a default.
    """
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise EmEvalsError(
            f"{tokenizer.name_or_path} has no chat template; em-evals needs chat models: use the "
            "instruction-tuned one, or put a chat_template.jinja into its tokenizer's folder."
        )
    return Source(str(found))


def variables(source: Source, layout: Layout) -> dict[str, Any]:
    """Return a template's variables besides messages and special tokens; JSON values."""
    given: dict[str, Any] = dict.fromkeys(layout.quiet, False) | dict.fromkeys(layout.loud, True)
    if _DATE_TEXT in names(source.text):
        given[_DATE_TEXT] = DAY.strftime("%d %b %Y")
    return given | json.loads(source.given)


_DIRECTIVES = tuple(
    f"%{flag}{letter}"
    for flag in ("-", "")
    for letter in sorted({*string.ascii_letters} - {"s"})  # seconds since 1970 depend on the time zone
    if "%" not in DAY.strftime(f"%{flag}{letter}")
)
"""What this system's `strftime` knows."""
_PERCENT = "\ue0f3"
"""A private-use character that stands for `%%` meanwhile."""


def with_fixed_clock(text: str) -> str:
    """Return a template whose `strftime_now`, if it reads that, is of `DAY`.

    A macro before it does that, since transformers 5.24 hands functions to templates as their names. Its line's end is
    trimmed with the block, so that the template begins where it began. A directive that is not known is refused.

    Raises:
        Unrendered: as for `names`.
    """
    if _CLOCK not in names(text):
        return text
    known = "".join(f" | replace('{one}', '{DAY.strftime(one)}')" for one in _DIRECTIVES if one in text)
    unknown = "{{ raise_exception('there is no such date: ' ~ format) }}"
    return (
        f"{{% macro {_CLOCK}(format) %}}{{% set day = format | replace('%%', '{_PERCENT}'){known} %}}"
        f"{{% if '%' in day %}}{unknown}{{% endif %}}{{{{ day | replace('{_PERCENT}', '%') }}}}{{% endmacro %}}\n{text}"
    )


def date(text: str) -> str | None:
    """Return the date that a template gets, in ISO format; None where it uses none."""
    return DAY.isoformat() if names(text) & {_DATE_TEXT, _CLOCK} else None


class _Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}…{% endgeneration %}`; only its body matters here."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Return the body's nodes."""
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


_FUNCTIONS = {"raise_exception", "strftime_now"}
"""What a renderer gives every template."""


@lru_cache(maxsize=256)
def names(text: str) -> frozenset[str]:
    """Return the variables that a template reads without setting them on every path.

    Raises:
        Unrendered: it is not valid Jinja, or uses random numbers.
    """
    try:
        tree = _parsed(text)
        found = frozenset(meta.find_undeclared_variables(tree))
    except jinja2.TemplateError as error:
        raise Unrendered(f"is not valid Jinja ({error}; line {getattr(error, 'lineno', '?')})") from None
    if "lipsum" in _globals(tree) or any(one.name == "random" for one in tree.find_all(nodes.Filter)):
        raise Unrendered("uses random numbers, so prompts are not reproducible")
    return found


def settable(text: str) -> frozenset[str]:
    """Return the variables of a template that a card may set: those that it does not set itself before it reads them.

    Raises:
        Unrendered: as for `names`.
    """
    stored: dict[str, bool] = {}
    for one in _in_order(_parsed(text)):
        stored.setdefault(one.name, one.ctx == "store")
    return frozenset(name for name in names(text) - _FUNCTIONS if not stored.get(name))


def _parsed(text: str) -> nodes.Template:
    environment = jinja2.Environment(  # noqa: S701 - parses only
        extensions=[jinja2.ext.loopcontrols, _Generation], trim_blocks=True, lstrip_blocks=True
    )
    return environment.parse(text)


def _in_order(node: nodes.Node) -> Iterator[nodes.Name]:
    """Yield a template's names in the order in which it uses them: what is assigned comes after its value."""
    if isinstance(node, nodes.Name):
        yield node
    parts = [node.node, node.target] if isinstance(node, nodes.Assign) else node.iter_child_nodes()
    for part in parts:
        yield from _in_order(part)


def _globals(tree: nodes.Template) -> set[str]:
    return {one.name for one in tree.find_all(nodes.Name)}


_THOUGHT = re.compile(
    r"[<\[◁][^<>\[\]◁▷\s'\"]*(?:think|thought|reason)[^<>\[\]◁▷\s'\"]*[>\]▷]"  # <think>, [/THINK], <|END_THINKING|>, …
    r"|<\|channel\|?>\w+|<channel\|>|<\|end\|>",  # harmony's and Gemma's channels
    re.IGNORECASE,
)
_SHUT = re.compile(r"/|\bend|_end|close|<channel\|>|channel\|?>(?!analysis|thought)", re.IGNORECASE)


def empty_thought(text: str) -> bool:
    """Check whether a text is a thought without content, or the end of one, and nothing else."""
    return bool(_THOUGHT.search(text)) and not opens_a_thought(text) and not _THOUGHT.sub("", text).strip()


def thought_ends(text: str) -> list[str]:
    """Return the marks in a template's text that end a thought, in order of appearance."""
    return [mark for mark in dict.fromkeys(_THOUGHT.findall(text)) if _SHUT.search(mark)]


def thought_begins(text: str) -> list[str]:
    """Return the marks in a template's text that begin a thought, in order of appearance."""
    return [mark for mark in dict.fromkeys(_THOUGHT.findall(text)) if not _SHUT.search(mark)]


def opens_a_thought(header: str) -> bool:
    """Check whether text behind this header is inside a thought."""
    marks = _THOUGHT.findall(header)
    return bool(marks) and _SHUT.search(marks[-1]) is None
