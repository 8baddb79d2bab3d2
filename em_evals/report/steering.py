"""A steering study as a section: dose-response curves, all layers, ablations, contrasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.conditions import ARMS, NATS, conditions, estimate_of
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import SteeredArm, SteeringPoint, SteeringStudy

_NOTHING = Measured(value=None, interval=(None, None), n=0)


def section(study: SteeringStudy) -> Section:
    """Return the section: dose and response at the chosen layer, and the whole grid as a table."""
    name = f"steering-{slug(study.card)}"
    points = sorted(study.points, key=lambda point: (point.layer, point.arm, point.scale))
    every: list[SteeredArm] = [*points, *study.ablations]
    broken = [point for point in every if point.damaged]
    parts: list[tuple[str, str, Callable[[SteeringPoint], Measured | None], str]] = [
        ("in-domain", f"Shift in-domain ({NATS})", lambda point: point.in_domain, "signed"),
        ("out-of-domain", f"Shift out-of-domain ({NATS})", lambda point: point.out_of_domain, "signed"),
        ("coherence", f"Coherence: {study.coherence_is}", lambda point: point.coherence, ""),
        ("repetition", "Repetition: share of repeated 4-grams", lambda point: point.repetition, ""),
    ]
    if graded := any(point.em_rate is not None for point in points):
        parts.append(("em-rate", "EM rate of all draws", lambda point: point.em_rate, "share"))
    chosen = [point for point in points if point.layer == study.chosen_layer]
    figures = [_dose(name, key, title, chosen, read, unit) for key, title, read, unit in parts]
    figures += _grid(name, points)
    figures += conditions(
        name,
        "ablations",
        f"Ablated at every layer: shift of margins ({NATS})",
        [
            (f"{ARMS[row.arm]}, {row.how}", row.in_domain, row.out_of_domain, row.damaged)
            for row in study.ablations
        ],
    )
    figures += conditions(
        name,
        "contrasts",
        f"The direction minus another arm ({NATS})",
        [
            (f"{row.how}, against {ARMS[row.against]}", row.in_domain, row.out_of_domain, False)
            for row in study.contrasts
        ],
    )
    columns = ("layer", "arm", "change", "in-domain", "out-of-domain", "coherence", "repetition", "verdict")
    rows: list[tuple[Cell, ...]] = [
        *(_table_row(point, str(point.layer), f"scale {point.scale:g}", graded) for point in points),
        *(_table_row(point, "all", point.how, graded) for point in study.ablations),
    ]
    flags: tuple[str, ...] = ()
    if broken:
        flags = (
            f"Damage: at {len(broken)} of {len(every)} conditions answers are incoherent (✕); other changes there are "
            "neither a cure nor an effect.",
        )
    return Section(
        name,
        f"Steering {study.card}: dose and response",
        f"The direction {study.direction} added at layer {study.chosen_layer}, compared with random vectors of the "
        "same norm. Shifts of forced-choice margins from the unsteered model, on questions that chose neither layer "
        "nor scale; bars are 95% intervals.",
        flags,
        tuple(figures),
        (Table(f"{slug(name)}_grid", "All conditions", (*columns, *(["EM rate"] if graded else [])), rows),),
        (*([f"Damaged: {study.damage_rule}"] if study.damage_rule else []), *study.notes),
    )


def _table_row(point: SteeredArm, layer: str, change: str, graded: bool) -> tuple[Cell, ...]:
    """Return one condition's table row, with all of its measurements."""
    cells: tuple[Cell, ...] = (
        layer,
        ARMS[point.arm],
        change,
        estimate_of(point.in_domain, "signed"),
        estimate_of(point.out_of_domain, "signed"),
        estimate_of(point.coherence),
        estimate_of(point.repetition),
        point.verdict or ("damage" if point.damaged else ""),
    )
    return (*cells, estimate_of(point.em_rate or _NOTHING, "share")) if graded else cells


def _dose(
    name: str,
    key: str,
    title: str,
    points: Sequence[SteeringPoint],
    read: Callable[[SteeringPoint], Measured | None],
    unit: str,
) -> Figure:
    rows, told = [], []
    for point in points:
        measured = read(point) or _NOTHING
        estimate = estimate_of(measured, unit)
        arm = ARMS[point.arm]
        rows.append(estimate.mark(x=point.scale, series=arm, damaged=point.damaged))
        scale = Estimate.of(point.scale, unit="setting")
        told.append((scale, arm, measured.n, estimate, "incoherent" if point.damaged else ""))
    arms = [arm for arm in ARMS.values() if any(row["series"] == arm for row in rows)]
    columns = ("scale", "arm", "n", key, "answers")
    return Figure(
        f"{name}-{key}",
        title,
        f"{title} over scale for {', '.join(arms)}; {sum(point.damaged for point in points)} points are damaged.",
        charts.curves(
            rows, arms, "scale of the added vector", key, percent=unit == "share", zero_line=unit == "signed"
        ),
        Table(f"{slug(name)}_{slug(key)}", title, columns, list(told)),
    )


def _grid(name: str, points: Sequence[SteeringPoint]) -> tuple[Figure, ...]:
    """Return a heatmap of the direction's layers and scales, if there are several layers."""
    found = [point for point in points if point.arm == "direction" and point.out_of_domain.value is not None]
    if len({point.layer for point in found}) < 2:
        return ()
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for point in sorted(found, key=lambda point: (-point.scale, point.layer)):
        value, broken = point.out_of_domain.value or 0.0, "incoherent" if point.damaged else ""
        said = f"layer {point.layer}, scale {point.scale:g}: {value:+.3f} {broken}".rstrip()
        sign = "✕" if point.damaged else ""
        rows.append({"x": point.layer, "y": f"{point.scale:g}", "value": value, "sign": sign, "said": said})
        scale = Estimate.of(point.scale, unit="setting")
        told.append((str(point.layer), scale, estimate_of(point.out_of_domain, "signed"), broken))
    title = f"Every layer: shift out-of-domain ({NATS})"
    reach = max(abs(row["value"]) for row in rows) or 1.0
    return (
        Figure(
            f"{name}-layers",
            title,
            f"Heatmap over {len({row['x'] for row in rows})} layers and {len({row['y'] for row in rows})} scales.",
            charts.heatmap(rows, "layer", "scale", NATS, reach),
            Table(f"{slug(name)}_layers", title, ("layer", "scale", "shift out-of-domain", "answers"), told),
        ),
    )
