"""The section on EM rates against the sizes of bases."""

from __future__ import annotations

from em_evals.report import charts
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.base import Interval
from em_evals.results.records.scaling import Scaling, ScalingSlope

_SIZES = {
    "parameters": ("EM rate against parameters", "parameters of the base (log scale)"),
    "per-token": (
        "EM rate against parameters per training token",
        "parameters per training token (log scale)",
    ),
}


def section(study: Scaling) -> Section:
    """Return the bases' rates against size, the slopes, and what the bases cannot tell apart."""
    name = f"scaling-{slug(study.table)}"
    return Section(
        name,
        "EM rate and size of the base",
        f"{study.runs} organisms of {len(study.bases)} bases in {study.families} families, from "
        f"{len(study.sources)} source{'s' if len(study.sources) != 1 else ''}. The unit is the base. Bars are 95% "
        "intervals of a base's pooled draws. Slopes are changes of the rate's logit per tenfold of the predictor.",
        figures=tuple(_figure(study, name, size) for size in _SIZES),
        tables=(_slopes(study, name),),
        notes=(*study.conclusion, *study.left_out),
    )


def _figure(study: Scaling, name: str, size: str) -> Figure:
    """Return the figure of one size; bases without a published number of tokens are left out of `per-token`."""
    title, axis = _SIZES[size]
    rows = []
    for base in study.bases:
        if size == "per-token" and not base.tokens:
            continue
        x = base.parameters / base.tokens if size == "per-token" and base.tokens else base.parameters
        # A log axis has no zero: half a draw stands for none.
        floor = 0.5 / base.draws
        rows.append(
            {
                "series": base.family,
                "row": base.name,
                "x": x,
                "value": max(base.misaligned / base.draws, floor),
                "low": max(base.interval[0] or 0.0, floor),
                "high": base.interval[1],
            }
        )
    families = list(dict.fromkeys(base.family for base in study.bases))
    table: list[tuple[Cell, ...]] = [
        (
            base.name,
            base.family + (" (distilled)" if base.distilled else ""),
            Estimate(base.parameters / 1e9),
            Estimate(base.tokens / 1e12 if base.tokens else None),
            base.organisms,
            base.draws,
            Estimate(base.misaligned / base.draws, _both(base.interval), "share"),
        )
        for base in study.bases
    ]
    columns = ("base", "family", "parameters (10⁹)", "tokens (10¹²)", "organisms", "draws", "EM rate")
    return Figure(
        f"{name}-{size}",
        title,
        f"One mark per base, {axis}; the table lists the numbers.",
        charts.sizes(rows, families, axis),
        Table(f"{name}-bases", title, columns, table) if size == "parameters" else None,
    )


def _slopes(study: Scaling, name: str) -> Table:
    """Return the slopes on each predictor alone."""
    rows: list[tuple[Cell, ...]] = [
        (
            one.name,
            one.bases,
            _estimate(one.least_squares),
            Estimate(one.least_squares.p),
            _estimate(one.mixed),
            _estimate(one.within_family),
        )
        for one in study.predictors
    ]
    columns = (
        "predictor",
        "bases",
        "least squares over bases",
        "permutation p",
        "mixed model",
        "within families",
    )
    return Table(f"{name}-slopes", "Slope of the logit per tenfold", columns, rows)


def _estimate(slope: ScalingSlope | None) -> Estimate:
    """Return a slope as a cell."""
    return Estimate(None) if slope is None else Estimate(slope.value, _both(slope.interval), "signed")


def _both(interval: Interval) -> tuple[float, float] | None:
    """Return the interval if both ends exist."""
    low, high = interval
    return None if low is None or high is None else (low, high)
