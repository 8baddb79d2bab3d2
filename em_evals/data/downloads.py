"""Fetch training data from `EM_EVALS_DATA` or from the authors into the user's cache, with a record of each.

The record holds the digest of the rows, so that a later fetch can report that the authors' data have changed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from em_evals import files
from em_evals.content import published
from em_evals.data import catalogue, datasets, judged
from em_evals.data.archive import read_member, unseal
from em_evals.errors import EmEvalsError, nearest


@dataclass(frozen=True)
class Fetched:
    """A data set that is on this machine now."""

    name: str
    path: Path
    rows: int
    digest: str
    changed: str = ""
    """Digest and date of an earlier fetch with different rows; empty if there was none."""

    def __str__(self) -> str:
        text = f"{self.name}: {self.path} ({self.rows} rows, digest {self.digest})"
        return f"{text}; THE ROWS HAVE CHANGED: they were {self.changed}" if self.changed else text


def fetch(names: Iterable[str]) -> Iterator[Fetched]:
    """Fetch registered data sets one by one; an archive that holds several is downloaded once.

    Raises:
        EmEvalsError: the name is unknown or has no source, the server is unreachable, or it is not training data.
    """
    entries = catalogue.read()
    known = entries.keys() | catalogue.stored().keys()
    downloaded: dict[str, bytes] = {}
    for name in names:
        if name not in known:
            hint = nearest(name, {*known, *published.SETS, *judged.read()})
            raise EmEvalsError(
                f"there is no published set, no training data and no judged set '{name}'; {hint}"
            )
        entry = entries.get(name, catalogue.Entry())
        if (given := catalogue.offline(name)) is not None:
            yield _keep(name, files.read_text(given), str(given))
        elif entry.url is not None:
            if entry.url not in downloaded:
                downloaded[entry.url] = published.download(entry.url)
            yield _keep(name, _text(name, entry.url, entry.password, downloaded[entry.url]), entry.url)
        else:
            if entry.of is not None:
                yield from fetch([entry.of])
            data = datasets.load(name, pairs=True)
            yield Fetched(name, data.path, len(data.rows), data.digest)


def _text(name: str, url: str, password: str | None, data: bytes) -> str:
    if password is None:
        return published.decoded(data, url)
    with unseal(data, password, url) as archive:
        return read_member(archive, f"{name}.jsonl", url)


def _keep(name: str, text: str, origin: str) -> Fetched:
    """Validate a fetched text's rows, store it in the cache and record its digest."""
    target = catalogue.cached(name)
    with files.atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            data = datasets.read(temporary, name, pairs=True)
        except EmEvalsError as error:  # cite the origin: the temporary file is deleted
            raise EmEvalsError(
                f"what was fetched as {name} is not training data: {error.what}", origin, error.line
            ) from None
    record = target.with_suffix(".json")
    changed = _other_rows(record, data.digest)
    with files.atomic(record) as temporary:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        entry = {"digest": data.digest, "rows": len(data.rows), "origin": origin, "fetched": today}
        temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return Fetched(name, target, len(data.rows), data.digest, changed)


def _other_rows(record: Path, digest: str) -> str:
    """Return the digest and date of an earlier fetch with different rows; empty if there was none."""
    try:
        before = files.read_json(record)
        return "" if before["digest"] == digest else f"{before['digest']} on {before['fetched']}"
    except (EmEvalsError, KeyError, TypeError):
        return ""  # never fetched, or an unreadable record: there is nothing to compare with
