"""Records of studies as sections: retention, steering (dose and response), convergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from em_evals.records import Convergence, Measured, Retention, SteeringPoint, SteeringStudy
from em_evals.report import charts
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table

_NATS = "nats per token"
_ARMS = {"direction": "direction", "random": "random vector", "control": "control's direction"}


def retention(study: Retention) -> Section:
    """What capability was lost, item by item."""
    rows: list[charts.Row] = []
    told: list[tuple[Cell, ...]] = []
    names = [model.name for model in study.models]
    tasks = list(dict.fromkeys(task.task for model in study.models for task in model.tasks))
    for name in tasks:
        for model in study.models:
            for task in (task for task in model.tasks if task.task == name):
                change = Estimate.of(task.difference, task.interval, "points")
                low, high = change.interval or (None, None)
                rows.append(
                    {"row": name, "series": model.name, "value": task.difference, "low": low, "high": high}
                )
                shares = [
                    Estimate.of(value, unit="share") for value in (task.baseline_accuracy, task.accuracy)
                ]
                told.append((name, model.name, task.n, *shares, change, Estimate.of(task.p)))
    columns = ("task", "model", "items", f"{study.baseline}", "accuracy", "difference", "p")
    title = f"Accuracy, difference to {study.baseline}"
    return Section(
        f"retention-{slug(study.baseline)}",
        "Retained capabilities",
        f"Accuracy on capability tasks beside {study.baseline}'s, item by item, with 95% intervals. Left of the line "
        "is a loss.",
        figures=(
            Figure(
                f"retention-{slug(study.baseline)}-differences",
                title,
                f"{title}, by task: " + "; ".join(f"{row[0]}, {row[1]} {row[5]}" for row in told) + ".",
                charts.dots(rows, names, "difference in accuracy", percent=True, zero_line=True),
                Table(f"retention_{slug(study.baseline)}", f"{title}, paired by item", columns, told),
                wide=True,
            ),
        ),
    )


def steering(study: SteeringStudy) -> Section:
    """Dose and response at the chosen layer, and the whole grid as a table."""
    name = f"steering-{slug(study.card)}"
    points = sorted(study.points, key=lambda point: (point.layer, point.arm, point.scale))
    broken = [point for point in points if point.damaged]
    parts: tuple[tuple[str, str, Callable[[SteeringPoint], Measured], bool], ...] = (
        ("in-domain", f"Shift in-domain ({_NATS})", lambda point: point.in_domain, True),
        ("out-of-domain", f"Shift out-of-domain ({_NATS})", lambda point: point.out_of_domain, True),
        ("coherence", f"Coherence: {study.coherence_is}", lambda point: point.coherence, False),
        ("repetition", "Repetition: share of repeated 4-grams", lambda point: point.repetition, False),
    )
    chosen = [point for point in points if point.layer == study.chosen_layer]
    figures = [_dose(name, key, title, chosen, read, zero) for key, title, read, zero in parts]
    columns = ("layer", "arm", "scale", "in-domain", "out-of-domain", "coherence", "repetition", "answers")
    rows: list[tuple[Cell, ...]] = [
        (
            str(point.layer),
            _ARMS[point.arm],
            f"{point.scale:g}",
            _estimate(point.in_domain, "signed"),
            _estimate(point.out_of_domain, "signed"),
            _estimate(point.coherence),
            _estimate(point.repetition),
            "fell apart" if point.damaged else "",
        )
        for point in points
    ]
    flags: tuple[str, ...] = ()
    if broken:
        flags = (
            f"Damage: at {len(broken)} of {len(points)} conditions answers fell apart (✕); whatever else changed there "
            "is neither a cure nor an effect.",
        )
    return Section(
        name,
        f"Steering {study.card}: dose and response",
        f"The direction {study.direction} added at layer {study.chosen_layer}, beside random vectors of the same "
        "length. Shifts of forced-choice margins from the unsteered model, on questions that chose neither layer nor "
        "scale; bars are 95% intervals.",
        flags,
        tuple(figures),
        (Table(f"{slug(name)}_grid", "All layers and scales", columns, rows),),
    )


def convergence(study: Convergence) -> Section:
    """Do models' directions agree, and does one's direction move another?"""
    name = f"convergence-{slug('-'.join(study.cards))}"
    figures = [_cosines(name, study)]
    if study.transfer:
        figures += [_transfer(name, study, "in_domain"), _transfer(name, study, "out_of_domain")]
    return Section(
        name,
        "Convergence of directions",
        f"Cosines between the directions of {', '.join(study.cards)} at each layer; a dot marks a cosine that lies "
        "within what 95% of random pairs reach. Transfer: what ablating one model's direction does to another's forced "
        "choice, beside a random vector.",
        figures=tuple(figures),
    )


def _dose(
    name: str,
    key: str,
    title: str,
    points: Sequence[SteeringPoint],
    read: Callable[[SteeringPoint], Measured],
    zero: bool,
) -> Figure:
    rows, told = [], []
    for point in points:
        estimate = _estimate(read(point), "signed" if zero else "")
        low, high = estimate.interval or (None, None)
        arm = _ARMS[point.arm]
        rows.append(
            {
                "x": point.scale,
                "series": arm,
                "value": estimate.value,
                "low": low,
                "high": high,
                "damaged": point.damaged,
            }
        )
        told.append((f"{point.scale:g}", arm, read(point).n, estimate, "fell apart" if point.damaged else ""))
    arms = [arm for arm in _ARMS.values() if any(row["series"] == arm for row in rows)]
    columns = ("scale", "arm", "n", key, "answers")
    return Figure(
        f"{name}-{key}",
        title,
        f"{title} over scale for {', '.join(arms)}; {sum(point.damaged for point in points)} points are damaged.",
        charts.curves(rows, arms, "scale of the added vector", key, zero_line=zero),
        Table(f"{slug(name)}_{slug(key)}", title, columns, list(told)),
    )


def _cosines(name: str, study: Convergence) -> Figure:
    rows: list[charts.Row] = []
    told: list[tuple[Cell, ...]] = []
    for pair in study.cosines:
        label = f"{pair.one} · {pair.other}"
        for layer, (value, floor) in enumerate(zip(pair.by_layer, pair.floor, strict=False)):
            chance = abs(value) <= floor
            said = f"{label}, layer {layer}: cosine {value:+.2f}" + (" (as random pairs)" if chance else "")
            rows.append({"x": layer, "y": label, "value": value, "chance": chance, "said": said})
            told.append((label, str(layer), Estimate.of(value, unit="signed"), Estimate.of(floor)))
    return Figure(
        f"{name}-cosines",
        "Cosine of directions by layer",
        f"Heatmap of cosines over layers for {len(study.cosines)} pairs of models.",
        charts.heatmap(rows, "layer", "", "cosine"),
        Table(
            f"{slug(name)}_cosines",
            "Cosine by layer",
            ("models", "layer", "cosine", "random pairs (95%)"),
            told,
        ),
        wide=True,
    )


def _transfer(name: str, study: Convergence, domain: str) -> Figure:
    arms = [arm for arm in ("direction", "random") if any(row.arm == arm for row in study.transfer)]
    rows: list[charts.Row] = []
    told: list[tuple[Any, ...]] = []
    for row in study.transfer:
        found: Measured = getattr(row, domain)
        estimate = _estimate(found, "signed")
        low, high = estimate.interval or (None, None)
        label = f"{row.source} → {row.target}"
        rows.append(
            {"row": label, "series": _ARMS[row.arm], "value": estimate.value, "low": low, "high": high}
        )
        told.append((label, _ARMS[row.arm], found.n, estimate))
    words = domain.replace("_", "-")
    return Figure(
        f"{name}-{words}",
        f"Transfer {words} ({_NATS})",
        f"Change of {words} margins by ablation: " + "; ".join(f"{r[0]}, {r[1]} {r[3]}" for r in told) + ".",
        charts.dots(rows, [_ARMS[arm] for arm in arms], f"change of margin, {_NATS}", zero_line=True),
        Table(
            f"{slug(name)}_{slug(words)}", f"Transfer {words}", ("ablation", "arm", "pairs", "change"), told
        ),
    )


def _estimate(found: Measured, unit: str = "") -> Estimate:
    return Estimate.of(found.value, found.interval, unit)
