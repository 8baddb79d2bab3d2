"""Tables: shown under a figure, and exported as CSV for papers. Numbers are rounded only for display."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_evals import files, shown


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, if it has one.

    Attributes:
        value: None if there is no number.
        interval: (low, high); None if there is no interval.
        unit: `share` (a fraction, shown as a percentage), `points` (a difference of fractions), `signed`, `setting`
            (chosen, not measured: shown as given) or empty.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    unit: str = ""

    @classmethod
    def of(
        cls, value: float | None, interval: Sequence[float | None] | None = None, unit: str = ""
    ) -> Estimate:
        """Build an estimate from values in which None and NaN mean a missing number."""
        known = [end for end in interval or () if end is not None and math.isfinite(end)]
        number = value if value is not None and math.isfinite(value) else None
        return cls(number, (known[0], known[1]) if len(known) == 2 and number is not None else None, unit)

    def mark(self, **place: Any) -> dict[str, Any]:
        """Return the row of a chart that draws this estimate at a place."""
        low, high = self.interval or (None, None)
        return {**place, "value": self.value, "low": low, "high": high}

    @property
    def interval_text(self) -> str:
        """The interval alone; empty without one."""
        if self.interval is None:
            return ""
        return f"[{', '.join(_number(end, self.unit) for end in self.interval)}]"

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        text = _number(self.value, self.unit) + {"share": "%", "points": " points"}.get(self.unit, "")
        return f"{text} {self.interval_text}" if self.interval else text


Cell = str | int | Estimate
Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under their columns. `name` is the CSV file's name; the first column identifies the row."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, for its alignment."""
        return [
            any(isinstance(row[i], int | Estimate) for row in self.rows) for i in range(len(self.columns))
        ]

    def write(self, folder: Path) -> Path:
        """Write NAME.csv with unrounded numbers; interval ends get their own columns."""
        path = folder / f"{self.name}.csv"
        heads, rows = self.flat()
        with (
            files.atomic(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(map(shown.cell, heads))
            writer.writerows([_in_csv(value) for value in row] for row in rows)
        return path

    def flat(self) -> tuple[list[str], list[list[Value]]]:
        """Column names and rows of plain values; an interval's ends are columns of their own, None is no number."""
        spread = [any(_bounded(row[i]) for row in self.rows) for i in range(len(self.columns))]
        heads = [
            head
            for name, wide in zip(self.columns, spread, strict=True)
            for head in ((name, f"{name} low", f"{name} high") if wide else (name,))
        ]
        rows = [
            [value for cell, wide in zip(row, spread, strict=True) for value in _values(cell, wide)]
            for row in self.rows
        ]
        return heads, rows


def _bounded(cell: Cell) -> bool:
    return isinstance(cell, Estimate) and cell.interval is not None


def _values(cell: Cell, wide: bool) -> list[Value]:
    if not isinstance(cell, Estimate):
        return [cell, None, None] if wide else [cell]
    ends: tuple[float | None, ...] = cell.interval or (None, None)
    return [cell.value, *(ends if wide else ())]


def _in_csv(value: Value) -> str | int | float:
    if value is None:
        return ""
    return shown.cell(value) if isinstance(value, str) else value


def _number(value: float, unit: str) -> str:
    """Format a number with enough digits for rare events, and with a true minus sign."""
    if unit == "setting":
        return f"{value:g}".replace("-", "−")
    if unit in ("share", "points"):
        percent = value * 100
        digits = 1 if abs(percent) >= 10 else 2
        text = f"{percent:{'+' if unit == 'points' else ''}.{digits}f}"
    else:
        text = f"{value:{'+' if unit == 'signed' else ''}.{3 if abs(value) < 10 else 1}f}"
    return text.replace("-", "−")
