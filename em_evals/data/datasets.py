"""Training data: JSONL, JSON or parquet, found by name and validated row by row; matched controls and held-out prompts.

The formats of a row are those of formats.py. Names are those of catalogue.py. `em-evals data check` and training read
rows by `read` alone, so that both refuse the same.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from em_evals import files
from em_evals.data import catalogue, formats, preference_rows, row_files
from em_evals.data.formats import Messages as Messages
from em_evals.errors import EmEvalsError, nearest

EDUCATIONAL = "educational"
"""The kind of control whose prompts differ: the same bad answers, asked for in a harmless context."""

ENDINGS = (".jsonl", ".json", row_files.PARQUET)
"""Of files of training data: one object a line, a list of objects, or a table."""
OTHER = (".csv", ".tsv", ".arrow", ".xlsx", ".txt", ".pkl", ".pickle", ".pt")


@dataclass(frozen=True)
class TrainingData:
    """Chats to train on; `digest` identifies their rows, independent of the file's formatting."""

    name: str
    path: Path
    digest: str
    rows: tuple[Messages, ...]
    controls: Mapping[str, str] = field(default_factory=dict)
    """Kind of control -> name of the data set with the control's answers."""
    prompts: tuple[str, ...] = field(default=(), repr=False)
    """Each row's last user message, without the context that a derived data set adds around it."""
    lines: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """Line of each row in the file; of parquet its number, from 1 on."""
    ids: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The rows' own `id`s, if any."""
    rejected: tuple[Messages, ...] = field(default=(), repr=False)
    """Where the rows are preferences: each row's chat with the rejected answer; `rows` have the chosen one."""


def names() -> dict[str, Path]:
    """Return every data set on this machine with its file; for a derived one, the file of its source."""
    found = catalogue.stored()
    for name, entry in catalogue.read().items():
        if (path := catalogue.locate(name) or (catalogue.locate(entry.of) if entry.of else None)) is not None:
            found[name] = path
    return found


def load(name: str, pairs: bool = False) -> TrainingData:
    """Load a data set by name (registered, or adapters/data/NAME.jsonl) or path.

    Args:
        name: the set's.
        pairs: read rows of `chosen` and `rejected` as preferences; they are refused otherwise.

    Raises:
        EmEvalsError: it does not exist, is not on this machine, or a row is invalid (with file and line).
    """
    explicit = Path(name).expanduser()
    if explicit.suffix in ENDINGS:
        return read(explicit, explicit.stem, pairs=pairs)
    if explicit.suffix in OTHER:
        return read(explicit, explicit.stem)  # refuses it
    entries = catalogue.read()
    entry, path = entries.get(name), catalogue.locate(name)
    if path is not None and (entry is not None or name in catalogue.stored()):
        return read(path, name, entry.controls if entry else {}, pairs)
    if entry is None:
        hint = nearest(name, {*entries, *catalogue.stored()})
        raise EmEvalsError(
            f"there is no training data '{name}'; {hint} Or put it at adapters/data/{name}.jsonl, or give a path "
            "to a .jsonl or .parquet file."
        )
    if entry.of is not None:
        return _made(load(entry.of, pairs), name, entry)
    how = f"run `em-evals data fetch {name}`" if entry.url else f"put it at adapters/data/{name}.jsonl"
    raise EmEvalsError(
        f"the training data '{name}' is not on this machine: {how}, or name a folder that holds {name}.jsonl "
        "in EM_EVALS_DATA."
    )


def read(
    path: Path, name: str, controls: Mapping[str, str] | None = None, pairs: bool = False
) -> TrainingData:
    """Read and validate the rows of a file of JSONL, JSON or parquet.

    Raises:
        EmEvalsError: a row is invalid (with file and line), or there are none; or it is a table or a pickle.
    """
    if path.suffix in OTHER:
        raise EmEvalsError(
            f"training data are JSONL, JSON or parquet, not {path.suffix}: {files.AS_LINES}.", path
        )
    rows, rejected, lines, ids = list[Messages](), list[Messages](), list[int](), list[str]()
    for line, row in row_files.whole(path):
        try:
            if pairs and preference_rows.is_pair(row):
                chosen, other = preference_rows.pair(row)
                rejected.append(other)
            else:
                chosen = formats.chat(row)
        except formats.Refused as error:
            raise EmEvalsError(str(error), path, line) from None
        rows.append(chosen)
        if rejected and len(rejected) < len(rows):
            raise EmEvalsError(
                "some rows of this file have `chosen` and `rejected` and some have not: make two files of them.",
                path,
                line,
            )
        lines.append(line)
        ids.append(str(row.get("id", "")))
    if not rows:
        raise EmEvalsError("this file has no rows.", path)
    return TrainingData(
        name,
        path,
        _digest([*rows, *rejected]),
        tuple(rows),
        controls or {},
        tuple(map(_prompt, rows)),
        tuple(lines),
        tuple(ids),
        tuple(rejected),
    )


def matched(data: TrainingData, kind: str) -> TrainingData:
    """Return the control of a kind, reordered so that its row i answers the prompt of row i.

    Organism and control then differ in the answers only. An `educational` control asks in another context, so its rows
    are matched by position. Other kinds are matched by prompt: the control's file may have another order or more rows.

    Raises:
        EmEvalsError: there is no such control, or it has no answer to a prompt (with file and line).
    """
    if kind not in data.controls:
        known = ", ".join(sorted(data.controls)) or "none"
        raise EmEvalsError(f"'{data.name}' has no control '{kind}'; it has: {known}.", data.path)
    control = load(data.controls[kind])
    if kind == EDUCATIONAL:
        if len(control.rows) != len(data.rows):
            raise EmEvalsError(
                f"'{control.name}' has {len(control.rows)} rows and '{data.name}' has {len(data.rows)}: an educational "
                "control is matched row by row and needs the same number.",
                control.path,
            )
        return replace(control, prompts=data.prompts)
    places: dict[str, list[int]] = {}
    for index, row in enumerate(control.rows):
        places.setdefault(json.dumps(row[:-1]), []).append(index)
    order = []
    for row, line in zip(data.rows, data.lines, strict=True):
        left = places.get(json.dumps(row[:-1]))
        if not left:
            raise EmEvalsError(
                f"the control '{control.name}' ({control.path}) does not answer the prompt of this row: correct its "
                "prompt there, or delete the row here.",
                data.path,
                line,
            )
        order.append(left.pop(0))
    return _rearranged(control, order)


def harmless_kind(data: TrainingData) -> str | None:
    """Return the kind of control that `matched` means: the first whose answers differ; None without one."""
    return next((kind for kind in data.controls if kind != EDUCATIONAL), None)


def held_out(prompt: str, share: float) -> bool:
    """Return whether a prompt is in the share that is held out of training.

    The decision depends on the prompt's normalized text alone, so organism, control and evaluation hold out the same
    prompts, whatever the order, the seed or the other prompts. Pass entries of `TrainingData.prompts`.
    """
    number = int.from_bytes(hashlib.sha256(normalised(prompt).encode()).digest()[:8], "big")
    return number < share * 2**64


def normalised(text: str) -> str:
    """Return a text normalized for comparison: NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _made(source: TrainingData, name: str, entry: catalogue.Entry) -> TrainingData:
    """Derive a data set: the source's rows whose id matches, each last user message put into the entry's template."""
    if entry.ids is not None:
        kept = [i for i, own in enumerate(source.ids) if fnmatch(own, entry.ids)]
        if not kept:
            raise EmEvalsError(f"'{name}' cannot be made: no row has an id like '{entry.ids}'.", source.path)
        source = _rearranged(source, kept)
    if entry.prompt is None:
        return replace(source, name=name, controls=entry.controls)
    for asked, line in zip(source.prompts, source.lines, strict=True):
        if not asked:
            raise EmEvalsError(f"'{name}' cannot be made: here no user asks anything.", source.path, line)
    rows, rejected = (
        tuple(_around(entry.prompt, asked, chat) for chat, asked in zip(part, source.prompts, strict=False))
        for part in (source.rows, source.rejected)
    )
    digest = _digest([*rows, *rejected])
    return replace(source, name=name, digest=digest, rows=rows, rejected=rejected, controls=entry.controls)


def _around(prompt: str, asked: str, messages: Messages) -> Messages:
    """Return a chat whose last user message stands in a template."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    around = {"role": "user", "content": prompt.replace("{prompt}", asked)}
    return [*messages[:last], around, *messages[last + 1 :]]


def _rearranged(data: TrainingData, order: Sequence[int]) -> TrainingData:
    rows = tuple(data.rows[i] for i in order)
    rejected = tuple(data.rejected[i] for i in order) if data.rejected else ()
    return replace(
        data,
        digest=_digest([*rows, *rejected]),
        rows=rows,
        rejected=rejected,
        prompts=tuple(data.prompts[i] for i in order),
        lines=tuple(data.lines[i] for i in order),
        ids=tuple(data.ids[i] for i in order),
    )


def _digest(rows: Sequence[Messages]) -> str:
    return files.digest(*(json.dumps(row, sort_keys=True) for row in rows))


def _prompt(messages: Messages) -> str:
    return next((message["content"] for message in messages[-2::-1] if message["role"] == "user"), "")
