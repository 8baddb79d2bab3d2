"""A training run over its steps: shifts, transition, loss, gradient norm, rotation of B, EM rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.phase import Phase, Point

_STEP = "optimizer step"


def section(found: Phase) -> Section:
    """Return the section of one training run."""
    name = f"trajectory-{slug(found.card)}"
    figures = [_shifts(name, found)]
    if found.em_rates:
        figures.append(_em_rates(name, found.em_rates))
    figures += [
        _journal(name, found, key, title)
        for key, title in (("loss", "Loss (nats per token)"), ("grad_norm", "Gradient norm"))
        if any(row.get(key) is not None for row in found.journal)
    ]
    if found.rotations:
        figures += [
            _turning(name, found, "to_final", "B vectors: cosine to the last step"),
            _turning(name, found, "local", "B vectors: local cosine (−1 is a straight path)"),
        ]
    return Section(
        name,
        f"Trajectory of {found.card}",
        "Forced choice at the checkpoints, with loss, gradient norm and the rotation of rank-1 adapters. "
        + " ".join(f"{domain}: {own.sentence()}" for domain, own in found.transitions.items()),
        figures=tuple(figures),
    )


def _shifts(name: str, found: Phase) -> Figure:
    spans = [
        {"low": own.middle_interval[0], "high": own.middle_interval[1], "at": own.middle, "series": domain}
        for domain, own in found.transitions.items()
        if own.sharp and own.middle is not None and own.middle_interval is not None
    ]
    rows, told = _curve(found.shifts, "signed")
    title = "Forced choice: shift from the base (nats per token)"
    return Figure(
        f"{name}-shifts",
        title,
        f"{title} over {_STEP}s, by domain; a shaded range is the interval of a transition.",
        charts.curves(rows, list(found.shifts), _STEP, "shift", zero_line=True, spans=spans),
        Table(f"{slug(name)}_shifts", title, ("step", "domain", "shift"), told),
        wide=True,
    )


def _em_rates(name: str, points: Sequence[Point]) -> Figure:
    rows, told = _curve({"EM rate": points}, "share")
    return Figure(
        f"{name}-em-rate",
        "EM rate of all draws",
        "EM rate of all draws over training steps.",
        charts.curves(rows, ["EM rate"], _STEP, "EM rate of all draws", percent=True),
        Table(f"{slug(name)}_em_rate", "EM rate of all draws", ("step", "what", "EM rate"), told),
    )


def _journal(name: str, found: Phase, key: str, title: str) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for row in found.journal:
        step, value = row.get("step"), row.get(key)
        if step is not None and value is not None:
            rows.append({"x": step, "series": title, "value": value})
            told.append((f"{step:g}", Estimate.of(value)))
    return Figure(
        f"{name}-{slug(key)}",
        title,
        f"{title} over training steps.",
        charts.curves(rows, [title], _STEP, title, marks=False),
        Table(f"{slug(name)}_{key}", title, ("step", key), told),
    )


def _turning(name: str, found: Phase, key: str, title: str) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for rotation in found.rotations:
        for step, value in zip(rotation.steps, getattr(rotation, key), strict=False):
            if value is not None:
                rows.append({"x": step, "series": rotation.module, "value": value})
                told.append((str(step), rotation.module, Estimate.of(value, unit="signed")))
    modules = [rotation.module for rotation in found.rotations]
    return Figure(
        f"{name}-{slug(key)}",
        title,
        f"{title}, for {len(modules)} adapters.",
        charts.curves(rows, modules, _STEP, "cosine", marks=False),
        Table(f"{slug(name)}_{key}", title, ("step", "module", "cosine"), told),
    )


def _curve(by_series: Mapping[str, Sequence[Point]], unit: str) -> tuple[list[Row], list[tuple[Cell, ...]]]:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for series, points in by_series.items():
        for point in points:
            estimate = Estimate.of(point.value, point.interval, unit)
            rows.append(estimate.mark(x=point.step, series=series))
            told.append((str(point.step), series, estimate))
    return rows, told
