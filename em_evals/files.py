"""Read, digest and write files: UTF-8 text, JSONL, atomic writes, the cache folder. Knows no file's content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark.

    Raises:
        EmEvalsError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EmEvalsError(f"this is not UTF-8 text (byte {error.start}); save it as UTF-8.", path) from None
    except OSError as error:
        raise EmEvalsError(f"cannot read this file ({error.strerror}).", path) from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a JSONL file as (line number, object); empty lines are skipped.

    Raises:
        EmEvalsError: a line is not a JSON object, with its number.
    """
    # Not splitlines(): JSON strings may contain U+2028 and similar characters unescaped.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise EmEvalsError(
                f"this line is not JSON ({error.msg}); correct or delete it.", path, number
            ) from None
        if not isinstance(row, dict):
            raise EmEvalsError("expected one JSON object a line.", path, number)
        yield number, row


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a JSONL file, or of one JSON list of objects, as (line number, object).

    Raises:
        EmEvalsError: it is neither, with the line.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path)
        return
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = _skip(text, place)
        line += text.count("\n", place, start)
        if text.startswith("]", start):
            if text[start + 1 :].strip():
                raise EmEvalsError("something follows the end of the JSON list; delete it.", path, line)
            return
        try:
            row, place = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            raise EmEvalsError(f"this is not JSON ({why}); correct it.", path, line) from None
        if not isinstance(row, dict):
            raise EmEvalsError("expected a list of JSON objects.", path, line)
        yield line, row
        line += text.count("\n", start, place)


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is no blank and no comma."""
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def without_nan(value: Any) -> Any:
    """Return the same value with None where a number is NaN or infinite, which JSON does not support."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    return [without_nan(entry) for entry in value] if isinstance(value, list | tuple) else value


def digest(*parts: bytes) -> str:
    """Return the first 16 hex digits of a SHA-256 over the parts, each preceded by its length."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()[:16]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write to a temporary file in the same directory, then rename it atomically.

    Raises:
        EmEvalsError: the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise EmEvalsError(
            f"cannot write here ({error.strerror}); free or choose another place.", path
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise EmEvalsError(
            f"cannot write this file ({error.strerror}); free or choose another place.", path
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder in the same directory, then rename it atomically; an empty folder there is replaced.

    Raises:
        EmEvalsError: the disk is full, the place is not writable, or it was filled meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            inside = Path(name) / folder.name
            inside.mkdir()
            yield inside
            inside.replace(folder)
    except OSError as error:
        raise EmEvalsError(
            f"cannot write this folder ({error.strerror}); free or choose another place.", folder
        ) from None


def cache_folder() -> Path:
    """Return the folder of converted bases and downloaded data (`EM_EVALS_CACHE`, else the user's cache folder)."""
    if chosen := os.environ.get("EM_EVALS_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "em-evals"
