"""Records of studies as sections: retention, convergence, rank-1 scalars. Steering has a file of its own."""

from __future__ import annotations

from typing import Any

from em_evals.records import Convergence, LoraScalars, Measured, Retention
from em_evals.report import charts
from em_evals.report.conditions import ARMS, NATS, conditions, estimate_of
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table


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
        notes=tuple(study.notes),
    )


def scalars(study: LoraScalars) -> Section:
    """What rank-1 adapters read, and what switching them off does."""
    name = f"scalars-{slug(study.card)}"
    knocked = [(f"{row.model}, block {row.layer}", row.narrow, row.general, False) for row in study.knockouts]
    probes: list[tuple[Cell, ...]] = [
        (row.model, row.tells, row.adapters, row.auroc.n, estimate_of(row.auroc)) for row in study.probes
    ]
    columns = ("module", "layer", "squared mean of mean square", "distance to control")
    adapters: list[tuple[Cell, ...]] = [
        (row.module, str(row.layer), Estimate.of(row.constancy), Estimate.of(row.against_control))
        for row in study.adapters
    ]
    tables = [Table(f"{slug(name)}_adapters", "Adapters: 1 is a bias, near 0 a detector", columns, adapters)]
    if probes:
        heads = ("model", "tells", "adapters", "answers", "AUROC")
        tables.append(Table(f"{slug(name)}_probes", "Probes on the answers' mean scalars", heads, probes))
    return Section(
        name,
        f"Rank-1 scalars of {study.card}",
        "What each rank-1 adapter reads on answers, and forced choice with a block's adapter switched off: margins "
        "without it minus with it. Their intervals hold for all blocks together (Bonferroni).",
        figures=conditions(
            name, "knockouts", f"A block's adapter switched off: change of margins ({NATS})", knocked
        ),
        tables=tuple(tables),
        notes=tuple(study.notes),
    )


def _cosines(name: str, study: Convergence) -> Figure:
    rows: list[charts.Row] = []
    told: list[tuple[Cell, ...]] = []
    for pair in study.cosines:
        label = f"{pair.one} · {pair.other}"
        for layer, (value, floor) in enumerate(zip(pair.by_layer, pair.floor, strict=False)):
            chance = abs(value) <= floor
            said = f"{label}, layer {layer}: cosine {value:+.2f}" + (" (as random pairs)" if chance else "")
            rows.append({"x": layer, "y": label, "value": value, "sign": "•" if chance else "", "said": said})
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
        estimate = estimate_of(found, "signed")
        low, high = estimate.interval or (None, None)
        label = f"{row.source} → {row.target}"
        rows.append(
            {"row": label, "series": ARMS[row.arm], "value": estimate.value, "low": low, "high": high}
        )
        told.append((label, ARMS[row.arm], found.n, estimate))
    words = domain.replace("_", "-")
    return Figure(
        f"{name}-{words}",
        f"Transfer {words} ({NATS})",
        f"Change of {words} margins by ablation: " + "; ".join(f"{r[0]}, {r[1]} {r[3]}" for r in told) + ".",
        charts.dots(rows, [ARMS[arm] for arm in arms], f"change of margin, {NATS}", zero_line=True),
        Table(
            f"{slug(name)}_{slug(words)}", f"Transfer {words}", ("ablation", "arm", "pairs", "change"), told
        ),
    )
