"""Published judged draws: answers of real organisms with their scores, fetched from their authors by digest.

`adapters/data/judged.yaml` names them; `rates`, `report` and `gate` read the files as they are. Nothing of them is in
this repository. `EM_EVALS_DATA` names a folder to take the files from offline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, field_validator

from em_evals import files
from em_evals.content import published
from em_evals.data import registered
from em_evals.errors import EmEvalsError, nearest


class JudgedSet(BaseModel):
    """A published set of judged draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    license: str = ""
    source: str = ""
    """The paper or repository of its origin."""
    url: str = Field(pattern=r"^https?://[^\s{}]+/\{file\}$")
    """Address of a file at a fixed revision, with {file} in place of its name."""
    files: dict[str, str] = Field(min_length=1)
    """Name of each file -> its SHA-256."""

    @field_validator("files")
    @classmethod
    def _names_and_digests(cls, value: dict[str, str]) -> dict[str, str]:
        for name, digest in value.items():
            # The name becomes a path below the output folder.
            if PurePosixPath(name).name != name or name.startswith(".") or "\\" in name:
                raise ValueError(f"'{name}' is not the name of a file")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"'{digest}' is not a SHA-256 (64 hexadecimal digits)")
        return value


@dataclass(frozen=True)
class FetchedDraws:
    """Judged draws that are on this machine now."""

    name: str
    path: Path
    """Their folder."""
    files: int
    license: str

    def __str__(self) -> str:
        """Return what `data fetch` prints."""
        return f"{self.name}: {self.path} (judged draws, files: {self.files}, license: {self.license or 'none stated'})"


def read() -> dict[str, JudgedSet]:
    """Read every set: ./adapters/data/judged.yaml first, then the shipped ones.

    Raises:
        EmEvalsError: an entry is invalid, with file and line.
    """
    return {
        name: entry
        for name, (entry, _) in registered.entries("judged.yaml", JudgedSet, "judged draws").items()
    }


def locate(name: str, entry: JudgedSet) -> Path | None:
    """Return the folder in the cache that holds all of a set's files; None if one is missing."""
    folder = _cached(name)
    return folder if all((folder / file).is_file() for file in entry.files) else None


def fetch(name: str, output: Path | None = None) -> FetchedDraws:
    """Fetch a set's files that are not there yet, from `EM_EVALS_DATA` or their authors.

    Args:
        name: the set.
        output: folder to hold a folder of the set's name; None: the user's cache.

    Raises:
        EmEvalsError: the name is unknown, the server is unreachable, or a file is not the one that was published.
    """
    known = read()
    if name not in known:
        raise EmEvalsError(f"there are no judged draws '{name}'; {nearest(name, known)}")
    entry = known[name]
    folder = _cached(name) if output is None else output.expanduser() / name
    for file, data in _missing(name, entry, folder):
        with files.atomic(folder / file) as temporary:
            temporary.write_bytes(data)
    return FetchedDraws(name, folder, len(entry.files), entry.license)


def _missing(name: str, entry: JudgedSet, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the checked content of each file that the folder does not hold; an interrupted fetch goes on there."""
    for file, digest in entry.files.items():
        there = folder / file
        if there.is_file() and _sha256(there.read_bytes()) == digest:
            continue
        given = published.offline(file, (f"judged/{name}", "judged", ""))
        origin = str(given) if given else entry.url.replace("{file}", file)
        data = given.read_bytes() if given else published.download(origin)
        if (found := _sha256(data)) != digest:
            raise EmEvalsError(
                f"this is not the file that was published as {file} of {name} (SHA-256 {found[:16]}…, expected "
                f"{digest[:16]}…): the authors changed it, or the download is damaged. It was not written.",
                origin,
            )
        yield file, data


def summary(entries: Mapping[str, JudgedSet]) -> list[dict[str, str]]:
    """Return a row for each set, for `data list`."""
    rows = []
    for name, entry in entries.items():
        where = locate(name, entry)
        rows.append({"kind": "judged", "name": name, "where": str(where or f"em-evals data fetch {name}")})
    return rows


def _cached(name: str) -> Path:
    return files.cache_folder() / "judged" / name


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
