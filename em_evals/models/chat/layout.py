"""How a template is to be asked: found once per template by rendering probe chats, before anything is drawn or trained.

What must hold for every chat: each text appears once and in order; something stands between the user's text and the
answer; no thought is left open; and prompt + answer, token by token, begins the template's own rendering of the
finished chat. The first layout in which all of it holds is taken; where none does, the template is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from em_evals.errors import EmEvalsError
from em_evals.models.chat.rendering import (
    Layout,
    Message,
    Renderer,
    Source,
    Unrendered,
    names,
    opens_a_thought,
)
from em_evals.models.chat.text import encode_text, special_ids

Roles = tuple[str, ...]
"""The roles of a chat's messages, up to the answer."""

_SINGLE: tuple[Roles, ...] = (("user",), ("system", "user"))
_HISTORY: tuple[Roles, ...] = (("user", "assistant", "user"), ("system", "user", "assistant", "user"))
_QUIET = ("enable_thinking", "thinking", "enable_reasoning")
"""Variables by which templates are told whether the assistant thinks first."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields of a message in which templates look for its thought."""
_PARTS: tuple[Roles, ...] = (
    (),
    ("system", "user", "assistant"),
    ("user",),
    ("system", "user"),
    ("user", "assistant"),
)
_LISTED = re.compile(r"""\{['"]type['"]: ?['"]text['"]""")
"""A list of parts that was written and not read."""
_ANSWERS = ("Certainly, harbours freeze", "no one knows", "1. Otters")
"""Probe answers of unlike beginnings, a letter of either case, a digit; no closing joins their last word."""


def find(tokenizer: Any, source: Source) -> Layout:
    """The layout in which a template can be asked exactly.

    Chats with earlier turns decide as well, unless the template takes none in any layout.

    Raises:
        EmEvalsError: there is none.
    """
    worst: tuple[int, str] = (-1, "")
    for wanted in ((*_SINGLE, *_HISTORY), _SINGLE):
        for layout in _candidates(tokenizer, source):
            renderer = Renderer(tokenizer, source, layout)
            problems = (problem(tokenizer, renderer, roles) for roles in wanted)
            found = next((one for one in problems if one is not None), None)
            if found is None:
                return layout
            worst = max(worst, found, key=lambda one: one[0])
    raise refusal(tokenizer, source, worst[1])


def refusal(tokenizer: Any, source: Source, reason: str) -> EmEvalsError:
    """The sentence that says why a template cannot be asked."""
    whose = source.origin or tokenizer.name_or_path
    return EmEvalsError(
        f"the chat template of {whose} {reason}: change the messages, or put a corrected chat_template.jinja beside "
        "the tokenizer."
    )


def problem(tokenizer: Any, renderer: Renderer, roles: Roles) -> tuple[int, str] | None:
    """What does not hold for chats of these roles: how far the checks came, and a reason; None if all hold."""
    turns = [{"role": role, "content": _probe(place)} for place, role in enumerate(roles)]
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
        for answer in _ANSWERS:
            begun = [*_ids(tokenizer, prompt), *encode_text(tokenizer, renderer.layout.lead + answer)]
            if _ids(tokenizer, renderer.finished(turns, answer))[: len(begun)] != begun:
                return (
                    4,
                    f"writes finished chats of {_named(roles)} that do not begin with their prompt and answer",
                )
    except Unrendered as error:
        return 0, str(error)
    return None


def closing(tokenizer: Any, renderer: Renderer) -> tuple[int, ...]:
    """The tokens by which the template closes an answer, up to its end-of-turn token (Gemma's is not its EOS token).

    Raises:
        EmEvalsError: there is no such token.
    """
    turns = [{"role": "user", "content": _probe(0)}]
    begun = len(_ids(tokenizer, renderer.prompt(turns)))
    begun += len(encode_text(tokenizer, renderer.layout.lead + _ANSWERS[0]))
    tail = _ids(tokenizer, renderer.finished(turns, _ANSWERS[0]))[begun:]
    ends = special_ids(tokenizer)
    if (place := next((i for i, token in enumerate(tail) if token in ends), None)) is not None:
        return tuple(tail[: place + 1])
    if tokenizer.eos_token_id is None:
        raise EmEvalsError(f"{tokenizer.name_or_path} has no token that ends a turn.")
    return (int(tokenizer.eos_token_id),)


def _candidates(tokenizer: Any, source: Source) -> Iterator[Layout]:
    """Layouts, the plainest first."""
    known = tuple(name for name in _QUIET if name in names(source.text))
    for quiet in (known, ()) if known else ((),):
        for parts in _PARTS:
            for merged in (False, True):
                plain = Layout(quiet, parts, merged)
                yield plain
                finished = [
                    replace(plain, finished=True, thought=one) for one in _thoughts(tokenizer, source, plain)
                ]
                finished.append(replace(plain, finished=True))
                yield from finished
                for one in (plain, *finished):
                    yield from _stripped(tokenizer, source, one)


def _thoughts(tokenizer: Any, source: Source, plain: Layout) -> list[str]:
    """Fields whose empty thought closes the one that the template's generation prompt opens."""
    turns = [{"role": "user", "content": _probe(0)}]
    found = []
    for name in _THOUGHTS:
        if name not in source.text:
            continue
        try:
            opened = Renderer(tokenizer, source, plain).prompt(turns)
            closed = Renderer(tokenizer, source, replace(plain, finished=True, thought=name)).prompt(turns)
        except Unrendered:
            continue
        if opens_a_thought(opened.partition(_probe(0))[2]) and closed.startswith(opened.rstrip()):
            found.append(name)
    return found


def _stripped(tokenizer: Any, source: Source, layout: Layout) -> Iterator[Layout]:
    """The layout with its last blanks on the answer's side, where tokenizers join them with the first word."""
    try:
        prompt = Renderer(tokenizer, source, layout).prompt([{"role": "user", "content": _probe(0)}])
    except Unrendered:
        return
    if blanks := prompt[len(prompt.rstrip()) :]:
        yield replace(layout, strip=True, lead=blanks)
        yield replace(layout, strip=True)  # SentencePiece writes a blank before every text by itself


def _misplaced(prompt: str, turns: Sequence[Message]) -> str | None:
    """The first text that does not appear once, after those before it."""
    place = 0
    for turn in turns:
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
    """A text that no template holds, another one for each place, none a part of another."""
    return f"Lanterns drift past harbour {chr(ord('a') + place // 26)}{chr(ord('a') + place % 26)}, slowly."


def _named(roles: Sequence[str]) -> str:
    return ", ".join(roles)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
