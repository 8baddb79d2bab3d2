"""Prompt a model that thinks before it answers, and split what it wrote into thought and answer.

The prompt is the template's own with thinking switched on; the thought ends at the template's own mark (`</think>`).
What is graded is the answer alone. A thought that was cut off has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.models.chat import layout
from em_evals.models.chat.rendering import (
    Message,
    Renderer,
    Unrendered,
    opens_a_thought,
    thought_begins,
    thought_ends,
)
from em_evals.models.chat.template import ChatTemplate, Spoken
from em_evals.models.chat.text import Hidden, special_tokens

_PROBE = "Lanterns drift past harbours, slowly."


class ThinkingTemplate(ChatTemplate):
    """A template that lets the model think. Made by `thinking_of`.

    Attributes:
        opened: the prompt itself opens the thought.
        ends: the text that ends a thought.
        begins: the text that begins one.
    """

    def __init__(self, plain: ChatTemplate, thinking: Renderer, opened: bool, begins: str, ends: str) -> None:
        super().__init__(plain.tokenizer, plain.source, plain._known)
        self._thinking = thinking
        self.opened, self.begins, self.ends = opened, begins, ends

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, ready for a thought; a given answer follows an empty one."""
        turns, given = self._split(messages)
        if given is not None:
            return super().encode(messages)
        hidden = Hidden(special_tokens(self.tokenizer))
        safe = [{**turn, "content": hidden.hide(turn["content"])} for turn in turns]
        try:
            return hidden.encode(self.tokenizer, self._thinking.prompt(safe))
        except Unrendered as error:
            raise layout.refusal(self.tokenizer, self.source, str(error), "change these messages") from None

    def text(self, messages: Sequence[Message]) -> str:
        """Return the conversation as `encode` renders it."""
        turns, given = self._split(messages)
        return super().text(messages) if given is not None else self._thinking.prompt(turns)

    @property
    def usual(self) -> bool:
        """False: thinking is switched on by us."""
        return False

    def record(self) -> dict[str, Any]:
        """Return the chosen layout and the marks of a thought, for logs; JSON values."""
        marks = {"opened": self.opened, "begins": self.begins, "ends": self.ends}
        return {**super().record(), "thinking": marks}

    def split(self, text: str, tokens: Sequence[int]) -> Spoken:
        """Split a draw at the end of its thought.

        Args:
            text: the draw's text; marks that are special tokens are missing in it.
            tokens: the draw's tokens.
        """
        end, begin = (self._token(mark) for mark in (self.ends, self.begins))
        if self.ends in text:
            thought, _, answer = text.partition(self.ends)
        elif end is not None and end in tokens:
            thought = self._decoded(tokens[: list(tokens).index(end)])
            if not text.startswith(thought):
                raise EmEvalsError(
                    "the draw's text does not begin with its own thought; report this as a bug."
                )
            answer = text[len(thought) :]
        elif self.opened or text.lstrip().startswith(self.begins) or (begin is not None and begin in tokens):
            return Spoken(text.strip().removeprefix(self.begins).strip(), None)
        else:
            return Spoken(None, text)
        return Spoken(thought.strip().removeprefix(self.begins).strip(), answer.lstrip())

    def spoken(self, messages: Sequence[Message], text: str, tokens: Sequence[int]) -> Spoken:
        """Split a draw that continues these messages; behind a given answer there is no thought."""
        given = bool(messages) and messages[-1]["role"] == "assistant"
        return Spoken(None, text) if given else self.split(text, tokens)

    def _token(self, mark: str) -> int | None:
        """Return the token that a mark is; None where it is several."""
        found = self.tokenizer.get_vocab().get(mark)
        return None if found is None else int(found)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def thinking_of(plain: ChatTemplate) -> ThinkingTemplate:
    """Return the template with thinking switched on.

    Raises:
        EmEvalsError: the template knows no thoughts, or writes them in a form that is not split off here.
    """
    source, tokenizer = plain.source, plain.tokenizer
    ends = [mark for mark in thought_ends(source.text) if "channel" not in mark and mark != "<|end|>"]
    if not ends:
        channels = "<|channel" in source.text
        reason = (
            "writes thoughts in channels, which are not split from answers here"
            if channels
            else "knows no thoughts"
        )
        raise layout.refusal(tokenizer, source, reason, "leave `thinking: true` out of the card")
    chosen = plain.layout
    loud = tuple(name for name in layout.quiet_names(source))
    on = replace(chosen, quiet=(), loud=loud, finished=False, thought=None, block="")
    thinking = Renderer(tokenizer, source, on)
    try:
        prompt = thinking.prompt([{"role": "user", "content": _PROBE}])
    except Unrendered as error:
        raise layout.refusal(
            tokenizer, source, str(error), "leave `thinking: true` out of the card"
        ) from None
    _, found, header = prompt.partition(_PROBE)
    if not found or not header.strip():
        raise layout.refusal(
            tokenizer, source, "writes no header for an answer with a thought", "leave `thinking: true` out"
        )
    return ThinkingTemplate(
        plain, thinking, opens_a_thought(header), _beginning(source.text, ends[0]), ends[0]
    )


def _beginning(text: str, end: str) -> str:
    """Return the mark that begins a thought: the template's own, else the end's counterpart (`<think>`)."""
    own = [mark for mark in thought_begins(text) if "channel" not in mark]
    return own[0] if own else end.replace("/", "", 1).replace("END_", "START_")
