"""Digests of the content that a measurement reads: what its arguments name, and what hides shipped content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from em_evals.content import documents, identity

_KINDS = tuple(kind for kind in get_args(documents.Kind) if kind != "adapters")
_POLICY = ("gate.yaml",)
"""The gate's policy where none is named."""


@dataclass(frozen=True)
class Content:
    """One content file.

    Attributes:
        label: KIND/NAME.
        name: as a command names it.
        path: its file.
        counts: whether it counts even where no word names it: every scorer of the user, and every content of the user
            that hides shipped content of its name (a default may mean it).
    """

    label: str
    name: str
    path: Path
    counts: bool


def listed() -> list[Content]:
    """List the content on this machine."""
    found = []
    for kind in _KINDS:
        for name, path in documents.names(kind).items():
            own = path.parent != documents.SHIPPED / kind
            hides = own and (documents.SHIPPED / kind / path.name).is_file()
            counts = hides or (own and kind.startswith("scorers"))
            found.append(Content(f"{kind}/{name}", name, path, counts))
    return found


def digests(words: Iterable[str], contents: Iterable[Content]) -> list[str]:
    """Return `KIND/NAME=digest` of the content that a command reads, and `FILE=digest` of files, sorted.

    Args:
        words: the command's; a name or file also counts after `=` and between commas.
        contents: what is on this machine.
    """
    named = {part for word in words for part in re.split(r"[=,\s]", word) if part}
    found = {
        f"{one.label}={identity.file_digest(one.path)}" for one in contents if one.counts or one.name in named
    }
    for part in {*named, *(_POLICY if "gate" in named else ())}:
        path = Path(part).expanduser()
        if len(part) < 1000 and path.suffix and path.is_file():
            found.add(f"{part}={identity.file_digest(path)}")
    return sorted(found)
