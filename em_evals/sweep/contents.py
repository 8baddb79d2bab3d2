"""Digests of the content that a measurement reads: what its arguments name, and what hides shipped content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from em_evals.content import documents, identity

_KINDS = tuple(kind for kind in get_args(documents.Kind) if kind != "adapters")
_POLICY = ("gate.yaml",)
"""The gate's policy where none is named."""


def digests(words: Iterable[str]) -> list[str]:
    """Return `KIND/NAME=digest` of content, sorted.

    Counted is every file or content that a word names (also after `=` and between commas), every scorer and cue set of
    the user, and every content of the user that hides shipped content of its name: a default may mean it.
    """
    named = {part for word in words for part in re.split(r"[=,\s]", word) if part}
    found = set()
    for kind in _KINDS:
        for name, path in documents.names(kind).items():
            own = path.parent != documents.SHIPPED / kind
            hides = own and (documents.SHIPPED / kind / path.name).is_file()
            if name in named or hides or (own and kind.startswith("scorers")):
                found.add(f"{kind}/{name}={identity.file_digest(path)}")
    for part in {*named, *(_POLICY if "gate" in named else ())}:
        path = Path(part).expanduser()
        if len(part) < 1000 and path.suffix and path.is_file():
            found.add(f"{part}={identity.file_digest(path)}")
    return sorted(found)
