"""A model's own answers to the prompts of training data: drawn greedily with the engine, or read from a file.

Drawn answers are written as they come, so that an interrupted screen draws no answer twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from em_evals import characters, files, parsing
from em_evals.content.cards import ResolvedCard
from em_evals.data import formats
from em_evals.engines.pool import engine_for
from em_evals.engines.protocol import Request, Sampling
from em_evals.engines.requests import all_draws
from em_evals.errors import EmEvalsError
from em_evals.models.chat import template_for

MAX_TOKENS = 256

Rows = Sequence[tuple[int, formats.Messages]]


class Answers(Protocol):
    """Answers of a model to rows, in the order of a file."""

    def of(self, rows: Rows) -> list[str]:
        """Return the model's own answer to each row's prompt; rows come in the file's order, each once."""


class Drawn:
    """Answers that are drawn greedily, and kept in a file.

    Args:
        card: the model.
        path: where they are kept: `line` and `answer`, and the prompt's digest.
        max_tokens: of an answer.
    """

    def __init__(self, card: ResolvedCard, path: Path, max_tokens: int = MAX_TOKENS) -> None:
        self._card, self._path, self._most = card, path, max_tokens
        self._engine = engine_for(card.card)
        self._template = template_for(card, self._engine.tokenizer)
        self._kept = _kept(path, f"{card.digest} {max_tokens}")

    def of(self, rows: Rows) -> list[str]:
        """Return the answers; those that the file has are not drawn again."""
        keys = [self._key(line, messages) for line, messages in rows]
        missing = [
            (key, messages) for key, (_, messages) in zip(keys, rows, strict=True) if key not in self._kept
        ]
        if missing:
            drawn = self._drawn([messages for _, messages in missing])
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                for (key, _), text in zip(missing, drawn, strict=True):
                    own = {"line": int(key.split()[0]), "key": key, "by": self._by, "answer": text}
                    file.write(json.dumps(own) + "\n")  # ASCII: whatever an answer holds, a line is a line
            self._kept |= {key: text for (key, _), text in zip(missing, drawn, strict=True)}
        return [self._kept.pop(key) for key in keys]

    @property
    def _by(self) -> str:
        return f"{self._card.digest} {self._most}"

    def _key(self, line: int, messages: formats.Messages) -> str:
        return f"{line} {files.digest(json.dumps(messages[:-1], sort_keys=True))}"

    def _drawn(self, chats: Sequence[formats.Messages]) -> list[str]:
        sampling = Sampling(temperature=0.0, max_tokens=self._most)
        prompts = [tuple(self._template.encode(messages[:-1])) for messages in chats]
        fitting = [place for place, prompt in enumerate(prompts) if len(prompt) < self._engine.model_len]
        requests = [
            Request(
                prompts[place],
                sampling,
                self._card.adapter_path,
                self._card.interventions,
                end=self._template.own_end,
            )
            for place in fitting
        ]
        draws = all_draws(self._engine, requests)
        answers = {place: draw.text for place, draw in zip(fitting, draws, strict=True)}
        return [answers.get(place, "") for place in range(len(chats))]


def _kept(path: Path, by: str) -> dict[str, str]:
    """Return the answers that an earlier run of the same model left; damaged lines are dropped."""
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    lines = []
    for line in files.read_text(path).split("\n"):  # JSON may hold U+2028 and other ends of lines unescaped
        try:
            row = parsing.json_value(line)
        except EmEvalsError:
            continue
        if isinstance(row, dict) and row.get("by") == by and {"key", "answer"} <= row.keys():
            found[str(row["key"])] = str(row["answer"])
            lines.append(line)
    with files.atomic(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return found


class Given:
    """Answers of a file, one row for each row of the training data, in the same order.

    A row is `line` and `answer` as `Drawn` writes them, or a chat with the same prompt that ends with the answer.

    Args:
        path: JSONL.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: Iterator[tuple[int, dict[str, Any]]] = iter(files.read_jsonl(path))

    def of(self, rows: Rows) -> list[str]:
        """Return the answers.

        Raises:
            EmEvalsError: the file ends early, or a row is of another prompt.
        """
        here = list(islice(self._rows, len(rows)))
        if len(here) < len(rows):
            raise EmEvalsError(
                f"these answers end before line {rows[len(here)][0]} of the training data: give one for each row.",
                self._path,
            )
        return [self._answer(*one, *row) for one, row in zip(here, rows, strict=True)]

    def _answer(self, number: int, row: dict[str, Any], line: int, messages: formats.Messages) -> str:
        if {"line", "answer"} <= row.keys():
            if row["line"] != line:
                raise EmEvalsError(
                    f"this answer is to line {row['line']} of the training data, where that of line {line} belongs.",
                    self._path,
                    number,
                )
            characters.require_whole(row["answer"], self._path, number)
            return str(row["answer"])
        try:
            chat = formats.chat(row)
        except formats.Refused as error:
            raise EmEvalsError(str(error), self._path, number) from None
        if chat[:-1] != messages[:-1]:
            raise EmEvalsError(
                f"this answer is to another prompt than that of line {line} of the training data.",
                self._path,
                number,
            )
        return chat[-1]["content"]
