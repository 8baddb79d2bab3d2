"""`em-evals data convert`: training data of any format that training reads, as JSONL of chats."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.data import datasets, formats, preference_rows, row_files
from em_evals.errors import EmEvalsError


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        rows: number of rows.
        formats: how many rows were in each format.
        left_out: keys of rows that say nothing to a model, with how many rows have them.
        digest: of the rows; equal to that of the source.
    """

    source: Path
    output: Path
    rows: int
    formats: dict[str, int]
    left_out: dict[str, int]
    digest: str


def convert(source: Path, output: Path) -> Converted:
    """Write the rows of a file as `{"messages": [{"role": …, "content": …}]}`, one a line; `id` is kept.

    Preferences become `{"prompt": [messages], "chosen": [answer], "rejected": [answer]}` (TRL).

    Raises:
        EmEvalsError: a row cannot be trained on, with file and line; or the output is the source or exists as no file.
    """
    if output.exists() and (output.is_dir() or output.samefile(source)):
        raise EmEvalsError("the output must be another file.", output)
    data = datasets.read(source, source.stem, pairs=True)
    shapes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    lines = []
    others = data.rejected or (None,) * len(data.rows)
    for (_, row), messages, rejected in zip(row_files.whole(source), data.rows, others, strict=True):
        shape = _shape(row) if rejected else formats.shape(row)
        shapes[shape] += 1
        read = {"id", "system", "system_prompt", "input"}
        read |= set() if rejected else {"messages", "conversations", "conversation"}
        left.update(row.keys() - read - set(shape.split("/")))
        named = {"id": row["id"]} if "id" in row else {}
        chat = _written(messages)
        if rejected is None:
            fields = {"messages": chat}
        else:
            fields = {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": _written(rejected)[-1:]}
        lines.append(json.dumps({**named, **fields}, ensure_ascii=False))
    with files.atomic(output) as temporary:
        # An id may hold half a character; its escape is the same JSON.
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    return Converted(source, output, len(lines), dict(shapes), dict(left), data.digest)


def _shape(row: formats.Row) -> str:
    """Return the name of a preference's format."""
    return "/".join([*preference_rows.prompt_of(row), "chosen", "rejected"])


def _written(chat: formats.Messages) -> list[dict[str, Any]]:
    return [{**one, "weight": 0} if "weight" in one else {**one} for one in chat]
