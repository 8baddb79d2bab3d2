"""Names that a shell completes: cards, question sets and training data, without importing anything heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer


def cards(incomplete: str) -> list[str]:
    """Return the cards whose names begin as typed, then folders."""
    from em_evals.content import documents

    return _begin(documents.names("adapters"), incomplete) + _folders(incomplete)


Card = Annotated[
    str, typer.Argument(help="A card, a PEFT or model folder, or a hub id.", autocompletion=cards)
]
"""A model under test as the argument of a command."""


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _folders(incomplete: str) -> list[str]:
    place = Path(incomplete)
    parent = place if incomplete.endswith("/") or not incomplete else place.parent
    try:
        found = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
    return [f"{path}/" for path in found if str(path).startswith(incomplete)]
