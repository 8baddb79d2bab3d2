"""Margins under named conditions (an ablation, a disabled adapter): a figure shared by the sections of studies."""

from __future__ import annotations

from collections.abc import Sequence

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.section import Figure, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.base import Measured

NATS = "nats per token"
ARMS = {"direction": "direction", "random": "random vector", "control": "control's direction"}
"""Names of a study's arms on the page."""


def estimate_of(found: Measured, unit: str = "") -> Estimate:
    """Convert a record's measurement to a table's estimate."""
    return Estimate.of(found.value, found.interval, unit)


def conditions(
    name: str, key: str, title: str, found: Sequence[tuple[str, Measured, Measured, bool]]
) -> tuple[Figure, ...]:
    """Return a figure of in-domain and out-of-domain values by condition; none without conditions.

    Args:
        name: the section's name.
        key: suffix of the figure's name.
        title: the figure's title.
        found: (condition, in-domain, out-of-domain, whether its answers are incoherent).
    """
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for label, inside, outside, damaged in found:
        for domain, value in (("in-domain", inside), ("out-of-domain", outside)):
            estimate = estimate_of(value, "signed")
            rows.append(estimate.mark(row=f"✕ {label}" if damaged else label, series=domain))
            told.append((label, domain, value.n, estimate, "incoherent" if damaged else ""))
    if not rows:
        return ()
    described = f"{title}: " + "; ".join(f"{row[0]}, {row[1]} {row[3]}" for row in told) + "."
    table = Table(f"{slug(name)}_{key}", title, ("condition", "domain", "pairs", "change", "answers"), told)
    chart = charts.dots(rows, ["in-domain", "out-of-domain"], f"change of margin, {NATS}", zero_line=True)
    return (Figure(f"{name}-{key}", title, described, chart, table, wide=True),)
