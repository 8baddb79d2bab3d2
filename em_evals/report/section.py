"""The parts of a page: sections with sentences, figures and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from em_evals.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A chart with its description and table.

    Attributes:
        name: id of its element on the page, and name of its file.
        title: a short heading.
        description: text alternative for readers who cannot see the chart.
        chart: an Altair chart.
        table: the same numbers; None if another figure's table has them.
        wide: whether it takes the full width.
        answers: whether its marks link to sampled answers (rows with `i`).
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
    """A part of the page. `flags` are warnings, shown prominently."""

    name: str
    title: str
    lead: str
    flags: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())


def slug(text: str) -> str:
    """Return a name that is valid for files and elements."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "unnamed"
