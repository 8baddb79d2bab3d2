"""Sections of drift during training: a figure per direction, beside what random directions drift."""

from __future__ import annotations

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.drift import Drift, TraitDrift

FIGURES = 6
"""Directions with a figure, those of the largest drift; the table has all."""
_RANDOM = "95% of random directions"


def section(found: Drift) -> Section:
    """Return the section of one comparison."""
    name = f"drift-{slug(found.runs[0])}"
    traits = list(dict.fromkeys(one.trait for one in found.drifts))
    by_trait = {trait: [one for one in found.drifts if one.trait == trait] for trait in traits}
    ranked = sorted(traits, key=lambda trait: -max(_size(one) for one in by_trait[trait]))[:FIGURES]
    minus = f" minus {', '.join(found.controls)}" if found.controls else ""
    return Section(
        name,
        f"Drift of {', '.join(found.runs)}",
        f"Projections of {found.prompts} fixed prompts during training{minus}, in units of the untrained activations' "
        "mean norm. Bars belong to a 95% band over all steps. Specific: beyond random directions of equal norm, also "
        "those with the base's covariance, and beyond the style traits.",
        figures=tuple(_figure(name, trait, by_trait[trait]) for trait in ranked),
        tables=(_table(name, found), *([_alarms(name, found)] if found.alarms else [])),
        notes=tuple(found.notes),
    )


def _size(one: TraitDrift) -> float:
    top = one.largest
    return abs(top.value or 0) if top else 0.0


def _figure(name: str, trait: str, drifts: list[TraitDrift]) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for one in drifts:
        for point in one.points:
            drift = Estimate.of(point.value, point.interval, "signed")
            rows.append(drift.mark(x=point.step, series=one.run))
            told.append((str(point.step), one.run, drift))
    series = [one.run for one in drifts]
    widest = max(drifts, key=lambda one: max(one.floor, default=0.0))
    if widest.floor:
        series.append(_RANDOM)
        for point, value in zip(widest.points, widest.floor, strict=True):
            rows.append(Estimate(value).mark(x=point.step, series=_RANDOM))
            told.append((str(point.step), _RANDOM, Estimate(value)))
    title = f"{trait} at layer {drifts[0].layer}: {drifts[-1].claim.verdict}"
    return Figure(
        f"{name}-{slug(trait)}",
        title,
        f"Drift along {trait} over optimizer steps.",
        charts.curves(rows, series, "optimizer step", "drift", zero_line=True),
        Table(f"{slug(name)}_{slug(trait)}", title, ("step", "run", "drift"), told),
    )


def _table(name: str, found: Drift) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in found.drifts:
        top = one.largest
        random = max(
            (
                null.high
                for null in one.claim.nulls
                if null.high is not None and null.draws > len(found.drifts)
            ),
            default=None,
        )
        rows.append(
            (
                one.trait,
                one.run,
                one.kind or "–",
                Estimate.of(top.value, top.interval, "signed") if top else Estimate(None),
                str(top.step) if top else "–",
                Estimate.of(random),
                one.claim.verdict,
            )
        )
    columns = ("trait", "run", "kind", "largest drift", "step", "95% of random directions", "verdict")
    return Table(f"{slug(name)}_largest", "Largest drift over steps", columns, rows)


def _alarms(name: str, found: Drift) -> Table:
    rows: list[tuple[Cell, ...]] = [(one.run, one.verdict, one.sentence) for one in found.alarms]
    return Table(f"{slug(name)}_alarms", "Alarms", ("run", "verdict", "why"), rows)
