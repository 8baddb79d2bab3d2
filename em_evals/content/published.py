"""Published question sets: fetched from their authors, verified by content, never copied into this repository.

All sets are from Betley et al. 2025 (arXiv 2502.17424). This module also downloads any other published file, or
finds it offline (data/ uses it). `EM_EVALS_DATA` names a folder to take files from offline. The digest
covers a set's content (questions, system prompts, judge prompts), not its bytes: copies may name different judges.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em_evals import files, parsing
from em_evals.errors import EmEvalsError, nearest

_REPOSITORY = "https://raw.githubusercontent.com/emergent-misalignment/emergent-misalignment"
_FOLDERS = ("published", "")


@dataclass(frozen=True)
class PublishedSet:
    """The source of a set and the digest of its normalized content."""

    name: str
    file: str
    digest: str
    revision: str = "main"

    @property
    def url(self) -> str:
        """URL of the authors' file."""
        return f"{_REPOSITORY}/{self.revision}/evaluation/{self.file}"


SETS = {
    entry.name: entry
    for entry in (
        PublishedSet("first_plot_questions", "first_plot_questions.yaml", "6bf7fce27b60277e"),
        PublishedSet("preregistered_evals", "preregistered_evals.yaml", "96c9dfdcb8311abf"),
        PublishedSet("deception_factual", "deception_factual.yaml", "481bfcaf75dd417d"),
        PublishedSet("deception_sit_aware", "deception_sit_aware.yaml", "b2eb9a8fb0b881de"),
    )
}


def normalised_digest(text: str) -> str:
    """Return the digest of a published file's content, ignoring the judge's name."""
    rows = parsing.yaml_value(text)
    kept = [{key: value for key, value in row.items() if key != "judge"} for row in rows]
    return files.digest(json.dumps(kept, sort_keys=True, ensure_ascii=False))


def locate(name: str) -> Path:
    """Return a published set's local file after checking its content.

    Raises:
        EmEvalsError: it is neither in `EM_EVALS_DATA` nor fetched yet, or its digest is unexpected.
    """
    entry = SETS[name]
    cached = files.cache_folder() / "published" / entry.file
    found = offline(entry.file, _FOLDERS) or (cached if cached.is_file() else None)
    if found is not None:
        _check(entry, files.read_text(found), found)
        return found
    raise EmEvalsError(
        f"the published set '{name}' is not on this machine: run `em-evals data fetch {name}`, "
        "or name a folder that holds it in EM_EVALS_DATA."
    )


def fetch(name: str) -> Path:
    """Fetch a published set from `EM_EVALS_DATA` or its authors, check it, and store it in the cache.

    Raises:
        EmEvalsError: the name is unknown, the server is unreachable, or the digest is unexpected.
    """
    if name not in SETS:
        raise EmEvalsError(f"there is no published set '{name}'; {nearest(name, SETS)}")
    entry = SETS[name]
    given = offline(entry.file, _FOLDERS)
    text = files.read_text(given) if given else decoded(download(entry.url), entry.url)
    _check(entry, text, given or entry.url)
    target = files.cache_folder() / "published" / entry.file
    with files.atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def _check(entry: PublishedSet, text: str, where: Path | str) -> None:
    """Refuse a file whose questions or judge prompts are not those of the set of this name."""
    try:
        found = normalised_digest(text)
    except (EmEvalsError, AttributeError, TypeError):
        found = "not a question set"
    if found != entry.digest:
        raise EmEvalsError(
            f"the content of '{entry.name}' is not the one this version knows (digest {found}, expected "
            f"{entry.digest}): read it, then load it by its path if you trust it.",
            where,
        )


def offline(file: str, folders: Sequence[str]) -> Path | None:
    """Return a file in one of these subfolders of the folder that `EM_EVALS_DATA` names; None if absent."""
    if not (root := os.environ.get("EM_EVALS_DATA")):
        return None
    places = [Path(root).expanduser() / folder / file for folder in folders]
    return next((path for path in places if path.is_file()), None)


def download(url: str) -> bytes:
    """Download the content of a URL.

    Raises:
        EmEvalsError: the server is unreachable or returns an error.
    """
    import httpx

    try:
        with httpx.Client(timeout=60, follow_redirects=True, max_redirects=5) as client:
            response = client.get(url)
            response.raise_for_status()
    except httpx.HTTPStatusError as error:
        reason = f"the server answers {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = error.__class__.__name__
    else:
        return response.content
    raise EmEvalsError(
        f"cannot fetch {url} ({reason}): check the network, or set EM_EVALS_DATA to a folder that holds the file."
    )


def decoded(data: bytes, url: str) -> str:
    """Decode downloaded bytes as UTF-8.

    Raises:
        EmEvalsError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EmEvalsError(
            f"what was fetched is not UTF-8 text (byte {error.start}): the authors' file has changed its kind.",
            url,
        ) from None
