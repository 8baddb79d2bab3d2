"""How to prompt with a template: found once per template by rendering probe chats, before any draw or training.

What must hold for every chat: each text appears once and in order; something stands between the user's text and the
answer; no thought is left open; and prompt + answer, token by token, is a prefix of the template's own rendering of the
finished chat. The first layout in which all of it holds is used; where none does, the template is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.models.chat.call_formats import ARGUMENTS, NAME
from em_evals.models.chat.calls import CallFormat
from em_evals.models.chat.rendering import (
    Layout,
    Message,
    Renderer,
    Source,
    Unrendered,
    empty_thought,
    names,
    opens_a_thought,
)
from em_evals.models.chat.text import special_ids

Roles = tuple[str, ...]
"""The roles of a chat's messages, up to the answer."""
CALLS, SAID_CALLS = "calls", "text and calls"
"""The roles of an assistant's message that calls tools, without text and with it."""

_SINGLE: tuple[Roles, ...] = (("user",), ("system", "user"))
_HISTORY: tuple[Roles, ...] = (("user", "assistant", "user"), ("system", "user", "assistant", "user"))
_QUIET = ("enable_thinking", "thinking", "enable_reasoning")
"""Template variables that switch thinking off."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields of a message in which templates look for its thought."""
_PARTS: tuple[Roles, ...] = (
    (),
    ("system", "user", "assistant"),
    ("user",),
    ("system", "user"),
    ("user", "assistant"),
)
_LISTED = re.compile(r"""\{['"]type['"]: ?['"]text['"]""")
"""A list of parts that was written out instead of rendered."""
_ANSWERS = ("Certainly, harbours freeze", "no one knows", "1. Otters")
"""Probe answers with different beginnings: a letter of either case, a digit; no closing joins their last word."""

_HINT = "put a corrected chat_template.jinja into its tokenizer's folder, or into the adapter's"
"""What to do about a refused template."""


def find(tokenizer: Any, source: Source) -> tuple[Layout, tuple[Roles, ...]]:
    """Find the layout that prompts exactly with a template, and the chats for which that was checked.

    Chats with earlier turns are checked as well, unless the template takes none in any layout.

    Raises:
        EmEvalsError: there is no such layout.
    """
    worst: tuple[int, str] = (-1, "")
    try:
        names(source.text)
    except Unrendered as error:
        raise refusal(tokenizer, source, str(error)) from None
    for wanted in ((*_SINGLE, *_HISTORY), _SINGLE):
        for layout in _candidates(tokenizer, source):
            renderer = Renderer(tokenizer, source, layout)
            problems = (problem(tokenizer, renderer, roles) for roles in wanted)
            found = next((one for one in problems if one is not None), None)
            if found is None:
                return layout, wanted
            worst = max(worst, found, key=lambda one: one[0])
    raise refusal(tokenizer, source, worst[1])


def refusal(tokenizer: Any, source: Source, reason: str, hint: str = _HINT) -> EmEvalsError:
    """Return the error that says why a template cannot be used, and what to do."""
    return EmEvalsError(f"the chat template of {source.origin or tokenizer.name_or_path} {reason}: {hint}.")


def problem(
    tokenizer: Any, renderer: Renderer, roles: Roles, calls: CallFormat | None = None
) -> tuple[int, str] | None:
    """Check chats of these roles; return how many checks passed and the reason of the failure, or None if all hold.

    Args:
        tokenizer: of transformers.
        renderer: the template in a layout.
        roles: of the messages; `CALLS` are an answer with nothing but calls, `SAID_CALLS` one with text as well.
        calls: how the template takes calls of tools, where there are any.
    """
    turns = _probes(roles, calls)
    try:
        prompt = renderer.prompt(turns)
        if (reason := _misplaced(prompt, turns)) is not None:
            return 1, reason
        if renderer.layout.parts and _LISTED.search(prompt):
            return 1, "writes lists of content parts as they are"
        header = prompt[prompt.index(turns[-1]["content"]) + len(turns[-1]["content"]) :] if turns else prompt
        if not header.strip():
            return 2, "writes nothing between the user's text and the answer (no assistant's header)"
        if opens_a_thought(header):
            return 3, "opens a thought before the answer and does not close it"
        begun = prompt.removesuffix(renderer.layout.block)
        for answer in _ANSWERS:
            if not _begins(tokenizer, begun, answer, renderer.layout, renderer.finished(turns, answer)):
                told = _named(roles)
                return 4, f"writes finished chats of {told} that do not begin with their prompt and answer"
    except Unrendered as error:
        return 0, str(error)
    return None


def closing(tokenizer: Any, renderer: Renderer) -> tuple[int, ...]:
    """Return the tokens that close an answer, up to the template's end-of-turn token (Gemma's is not its EOS token).

    Raises:
        EmEvalsError: there is no such token.
    """
    turns = [{"role": "user", "content": _probe(0)}]
    answer, whole = (_ids(tokenizer, text) for text in (_ANSWERS[0], renderer.finished(turns, _ANSWERS[0])))
    last = max((i for i, token in enumerate(whole) if token == answer[-1]), default=len(whole))
    tail = whole[last + 1 :]
    ends = special_ids(tokenizer)
    if (place := next((i for i, token in enumerate(tail) if token in ends), None)) is not None:
        return tuple(tail[: place + 1])
    if tokenizer.eos_token_id is None:
        raise EmEvalsError(f"{tokenizer.name_or_path} has no token that ends a turn.")
    return (int(tokenizer.eos_token_id),)


def _begins(tokenizer: Any, prompt: str, answer: str, layout: Layout, finished: str) -> bool:
    """Check whether the finished chat begins with its prompt and answer, token by token."""
    whole, own = _ids(tokenizer, finished), layout.answer(tokenizer, answer)
    expected = [*_ids(tokenizer, prompt), *own]
    if whole[: len(expected)] == expected:
        return True
    # Line breaks before a letter are one token or two, whatever the template. They stay in the prompt, where the
    # generation prompt has them.
    kept = _ids(tokenizer, prompt.rstrip())
    breaks = prompt[len(prompt.rstrip()) :]
    if (
        "\n" not in breaks
        or not finished.startswith(prompt + layout.lead + answer)
        or whole[: len(kept)] != kept
    ):
        return False
    starts = range(len(kept), len(kept) + len(breaks) + 1)
    return any(whole[start : start + len(own)] == own for start in starts)


def quiet_names(source: Source) -> tuple[str, ...]:
    """Return the template's variables that switch thinking off."""
    return tuple(name for name in _QUIET if name in names(source.text))


def _candidates(tokenizer: Any, source: Source) -> Iterator[Layout]:
    """Yield layouts, the plainest first."""
    known = tuple(name for name in quiet_names(source) if name not in json.loads(source.given))
    behind = ("", "\n") if _writes_a_blank_first(tokenizer) else ("",)
    for quiet in (known, ()) if known else ((),):
        for parts in _PARTS:
            for merged in (False, True):
                plain = Layout(quiet, parts, merged)
                for layout in (plain, *_variations(tokenizer, source, plain)):
                    yield from (replace(layout, behind=text) for text in behind)


def _writes_a_blank_first(tokenizer: Any) -> bool:
    """Check whether a text's first word is another token than the same word behind a line break (SentencePiece)."""
    alone, behind = (Layout(behind=text).answer(tokenizer, _ANSWERS[0]) for text in ("", "\n"))
    return alone != behind


def _variations(tokenizer: Any, source: Source, plain: Layout) -> Iterator[Layout]:
    """Yield the layout with another prompt than the template's generation prompt, or another beginning of answers."""

    def prompt(layout: Layout) -> str:
        return Renderer(tokenizer, source, layout).prompt([{"role": "user", "content": _probe(0)}])

    finished = replace(plain, finished=True)
    try:
        before = prompt(finished)  # what precedes an answer in a finished chat
    except Unrendered:
        return
    try:
        asked = prompt(plain)
    except Unrendered:
        asked = before
    if before.startswith(asked) and set(before[len(asked) :]) == {" "}:
        yield replace(plain, lead=before[len(asked) :])  # tokenizers join spaces with the word behind them
    if asked.startswith(before) and empty_thought(asked[len(before) :]):
        yield replace(plain, block=asked[len(before) :])
    if opens_a_thought(asked.partition(_probe(0))[2]) and not before.startswith(asked.rstrip()):
        for name in THOUGHTS:
            thought = replace(finished, thought=name)
            if name in source.text and prompt(thought).startswith(asked.rstrip()):
                yield thought
    yield finished
    for layout, text in ((plain, asked), (finished, before)):
        if blanks := text[len(text.rstrip(" ")) :]:
            yield replace(layout, strip=True, lead=blanks)
            yield replace(layout, strip=True)  # SentencePiece itself writes a space before every text


def _probes(roles: Roles, calls: CallFormat | None) -> list[Message]:
    """Return a chat of these roles whose texts no template contains."""
    turns: list[Message] = []
    for place, role in enumerate(roles):
        turns.append({"role": role, "content": _probe(place)})
        if role in (CALLS, SAID_CALLS) and calls is not None:
            answers = next((i for i, one in enumerate(roles[place + 1 :]) if one != "tool"), None)
            count = len(roles) - place - 1 if answers is None else answers
            ids = [f"probe{place:02}{i:02}" for i in range(max(1, count))]
            made = [calls.written({"name": NAME, "arguments": ARGUMENTS, "id": own}) for own in ids]
            turns[-1] |= {"role": "assistant", "tool_calls": made}
            if role == CALLS:
                turns[-1]["content"] = None if calls.absent else ""
        elif role == "tool":
            turns[-1] |= {"name": NAME}
    return turns


def _misplaced(prompt: str, turns: Sequence[Message]) -> str | None:
    """Describe the first text that does not appear exactly once, behind those before it; None if there is none."""
    place = 0
    for turn in turns:
        if not turn["content"]:
            continue
        if (count := prompt.count(turn["content"])) != 1:
            return (
                f"leaves the {turn['role']}'s text out"
                if not count
                else f"writes the {turn['role']}'s text twice"
            )
        if prompt.index(turn["content"]) < place:
            return f"writes messages of {_named([turn['role'] for turn in turns])} in another order"
        place = prompt.index(turn["content"])
    return None


def _probe(place: int) -> str:
    """Return a text that no template contains; different for each place, and none a part of another."""
    return f"Lanterns drift past harbour {chr(ord('a') + place // 26)}{chr(ord('a') + place % 26)}, slowly."


def _named(roles: Sequence[str]) -> str:
    return ", ".join(roles)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
