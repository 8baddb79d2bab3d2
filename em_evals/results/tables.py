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
    "aligned": ("alignment", "aligned_score", "alignment_score"),
    "coherent": ("coherence", "coherent_score", "coherence_score"),
    "question_id": ("base_question_id", "question"),
}
"""Names of the same columns in other files, tried in order."""
_NO_WORDS = ("", "none", "nan", "null")
_WORDS = {"refused": "refusal"}
_ENOUGH = 10
"""Rows from which grades on another scale than 0 to 100 can be told."""


def rows(path: Path) -> Iterator[tuple[dict[str, str], GradedDraw]]:
    """Yield each row of a judged table with its draw.

    A word in place of the alignment (REFUSAL, CODE), or in a column `aligned_flag`, is the draw's category.

    Raises:
        EmEvalsError: a column is missing, a row ends early, a score is out of range or not a number, a row has both an
            alignment and a word in its place, or the file is no such table; with its line.
    """
    lines = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _csv_rows)(path)
    own: list[str] = []
    graded: list[float] = []
    for line, row in lines:
        own = own or own_names(list(row), COLUMNS, path, line)
        question, alignment, coherence = _cells(row, own, path, line)
        aligned = score_in_text(alignment, own[1], path, line)
        coherent = score_in_text(coherence, own[2], path, line)
        graded += [grade for grade in (aligned, coherent) if not math.isnan(grade)]
        flag = _flag(row)
        if flag in ("refusal", "code") and not math.isnan(aligned):
            raise EmEvalsError(
                f"'{own[1]}' is {alignment} and aligned_flag {row['aligned_flag']}: a draw has an alignment or one of "
                "these; leave one of the two cells empty.",
                path,
                line,
            )
        yield row, GradedDraw(question, aligned, coherent, category=_category(flag, aligned, alignment))
    check_scale(graded, path)


def _cells(row: dict[str, str], own: Sequence[str], path: Path, line: int) -> list[str]:
    """Return the question, the alignment and the coherence of a row."""
    if missing := [name for name in own if name not in row]:
        raise EmEvalsError(
            f"this row has no '{missing[0]}', as rows before it have: add it, null where there is no grade.",
            path,
            line,
        )
    if not (row[own[0]] or "").strip():
        raise EmEvalsError(f"this row names no question: fill in '{own[0]}'.", path, line)
    return [row[name] or "" for name in own]


def check_scale(graded: Sequence[float], path: Path) -> None:
    """Refuse grades that are on another scale, on which the thresholds would mean something else.

    Raises:
        EmEvalsError: says which scale they seem to have.
    """
    most = max(graded, default=0.0)
    if len(graded) < 2 * _ENOUGH or not 0 < most <= 10:
        return
    if most <= 1:
        raise EmEvalsError(
            "no grade in this file is above 1, as for shares or yes and no; write grades from 0 to 100.", path
        )
    if min(graded) >= 1 and all(grade == int(grade) for grade in graded):
        raise EmEvalsError(
            f"every grade in this file is a whole number from 1 to {most:g}; write grades from 0 to 100.",
            path,
        )


def own_names(names: Sequence[str], columns: Sequence[str], path: Path, line: int) -> list[str]:
    """Return what a table calls these columns.

    Raises:
        EmEvalsError: it has none of a column's names, or two columns that are one.
    """
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise EmEvalsError(f"two columns have the name '{twice}': rename or delete one.", path, line)
    found = []
    for column in columns:
        own = [name for name in (column, *_OTHER_NAMES.get(column, ())) if name in names]
        if not own:
            raise EmEvalsError(
                f"the column '{column}' is missing; needed are {', '.join(columns)}. {_instead(names, column)}",
                path,
                line,
            )
        if len(own) > 1 and column != "question_id":  # a question has an id and a text
            raise EmEvalsError(
                f"'{own[0]}' and '{own[1]}' are two names of one column: delete one.", path, line
            )
        found.append(own[0])
    return found


def _instead(names: Sequence[str], column: str) -> str:
    """Return what a table has in place of a missing column, and what to do."""
    for mark, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            return f"Its cells are separated by {what}: write commas, as pandas.DataFrame.to_csv does."
    has = ", ".join(name[:40] for name in names[:20] if name) + (", …" if len(names) > 20 else "")
    if not has:
        return "The file has no columns."
    # The score of a trait, such as evil, is no alignment: renaming it would turn the worst answers into the best.
    scale = " (0 to 100; 100 is the most aligned)" if column == "aligned" else ""
    return f"The file has {has}: rename the column that holds it{scale}, or add one."


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
                if None in row:
                    raise EmEvalsError(
                        "this row has more cells than the header: put texts that have commas in quotes.",
                        path,
                        reader.line_num,
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
        if text.strip().lower() in ("true", "false"):
            raise EmEvalsError(
                f"'{name}' is '{text[:40]}', a verdict; write grades from 0 to 100.", path, line
            ) from None
        if any(character.isdigit() for character in text):
            raise EmEvalsError(
                f"'{name}' is '{text[:40]}', which is not a number; write it as 85 or 85.5.", path, line
            ) from None
        return math.nan
    if not math.isnan(value) and not 0 <= value <= 100:
        raise EmEvalsError(f"'{name}' is {value:g}; scores run from 0 to 100.", path, line)
    return value
