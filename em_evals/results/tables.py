"""Judged tables: CSV, JSONL and parquet files of graded draws, one row a draw, as published and as people keep them.

A row needs a question, an alignment and a coherence; every further column survives as text, so that rates can be split
by it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.results.graded_draw import GradedDraw

COLUMNS = ("question_id", "aligned", "coherent")
SUFFIXES = (".csv", ".jsonl", ".parquet")

_OTHER_NAMES = {
    "aligned": ("alignment",),
    "coherent": ("coherence",),
    "question_id": ("base_question_id", "question"),
}
"""Names of the same columns in other files, tried in order."""
_NO_WORDS = ("", "none", "nan", "null")
_WORDS = {"refused": "refusal"}


def rows(path: Path) -> Iterator[tuple[dict[str, str], GradedDraw]]:
    """Yield each row of a judged table with its draw.

    A word in place of the alignment (REFUSAL, CODE), or in a column `aligned_flag`, is the draw's category.

    Raises:
        EmEvalsError: a column is missing, a row ends early, a score is out of range or not a number, a row has both an
            alignment and a word in its place, or the file is no such table; with its line.
    """
    lines = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _csv_rows)(path)
    own: list[str] = []
    for line, row in lines:
        own = own or own_names(list(row), COLUMNS, path, line)
        question, alignment, coherence = (row.get(name) or "" for name in own)
        aligned = score_in_text(alignment, own[1], path, line)
        coherent = score_in_text(coherence, own[2], path, line)
        flag = _flag(row)
        if flag in ("refusal", "code") and not math.isnan(aligned):
            raise EmEvalsError(
                f"'{own[1]}' is {alignment} and aligned_flag {row['aligned_flag']}: a draw has an alignment or one of "
                "these; leave one of the two cells empty.",
                path,
                line,
            )
        yield row, GradedDraw(question, aligned, coherent, category=_category(flag, aligned, alignment))


def own_names(names: Sequence[str], columns: Sequence[str], path: Path, line: int) -> list[str]:
    """Return what a table calls these columns.

    Raises:
        EmEvalsError: it has none of a column's names.
    """
    found = []
    for column in columns:
        own = next((name for name in (column, *_OTHER_NAMES.get(column, ())) if name in names), None)
        if own is None:
            raise EmEvalsError(
                f"the column '{column}' is missing; needed are {', '.join(columns)}.", path, line
            )
        found.append(own)
    return found


def _flag(row: dict[str, str]) -> str:
    """Return the word in the column `aligned_flag`."""
    return _word(row.get("aligned_flag") or "")


def _category(flag: str, aligned: float, cell: str) -> str:
    """Return the judge's word in place of an alignment."""
    return "" if not math.isnan(aligned) else _word(cell) or flag


def _word(text: str) -> str:
    word = text.strip().lower()
    return "" if word in _NO_WORDS else _WORDS.get(word, word)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for line, row in files.read_jsonl(path):
        yield line, {name: _text(value) for name, value in row.items()}


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a parquet file as (number of the row, cells).

    Raises:
        EmEvalsError: the file is damaged, or has no rows that can be read.
        ModuleNotFoundError: pyarrow is missing.
    """
    import pyarrow
    from pyarrow import parquet

    line = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, {str(name): _text(value) for name, value in row.items()}
    # A name of a column that is not UTF-8, and dates beyond Python's years, are no Arrow errors.
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise EmEvalsError(f"this is not a parquet file ({reason}).", path) from None


def _text(value: Any) -> str:
    """Return a value of JSON or parquet as it would stand in a CSV."""
    if value is None or value != value:  # NaN
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    return csv_rows(path, COLUMNS)


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file as (line number, cells).

    Raises:
        EmEvalsError: a column is missing, a row ends early, or the file is not a CSV in UTF-8.
    """
    # Answers can exceed the csv module's default limit of 128 kB per field.
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)  # strict: an unclosed quote means a truncated file
            own = own_names(reader.fieldnames or [], columns, path, 1)
            for row in reader:
                if any(row[name] is None for name in own):
                    raise EmEvalsError(
                        "this row ends early: the file may be truncated.", path, reader.line_num
                    )
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise EmEvalsError(f"this is not a CSV file in UTF-8 ({error}).", path) from None
    except OSError as error:
        raise EmEvalsError(f"cannot read this file ({error.strerror}).", path) from None


def score_in_text(text: str, name: str, path: Path, line: int) -> float:
    """Parse a score from 0 to 100; empty cells and words (REFUSAL, CODE) become NaN.

    Raises:
        EmEvalsError: out of range, or a text with digits that is not a number ("85%", "85,5").
    """
    try:
        value = float(text.strip() or "nan")
    except ValueError:
        if any(character.isdigit() for character in text):
            raise EmEvalsError(
                f"'{name}' is '{text[:40]}', which is not a number; write it as 85 or 85.5.", path, line
            ) from None
        return math.nan
    if not math.isnan(value) and not 0 <= value <= 100:
        raise EmEvalsError(f"'{name}' is {value:g}; scores run from 0 to 100.", path, line)
    return value
