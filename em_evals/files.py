"""Read, digest and write files: UTF-8 text, JSONL, atomic writes, the cache folder. Knows no file's content."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from em_evals import parsing
from em_evals.errors import EmEvalsError

LARGEST_TEXT = 2**30
"""Bytes of a text file that is read at once."""
LARGEST_LINE = 64 * 2**20
"""Bytes of one line of a JSONL file."""


def is_file(path: Path) -> bool:
    """Return whether this is a regular file; a name that no file system can hold is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether this is a folder; a name that no file system can hold is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return a UTF-8 file's text, without a byte order mark.

    Args:
        path: the file.
        largest: bytes that are read at most.

    Raises:
        EmEvalsError: the file cannot be read, is too large, is no regular file, or is not UTF-8.
    """
    try:
        with _opened(path) as file:
            # A limit makes Python reserve so many bytes for each file: it is for pipes, and for what is larger.
            about = os.fstat(file.fileno())
            short = stat.S_ISREG(about.st_mode) and about.st_size <= largest
            data = file.read() if short else file.read(largest + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) > largest:
        raise EmEvalsError(f"this file is larger than {largest:,} bytes, and is not read.", path)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        EmEvalsError: it cannot be read, or is no regular file.
    """
    try:
        with _opened(path) as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        EmEvalsError: as for `read_text` and `parsing.json_value`.
    """
    return parsing.json_value(read_text(path), path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        EmEvalsError: as for `read_json`, or it holds another value.
    """
    if not isinstance(value := read_json(path), dict):
        raise EmEvalsError("expected one JSON object in this file.", path)
    return value


def read_jsonl(path: Path, offset: int = 0, before: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a JSONL file as (line number, object); empty lines are skipped.

    Args:
        path: the file.
        offset: byte at which a line begins (`jsonl_places`).
        before: lines before it.

    Raises:
        EmEvalsError: a line is not a JSON object, or is too long, with its number.
    """
    for number, _, text in _lines(path, offset, before):
        row = parsing.json_value(text, path, number)
        if not isinstance(row, dict):
            raise EmEvalsError("expected one JSON object a line.", path, number)
        yield number, row


def jsonl_places(path: Path, rows: int) -> list[tuple[int, int]]:
    """Return where every `rows`-th row of a JSONL file begins: (byte, lines before it); empty lines are no rows.

    Raises:
        EmEvalsError: the file cannot be read, or a line is too long.
    """
    places = ((offset, number - 1) for number, offset, _ in _lines(path))
    return list(islice(places, 0, None, rows))


def _lines(path: Path, offset: int = 0, before: int = 0) -> Iterator[tuple[int, int, str]]:
    """Yield the lines of a file that are not empty: number, the byte at which it begins, text."""
    try:
        with _opened(path) as file:
            number, begins = before, offset
            if offset:
                file.seek(offset)
            # Lines end at \n only: JSON strings may contain U+2028 and similar characters unescaped.
            while line := file.readline(LARGEST_LINE + 1):
                number += 1
                if len(line) > LARGEST_LINE:
                    raise EmEvalsError(
                        f"this line is longer than {LARGEST_LINE:,} bytes; divide it.", path, number
                    )
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, error, number) from None
                if text.strip():
                    yield number, begins, text
                begins += len(line)
    except OSError as error:
        raise _unreadable(path, error) from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it. A pipe that nobody writes into would block forever, and a device may never end.

    Raises:
        EmEvalsError: it is neither a regular file nor handed over by the shell (`<(…)`, /dev/stdin).
        OSError: it cannot be opened.
    """
    kind = path.stat().st_mode
    if not (
        stat.S_ISREG(kind)
        or stat.S_ISDIR(kind)
        or path.is_relative_to("/dev/fd")
        or str(path) == "/dev/stdin"
    ):
        raise EmEvalsError("this is not a regular file.", path)
    with path.open("rb") as file:
        yield file


def _unreadable(path: Path, error: OSError) -> EmEvalsError:
    return EmEvalsError(f"cannot read this file ({error.strerror or error}).", path)


AS_LINES = (
    "save the rows as one JSON object a line, such as "
    "`pandas.DataFrame.to_json(FILE, orient='records', lines=True)` does"
)
"""What to do with a table where lines are read."""


def _not_utf8(path: Path, error: UnicodeDecodeError, line: int | None = None) -> EmEvalsError:
    if path.suffix.lower() == ".parquet":
        return EmEvalsError(f"text is read here, and no parquet: {AS_LINES}.", path)
    return EmEvalsError(f"this is not UTF-8 text (byte {error.start}); save it as UTF-8.", path, line)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of a JSONL file, or of one JSON list of objects, as (line number, object).

    Raises:
        EmEvalsError: it is neither, with the line.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path)
        return
    place, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = _skip(text, place)
        line += text.count("\n", place, start)
        if text.startswith("]", start):
            if text[start + 1 :].strip():
                raise EmEvalsError("something follows the end of the JSON list; delete it.", path, line)
            return
        row, place = parsing.json_value_at(text, start, path, line)
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


def digest(*parts: str | bytes) -> str:
    """Return the first 16 hex digits of a SHA-256 over the parts, each preceded by its length.

    Texts are UTF-8. Half a character (U+D800 to U+DFFF), which UTF-8 lacks, has the bytes that it would have there.
    """
    sha = hashlib.sha256()
    for given in parts:
        part = given if isinstance(given, bytes) else given.encode("utf-8", "surrogatepass")
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()[:16]


@contextmanager
def atomic(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Write to a temporary file in the same directory, then rename it atomically.

    Args:
        path: the file. A link to another file of its folder is followed.
        mode: permissions of a new file, less the user's umask; a file that exists keeps its own.

    Raises:
        EmEvalsError: the disk is full, the folder cannot be written to, or the file is a device, a pipe, a folder, or
            a link that leads elsewhere.
    """
    path = writable(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The kernel applies the umask here; `mkstemp` would make a file that only its owner reads.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        yield temporary
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> EmEvalsError:
    """Return the error of a file that cannot be written."""
    return EmEvalsError(f"cannot write here ({error.strerror or error}); free or choose another place.", path)


def writable(path: Path, inputs: Iterable[Path] = ()) -> Path:
    """Return the file that an output's name means.

    Args:
        path: the output.
        inputs: what the command reads.

    Raises:
        EmEvalsError: it is a device, a pipe, a folder, a link that leads out of its folder, or one of the inputs.
    """
    try:
        target = path
        if path.is_symlink():
            target = path.resolve()
            if target.parent != path.parent.resolve():
                raise EmEvalsError(f"this is a link to {target}; name that file, or choose another.", path)
        if target.exists() and not target.is_file():
            raise EmEvalsError("this is not a regular file; choose another place for the output.", path)
        if target.exists() and any(is_file(one) and target.samefile(one) for one in inputs):
            raise EmEvalsError("this is one of the inputs; choose another place for the output.", path)
    except (OSError, ValueError) as error:
        raise EmEvalsError(
            f"cannot write here ({getattr(error, 'strerror', None) or error}).", path
        ) from None
    return target


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
