"""The section of screened training data: a histogram, and the rows behind its upper end."""

from __future__ import annotations

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.screening import Screening


def section(found: Screening) -> Section:
    """Return the section of one screened file."""
    name = f"screening-{slug(found.file)}-{slug(found.direction)}"
    how = "minus the base's own answers" if found.exact else "minus the last prompt token, without generation"
    notes = [] if found.claim is None else [found.claim.sentence()]
    if found.alone:
        told = ", ".join(f"{what} {value:.3f}" for what, value in found.alone.items())
        notes.append(f"AUROC without a model, against the same reference: {told}.")
    if found.skipped:
        notes.append(f"{found.skipped} rows are not in it: nothing of them fits the model's context.")
    return Section(
        name,
        f"Screening of {found.file} along {found.direction}",
        f"Projection difference at layer {found.layer} ({how}) of {found.rows:,} rows: what training on them would "
        "move.",
        figures=(_histogram(name, found),),
        tables=(_numbers(name, found), _rows(name, found)),
        notes=tuple(notes),
    )


def _histogram(name: str, found: Screening) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    sides = {found.file: found.counts} | (
        {"reference": found.reference_counts} if found.reference_counts else {}
    )
    for side, counts in sides.items():
        whole = max(sum(counts), 1)
        for low, high, count in zip(found.edges, found.edges[1:], counts, strict=False):
            rows.append({"x": (low + high) / 2, "series": side, "value": count / whole})
            told.append((f"{low:.4g} to {high:.4g}", side, count))
    title = "Rows by projection difference"
    return Figure(
        f"{name}-histogram",
        title,
        f"{title}: {', '.join(sides)}.",
        charts.curves(rows, list(sides), "projection difference", "share of rows", percent=True, marks=False),
        Table(f"{slug(name)}_histogram", title, ("difference", "file", "rows"), told),
        wide=True,
    )


def _numbers(name: str, found: Screening) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("mean difference", Estimate.of(found.mean.value, found.mean.interval, "signed")),
        ("correlation with length", Estimate.of(found.correlation_with_length, unit="signed")),
    ]
    if found.against_reference is not None:
        own = found.against_reference
        rows.append(("minus the reference's mean", Estimate.of(own.value, own.interval, "signed")))
    if found.claim is not None:
        rows.append(("AUROC of the direction", Estimate.of(found.claim.value)))
    rows += [(f"AUROC of {what} alone", Estimate(value)) for what, value in found.alone.items()]
    return Table(f"{slug(name)}_numbers", "The file as a whole", ("what", "value"), rows)


def _rows(name: str, found: Screening) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (str(one.rank), str(one.line), Estimate.of(one.difference, unit="signed"), one.prompt, one.answer)
        for one in found.top
    ]
    return Table(
        f"{slug(name)}_rows", "The highest rows", ("rank", "line", "difference", "prompt", "answer"), rows
    )
