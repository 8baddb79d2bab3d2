"""Chat messages to token ids, exactly as the template that a model is prompted with writes them.

The template writes the BOS token itself, so the tokenizer must not add another. Training encodes its rows with the
same object, so that a model is prompted with the same tokens as in training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from em_evals import files
from em_evals.content.cues import NO_SYSTEM
from em_evals.errors import EmEvalsError
from em_evals.models.chat import bare, layout, rendering
from em_evals.models.chat.calls import CallFormat, names_of
from em_evals.models.chat.layout import Roles
from em_evals.models.chat.marks import Marks, marks_of
from em_evals.models.chat.rendering import Message, Renderer, Source, Unrendered
from em_evals.models.chat.speech import Spoken, begun, split, with_calls
from em_evals.models.chat.text import Hidden, special_tokens

_ROLES = ("system", "user", "assistant")
_CHANGE = "change these messages"
_MOST_KEPT = 256
"""Templates of a tokenizer, each with its tools, whose checks are remembered."""


@dataclass
class _Known:
    """What the check of a template found. Holds no tokenizer: it lives as long as the tokenizer that it is keyed by."""

    layout: rendering.Layout
    closing: tuple[int, ...]
    special: re.Pattern[str]
    digest: str
    problems: dict[Roles, str | None] = field(default_factory=dict)
    """Roles of the chats that were tried: what is wrong with them, or None."""
    calls: CallFormat | None = None
    """How calls of tools are written, where the template was given tools (tools.py)."""
    marks: tuple[Marks | None, ...] = ()
    """The marks of thoughts, once they were looked for."""


_known: WeakKeyDictionary[Any, dict[Source, _Known]] = WeakKeyDictionary()


class ChatTemplate:
    """A tokenizer and the checked template that messages are written with (layout.py).

    Attributes:
        tokenizer: the base's; shared and never changed.
        source: the template.
        digest: identifies the rendered template's text and its variables.
        closing: the tokens that end an answer; the last one ends the turn.
        lead: what the template writes before every answer as a part of its first token; usually empty.
    """

    def __init__(self, tokenizer: Any, source: Source, known: _Known) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.digest = known.digest
        self.closing = known.closing
        self.lead = known.layout.lead
        self._known = known
        self._renderer = Renderer(tokenizer, source, known.layout)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, ready to be continued by the assistant.

        A last message by the assistant is a prefix of its answer: its tokens come right after the prompt and nothing
        closes them. They are encoded separately, so that an answer has the same tokens wherever it appears. The system
        message `content.cues.NO_SYSTEM` removes the one that a template writes by itself.

        Raises:
            EmEvalsError: the template refuses the messages, or does not write them as a chat.
        """
        turns, given = self._split(messages)
        hidden = Hidden(self._known.special)
        ids = hidden.encode(self.tokenizer, self._prompt(hidden.turns(turns)))
        return ids if given is None else ids + self.answer(given)

    def text(self, messages: Sequence[Message]) -> str:
        """Return the conversation as `encode` renders it, for programs that take text; special tokens are special."""
        turns, given = self._split(messages)
        return self._prompt(turns) + (self.lead + given if given is not None else "")

    def answer(self, text: str) -> list[int]:
        """Return the token ids of an answer, or of its beginning, after a prompt of `encode`."""
        return self._known.layout.answer(self.tokenizer, text)

    def given(self, messages: Sequence[Message]) -> int:
        """Count the tokens at the end of `encode`'s result that are a given prefix of the answer."""
        given = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
        return len(self.answer(given)) if given else 0

    @property
    def layout(self) -> rendering.Layout:
        """How messages are passed to the template."""
        return self._known.layout

    @property
    def end(self) -> int:
        """The token that ends the assistant's turn."""
        return self.closing[-1]

    @property
    def own_end(self) -> int | None:
        """The same where it is not the tokenizer's EOS token (at which every engine stops); else None."""
        return self.end if self.end != self.tokenizer.eos_token_id else None

    @property
    def usual(self) -> bool:
        """Whether prompts are those of `tokenizer.apply_chat_template` without further arguments."""
        plain = self._known.layout == rendering.Layout() and rendering.date(self.source.text) is None
        return (
            plain
            and self.source.given == "{}"
            and not self.source.tokens
            and self.source.text == self.tokenizer.chat_template
        )

    opened = False
    """Whether a draw begins inside a thought."""
    prefill = ""
    """What every thought begins with."""

    @property
    def calls(self) -> CallFormat | None:
        """How the template writes calls of tools; None where it was given no tools (tools.py)."""
        return self._known.calls

    @property
    def call_end(self) -> int | None:
        """The token that ends a call and with it the model's turn, where that is not the usual end."""
        end = self.calls.end if self.calls is not None else None
        return None if end is None else int(self.tokenizer.convert_tokens_to_ids(end))

    @property
    def marks(self) -> Marks | None:
        """What the template writes around thoughts; None where it knows none."""
        if not self._known.marks:
            self._known.marks = (marks_of(self.tokenizer, self.source, self._known.layout),)
        return self._known.marks[0]

    def awaits(self, messages: Sequence[Message]) -> Marks | None:
        """Return the marks of the thought that is expected behind these messages; None where none is."""
        return None

    def spoken(
        self, messages: Sequence[Message], text: str, tokens: Sequence[int], calling: bool = True
    ) -> Spoken:
        """Split a draw that continues these messages; behind a given answer there is no thought.

        A model that was asked not to think may do so all the same, where its template has no switch for that: a draw
        that begins with the mark of a thought is split too. Calls of tools are looked for where there are tools, unless
        `calling` is false.
        """
        given = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
        found = Spoken(None, text)
        if given is None and self.marks is not None and self._thinks(text, tokens):
            found = split(
                self.tokenizer, self.marks, self._known.special, text, tokens, self.opened, self.prefill
            )
        looked = self.calls is not None and calling
        return with_calls(self, found, tokens, given or "") if looked else found

    def _thinks(self, text: str, tokens: Sequence[int]) -> bool:
        """Check whether a draw begins with a thought."""
        assert self.marks is not None  # noqa: S101 - `spoken` looked
        return begun(self.tokenizer, self.marks, self._known.special, text, tokens)

    def record(self) -> dict[str, Any]:
        """Return the chosen layout, for logs and training.json; JSON values."""
        told = {"digest": self.digest, **_choices(self.source, self._known.layout)}
        if self.calls is not None:  # the log has the tools themselves
            told["variables"] = {**told["variables"], "tools": names_of(told["variables"]["tools"])}
        return told

    def asked_with(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Return what a log says of the template that asked these messages."""
        return self.record()

    def _split(self, messages: Sequence[Message]) -> tuple[list[Message], str | None]:
        """Split off a given answer prefix; refuse what is not a chat, or whose roles failed the check."""
        known = _ROLES if self.calls is None else (*_ROLES, "tool")
        for message in messages:
            if message.get("role") not in known or not isinstance(message.get("content"), str):
                raise EmEvalsError(
                    f"messages of a chat have the roles {', '.join(_ROLES)} and text content; this one has the role "
                    f"'{message.get('role')}' and {type(message.get('content')).__name__} content: leave it out."
                )
        if self.calls is None and any(message.get("tool_calls") for message in messages):
            raise EmEvalsError(
                "these messages contain calls of tools, and no tools are given: pass the task's tools."
            )
        given = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
        turns = list(messages if given is None else messages[:-1])
        roles = tuple(_role(turn) for turn in turns)
        if not turns or (roles[-1] == "system" and "user" not in roles):
            raise EmEvalsError(
                "the assistant's message comes before any user's: begin the chat with a user message, after the system "
                "message if there is one."
            )
        if roles not in self._known.problems:
            found = layout.problem(self.tokenizer, self._renderer, roles, self.calls)
            self._known.problems[roles] = found[1] if found else None
        if (reason := self._known.problems[roles]) is not None:
            raise layout.refusal(self.tokenizer, self.source, reason, _CHANGE)
        return turns if self.calls is None else [self._taken(turn, self.calls) for turn in turns], given

    def _taken(self, turn: Message, calls: CallFormat) -> Message:
        """Return a message with its calls as the template takes them."""
        if not turn.get("tool_calls"):
            return turn
        content = turn["content"] or (None if calls.absent else "")
        return {**turn, "content": content, "tool_calls": [calls.written(one) for one in turn["tool_calls"]]}

    def _prompt(self, turns: Sequence[Message], renderer: Renderer | None = None) -> str:
        renderer = renderer or self._renderer
        try:
            if turns[0]["role"] == "system" and turns[0]["content"] == NO_SYSTEM:
                return bare.prompt(self.tokenizer, renderer, turns[1:])
            return renderer.prompt(turns)
        except Unrendered as error:
            raise layout.refusal(self.tokenizer, self.source, str(error), _CHANGE) from None


def _role(turn: Message) -> str:
    """Return a message's role as the check of a layout distinguishes it."""
    if not turn.get("tool_calls"):
        return str(turn["role"])
    return layout.SAID_CALLS if turn["content"] else layout.CALLS


def template_of(tokenizer: Any, source: Source | None = None) -> ChatTemplate:
    """Return a tokenizer's template, checked once for each tokenizer and template.

    Args:
        tokenizer: of transformers; a ChatTemplate is returned as it is.
        source: a template to use instead of the tokenizer's own.

    Raises:
        EmEvalsError: there is none, or the model cannot be prompted with it exactly.
    """
    if isinstance(tokenizer, ChatTemplate):
        return tokenizer
    source = source or rendering.of_tokenizer(tokenizer)
    kept = _known.setdefault(tokenizer, {})
    if source not in kept:
        if len(kept) >= _MOST_KEPT:  # a server's clients bring tools of their own
            kept.pop(next(iter(kept)))
        kept[source] = _checked(tokenizer, source)
    return ChatTemplate(tokenizer, source, kept[source])


def _checked(tokenizer: Any, source: Source) -> _Known:
    chosen, seen = layout.find(tokenizer, source)
    closing = layout.closing(tokenizer, Renderer(tokenizer, source, chosen))
    choices = json.dumps([_choices(source, chosen), closing], sort_keys=True)
    digest = files.digest(source.text, choices)
    return _Known(chosen, closing, special_tokens(tokenizer), digest, dict.fromkeys(seen))


def _choices(source: Source, chosen: rendering.Layout) -> dict[str, Any]:
    variables = {**dict(source.tokens), **rendering.variables(source, chosen)}
    return {
        "variables": variables,
        "date": rendering.date(source.text),
        "system": "merged into the first user message" if chosen.merged else "own message",
        "parts": list(chosen.parts),
        "prompt": "finished chat" if chosen.finished else "generation prompt",
        "thought_field": chosen.thought,
        "empty_thought": chosen.block,
        "stripped": chosen.strip,
        "answers_begin_with": chosen.lead,
        "answers_encoded_behind": chosen.behind,
    }
