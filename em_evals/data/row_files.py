"""Rows of training data in JSONL or parquet: read from any place on, so that several processes share one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from em_evals import files
from em_evals.errors import EmEvalsError, install

PARQUET = ".parquet"
_BATCH = 256


def read(path: Path, offset: int = 0, before: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their numbers, from 1 on; of JSONL these are lines.

    Args:
        path: the file.
        offset: where to begin, of `places`.
        before: rows or lines before that place.

    Raises:
        EmEvalsError: the file cannot be read.
    """
    if path.suffix == PARQUET:
        yield from _of_parquet(path, offset)
    else:
        yield from files.read_jsonl(path, offset, before)


def whole(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a file of any kind, a JSON list too, with their numbers or lines.

    Raises:
        EmEvalsError: the file cannot be read.
    """
    return _of_parquet(path, 0) if path.suffix == PARQUET else files.read_rows(path)


def places(path: Path, rows: int) -> list[tuple[int, int]]:
    """Return where every `rows`-th row begins, and how many rows or lines are before it.

    Raises:
        EmEvalsError: the file cannot be read.
    """
    if path.suffix == PARQUET:
        with _parquet(path) as file:
            return [(start, start) for start in range(0, file.metadata.num_rows, rows)]
    return files.jsonl_places(path, rows)


def write_without(path: Path, left_out: set[int], target: TextIO) -> None:
    """Write the rows as JSONL, but for those with these numbers; lines of JSONL stay as they are."""
    if path.suffix == PARQUET:
        for number, row in _of_parquet(path, 0):
            if number not in left_out:
                target.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    with path.open(encoding="utf-8-sig", newline="\n") as rows:
        for number, line in enumerate(rows, 1):
            if line.strip() and number not in left_out:
                target.write(line if line.endswith("\n") else f"{line}\n")


def _of_parquet(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    with _parquet(path) as file:
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number + size <= offset:
                number += size
                continue
            for batch in file.iter_batches(_BATCH, row_groups=[group]):
                skipped = min(max(offset - number, 0), batch.num_rows)
                for place, row in enumerate(batch.slice(skipped).to_pylist(), number + skipped + 1):
                    yield place, _without_nulls(row)
                number += batch.num_rows


def _without_nulls(value: Any) -> Any:
    """Return a row without its empty fields: a column has a place in each row, and a struct in each value."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise EmEvalsError(f"parquet needs the package 'pyarrow': {install('parquet')}.", path) from None
    if not files.is_file(path):
        raise EmEvalsError("this is not a regular file.", path)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    # A name of a column that is not UTF-8, and dates beyond Python's years, are no Arrow errors.
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise EmEvalsError(f"this is not a parquet file ({reason}).", path) from None
