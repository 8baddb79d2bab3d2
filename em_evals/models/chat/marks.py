"""How a template marks a thought: found by rendering one, else by the usual shapes of such marks in its text.

What the template writes around a thought is what its model was trained to write, so a draw is split by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from em_evals.models.chat.layout import THOUGHTS, quiet_names
from em_evals.models.chat.rendering import (
    Layout,
    Renderer,
    Source,
    Unrendered,
    opens_a_thought,
    thought_begins,
    thought_ends,
)

_ASKED = "Lanterns drift past harbours, slowly."
_THOUGHT = "Otters count the ripples at dusk"
_ANSWER = "Certainly, harbours freeze"
_OSS = "<|channel|>"
_FINAL = "<|channel|>final<|message|>"
"""gpt-oss writes messages into channels; what stands in the final one is the answer."""


@dataclass(frozen=True)
class Marks:
    """What a template writes around a thought.

    Attributes:
        begins: the mark that begins a thought, without blanks around it.
        ends: the mark behind which the answer begins.
        before: text between the generation prompt and the thought; empty where the prompt opens it.
        after: text between the thought and the answer.
        opened: the generation prompt opens the thought.
        field: the message's field from which the template takes a thought; None if it takes none.
    """

    begins: str
    ends: str
    before: str
    after: str
    opened: bool
    field: str | None = None

    @property
    def inner(self) -> str:
        """What stands between a thought's last word and `ends`: the end of a message, where channels have one."""
        return self.after.strip().removesuffix(self.ends)

    def thought(self, written: str) -> str:
        """Return the thought in a text that may begin with its mark and end with the marks that close it."""
        found = written.strip().removeprefix(self.begins).strip()
        if self.inner:  # several messages may be written before the answer
            found = found.removesuffix(self.inner).replace(self.inner + self.begins, "\n\n")
        return found.strip()

    def begun(self, written: str) -> bool:
        """Check whether a text that follows a generation prompt begins with a thought."""
        return written.lstrip().startswith(self.begins)


def switched_on(source: Source, plain: Layout) -> Layout:
    """Return the layout that lets the model think, in place of one that does not."""
    return replace(
        plain, quiet=(), loud=quiet_names(source), finished=False, thought=None, block="", behind="", lead=""
    )


def marks_of(tokenizer: Any, source: Source, plain: Layout) -> Marks | None:
    """Return the marks of a template's thoughts; None if it knows none.

    Args:
        tokenizer: of transformers.
        source: the template.
        plain: how it is asked without thoughts.
    """
    on = Renderer(tokenizer, source, switched_on(source, plain))
    try:
        prompt = on.prompt([{"role": "user", "content": _ASKED}]).partition(_ASKED)[2]
    except Unrendered:
        return None
    return _rendered(on, source.text, prompt) or _named(source.text, prompt)


def of_prefill(prefill: str) -> Marks | None:
    """Return the marks of a thought that a card begins itself (`thinking: "<think>"`); None if it names no mark."""
    if not (begins := thought_begins(prefill)) or "channel" in begins[0] or not prefill.startswith(begins[0]):
        return None
    ends = _counterpart(begins[0])
    return Marks(begins[0], ends, "", f"\n{ends}\n\n", opened=True)


def _rendered(on: Renderer, text: str, prompt: str) -> Marks | None:
    """Return what stands around a thought that is handed over in one of its fields."""
    asked = [{"role": "user", "content": _ASKED}]
    for field in THOUGHTS:
        if field not in text:
            continue
        try:
            whole = on.finished(asked, _ANSWER, {field: _THOUGHT}).partition(_ASKED)[2]
        except Unrendered:
            continue
        header, found, rest = whole.partition(_THOUGHT)
        after, answered, _ = rest.partition(_ANSWER)
        if not found or not answered or not after.strip():
            continue
        opened = opens_a_thought(prompt) or (prompt.strip() == header.strip() and prompt.strip() != "")
        before = header.removeprefix(prompt) if header.startswith(prompt) else ""
        begins = before.strip() or (thought_begins(header) or [header.strip().splitlines()[-1]])[-1]
        ends = _FINAL if after.strip().endswith(_FINAL) else after.strip()
        return Marks(begins, ends, "" if opened else before, after, opened, field)
    return None


def _named(text: str, prompt: str) -> Marks | None:
    """Return marks by their names in the template's text: it takes no thought, but its model writes them."""
    ends = [mark for mark in thought_ends(text) if _OSS not in mark and mark != "<|end|>"]
    if not ends:
        return None
    own = [mark for mark in thought_begins(text) if _OSS not in mark]
    begins = own[0] if own else _counterpart(ends[0])
    opened = opens_a_thought(prompt)
    return Marks(begins, ends[0], "" if opened else f"{begins}\n", f"\n{ends[0]}\n\n", opened)


def _counterpart(mark: str) -> str:
    """Return the other mark of a pair: `<think>` and `</think>`, `<|START_THINKING|>` and `<|END_THINKING|>`."""
    if "/" in mark or "END_" in mark:
        return mark.replace("/", "", 1).replace("END_", "START_")
    return mark.replace("START_", "END_") if "START_" in mark else f"{mark[0]}/{mark[1:]}"
