"""What a page is made of: sections with sentences, figures and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from em_evals.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A chart with what has to stand beside it.

    Attributes:
        name: names its element on the page and its file.
        title: a short heading.
        description: what it shows, in words, for those who cannot see it.
        chart: an Altair chart.
        table: the same numbers; None where another figure's table has them.
        wide: takes the whole width.
        answers: its marks stand for sampled answers (rows with `i`).
    """

    name: str
    title: str
    description: str
    chart: Any
    table: Table | None = None
    wide: bool = False
    answers: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page. `flags` are sentences that must not be overlooked."""

    name: str
    title: str
    lead: str
    flags: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())


def slug(text: str) -> str:
    """A name that files and elements can have."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "unnamed"
