"""Prompt a model that thinks before it answers, and split what it wrote into thought and answer.

The prompt is the template's own with thinking switched on; the thought ends at the template's own mark (`</think>`,
or the head of gpt-oss's final channel). What is graded is the answer alone. A thought that was cut off has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.models.chat import layout
from em_evals.models.chat.marks import Marks, of_prefill, switched_on
from em_evals.models.chat.rendering import Message, Renderer, Unrendered
from em_evals.models.chat.template import ChatTemplate
from em_evals.models.chat.text import Hidden

_WITHOUT = "leave `thinking: on` out of the card"


@dataclass(frozen=True)
class Spans:
    """The token ids of an answer with its thought: they follow each other in this order.

    Attributes:
        prompt: the chat, ready for a thought.
        thought: the thought with the marks around it.
        answer: the answer, without the end of its turn.
    """

    prompt: list[int]
    thought: list[int]
    answer: list[int]


class ThinkingTemplate(ChatTemplate):
    """A template that lets the model think. Made by `thinking_of`.

    Args:
        plain: the same template without thoughts.
        on: renders it with thinking switched on.
        found: the marks of its thoughts.
        prefill: what every thought begins with.
    """

    def __init__(self, plain: ChatTemplate, on: Renderer, found: Marks, prefill: str = "") -> None:
        super().__init__(plain.tokenizer, plain.source, plain._known)
        self._on, self._marks, self.prefill = on, found, prefill
        # After a prefill, and behind a prompt that opens it, a draw begins inside the thought.
        self.opened = found.opened or bool(prefill)

    @property
    def marks(self) -> Marks:
        """What the template writes around thoughts."""
        return self._marks

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, ready for a thought.

        A last message by the assistant follows its own thought (`reasoning`), or an empty one where it has none.
        """
        turns, given = self._split(messages)
        if given is not None:
            if (thought := messages[-1].get("reasoning")) is None:
                return super().encode(messages)
            spans = self.spans(turns, thought, given)
            return spans.prompt + spans.thought + spans.answer
        if not self.prefill:
            return self._ids(turns)
        return self._ids(turns, self.marks.before) + self.answer(self.prefill)

    def spans(self, turns: Sequence[Message], thought: str, answer: str) -> Spans:
        """Return an answer with its thought as the template writes them behind a chat, in token ids.

        Raises:
            EmEvalsError: the template refuses the messages.
        """
        self._split([*turns, {"role": "assistant", "content": answer}])
        hidden = Hidden(self._known.special)
        around = self.marks.before + hidden.hide(thought.strip()) + self.marks.after
        return Spans(self._ids(turns), hidden.encode(self.tokenizer, around), self.answer(answer))

    def given(self, messages: Sequence[Message]) -> int:
        """Count the tokens at the end of `encode`'s result that are given: of an answer, or of a thought's prefill."""
        if messages and messages[-1]["role"] == "assistant":
            return super().given(messages)
        return len(self.answer(self.prefill)) if self.prefill else 0

    def text(self, messages: Sequence[Message]) -> str:
        """Return the conversation as `encode` renders it."""
        turns, given = self._split(messages)
        if given is None:
            before = self.marks.before if self.prefill else ""
            return self._thinking(turns) + before + self.prefill
        if (thought := messages[-1].get("reasoning")) is None:
            return super().text(messages)
        return self._thinking(turns) + self.marks.before + thought.strip() + self.marks.after + given

    @property
    def usual(self) -> bool:
        """False: thinking is switched on by us."""
        return False

    def record(self) -> dict[str, Any]:
        """Return the chosen layout and the marks of a thought, for logs; JSON values."""
        told = {"opened": self.marks.opened, "begins": self.marks.begins, "ends": self.marks.ends}
        more = {"prefill": self.prefill} if self.prefill else {}
        return {**super().record(), "thinking": {**told, "field": self.marks.field, **more}}

    def asked_with(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Return `record`, and that a given answer follows an empty thought."""
        given = bool(messages) and messages[-1]["role"] == "assistant"
        empty = given and messages[-1].get("reasoning") is None
        return {**self.record(), "thought": "empty"} if empty else self.record()

    def awaits(self, messages: Sequence[Message]) -> Marks | None:
        """Return the marks of the thought that is expected behind these messages; None behind a given answer."""
        return None if messages and messages[-1]["role"] == "assistant" else self.marks

    def _thinks(self, text: str, tokens: Sequence[int]) -> bool:
        """Return True: also a thought that the model did not begin with its mark is ended by one."""
        return True

    def _ids(self, turns: Sequence[Message], behind: str = "") -> list[int]:
        """Return the ids of a chat, ready for a thought, and of text that the template writes behind it."""
        hidden = Hidden(self._known.special)
        return hidden.encode(self.tokenizer, self._thinking(hidden.turns(turns)) + behind)

    def _thinking(self, turns: Sequence[Message]) -> str:
        """Render a chat with thinking switched on."""
        return self._prompt(turns, self._on)


def thinking_of(plain: ChatTemplate, prefill: str = "", hint: str = _WITHOUT) -> ThinkingTemplate:
    """Return the template with thinking switched on.

    Args:
        plain: the template.
        prefill: text that each thought begins with. A template that knows no thoughts takes its marks from it: one that
            begins with `<think>` is closed by `</think>`.
        hint: what to do where the template is refused.

    Raises:
        EmEvalsError: the template knows no thoughts, or writes no header before them.
    """
    source, tokenizer = plain.source, plain.tokenizer
    on = switched_on(source, plain.layout)
    try:
        header = Renderer(tokenizer, source, on).prompt([{"role": "user", "content": "Otters."}])
    except Unrendered as error:
        raise layout.refusal(tokenizer, source, str(error), hint) from None
    if not header.partition("Otters.")[2].strip():
        raise layout.refusal(tokenizer, source, "writes no header for an answer with a thought", hint)
    if (found := plain.marks or of_prefill(prefill)) is None:
        if hint == _WITHOUT:
            hint = f'{hint}, or begin the thought yourself (`thinking: "<think>"`)'
        raise layout.refusal(tokenizer, source, "knows no thoughts", hint)
    if (mark := found.ends.strip()) and mark in prefill:
        raise EmEvalsError(
            f"`thinking:` begins each thought with a text that holds the mark of its end ({mark}): leave the mark out."
        )
    return ThinkingTemplate(plain, Renderer(tokenizer, source, replace(on, kept=found.field)), found, prefill)
