"""The section on `em-evals verify`: whether a card's numbers are those of plain transformers, PEFT and hooks."""

from __future__ import annotations

from em_evals.report.section import Section, slug
from em_evals.report.tables import Cell, Table
from em_evals.results.records.verify import Verification

_UNITS = {"nats": "nats", "relative": "of its norm", "tokens": "tokens", "tensors": "tensors"}


def section(found: Verification) -> Section:
    """Return the checks of one card; a failed one is a flag."""
    name = f"verify-{slug(found.card)}"
    compared = [row for row in found.rows if row.verdict != "skipped"]
    rows: list[tuple[Cell, ...]] = [
        (
            row.name,
            _number(row.largest, row.unit),
            _number(row.tolerance, row.unit),
            row.n,
            row.verdict,
            row.reason,
        )
        for row in found.rows
    ]
    wrong = [row.name for row in found.rows if row.verdict == "wrong"]
    flags = (f"{found.card} is wrong in {', '.join(wrong)}: its numbers are not exact.",) if wrong else ()
    columns = ("check", "largest deviation", "tolerance", "values", "verdict", "remark")
    return Section(
        name,
        f"Exactness of {found.card}",
        f"{found.base}, {found.dtype} on {found.device}, compared with plain transformers, PEFT and hooks: "
        f"{sum(row.verdict == 'ok' for row in compared)} of {len(compared)} checks are within their tolerance. "
        f"Tolerance: {found.rule}.",
        flags=flags,
        tables=(Table(f"{slug(name)}_checks", f"Checks of {found.card}", columns, rows),),
    )


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} {unit}" if unit in ("tokens", "tensors") else f"{value:.1e} {_UNITS[unit]}"
