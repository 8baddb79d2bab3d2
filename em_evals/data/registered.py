"""Entries of the YAML files in adapters/data that name what can be fetched: one's own first, then the shipped ones."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel

from em_evals.content import documents

_Entry = TypeVar("_Entry", bound=BaseModel)


def entries(file: str, kind: type[_Entry], what: str) -> dict[str, tuple[_Entry, documents.Document]]:
    """Read every entry of a file, in each folder of content; the first of a name counts.

    Args:
        file: its name in adapters/data.
        kind: what an entry is.
        what: what an entry names, for messages.

    Returns:
        Name -> entry, and the document that it stands in.

    Raises:
        EmEvalsError: an entry is invalid, with file and line.
    """
    found: dict[str, tuple[_Entry, documents.Document]] = {}
    for folder in documents.folders("adapters"):
        path = folder / "data" / file
        if not path.is_file():
            continue
        document = documents.load(path)
        data = document.data or {}
        if not isinstance(data, dict):
            raise document.error("expected `NAME: {key: value, …}` entries.")
        for name in data:
            # The name is used as a file name in the cache.
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
                raise document.error(
                    f"'{name}' cannot name {what}: use letters, digits, - and _.", (str(name),)
                )
            if name not in found:
                found[name] = documents.validate(kind, document, data[name] or {}, (name,)), document
    return found
