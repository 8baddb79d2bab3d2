"""Records of studies as sections: retention, convergence, rank-1 scalars. Steering has its own module."""

from __future__ import annotations

from typing import Any

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.conditions import ARMS, NATS, conditions, estimate_of
from em_evals.report.looks import Looks
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.base import Measured
from em_evals.results.records.studies import ACCURACIES, Convergence, LoraScalars, Retention

_MARGIN = "margin_per_byte"
"""The score of forced-choice pairs in lm-eval (tasks/retention/hooks.py)."""


def retention(study: Retention, looks: Looks) -> Section:
    """Return the section of lost capability, item by item; forced-choice margins are separate from accuracies."""
    metrics = dict.fromkeys(task.metric for model in study.models for task in model.tasks)
    shown = dict.fromkeys("accuracy" if metric in ACCURACIES else metric for metric in metrics)
    lead = (
        f"Scores compared with {study.baseline}'s, item by item, with 95% intervals. For accuracies, left of the line "
        "is a loss."
    )
    if _MARGIN in shown:
        lead += " For margins, right of the line the misaligned answer has become likelier."
    return Section(
        f"retention-{slug(study.baseline)}",
        "Retained capabilities",
        lead,
        figures=tuple(_differences(study, metric, looks) for metric in shown),
    )


def convergence(study: Convergence) -> Section:
    """Return the section on whether directions agree, and whether one model's direction affects another."""
    name = f"convergence-{slug('-'.join(study.cards))}"
    figures = [_cosines(name, study)]
    floor = " The floor that counts is the cosine of the models' own controls." if study.controls else ""
    if study.transfer:
        figures += [_transfer(name, study, "in_domain"), _transfer(name, study, "out_of_domain")]
    return Section(
        name,
        "Convergence of directions",
        f"Cosines between the directions of {', '.join(study.cards)} at each layer; a dot marks a cosine that lies "
        f"within the range of 95% of random pairs.{floor} Transfer: the effect of ablating one model's direction on "
        "another's forced choice, compared with a random vector.",
        figures=tuple(figures),
        notes=(*study.notes, *(one.sentence() for one in study.over_seeds)),
    )


def scalars(study: LoraScalars) -> Section:
    """Return the section on the scalars of rank-1 adapters and the effect of disabling them."""
    name = f"scalars-{slug(study.card)}"
    knocked = [(f"{row.model}, block {row.layer}", row.narrow, row.general, False) for row in study.knockouts]
    probes: list[tuple[Cell, ...]] = [
        (
            *(row.model, row.tells, row.adapters, row.auroc.n, estimate_of(row.auroc)),
            *(Estimate.of(row.chance), Estimate.of(row.p)),
        )
        for row in study.probes
    ]
    columns = ("module", "layer", "squared mean / mean square", "distance to control")
    adapters: list[tuple[Cell, ...]] = [
        (row.module, str(row.layer), Estimate.of(row.constancy), Estimate.of(row.against_control))
        for row in study.adapters
    ]
    tables = [Table(f"{slug(name)}_adapters", "Adapters: 1 is a bias, near 0 a detector", columns, adapters)]
    if probes:
        heads = ("model", "tells", "adapters", "questions", "AUROC", "chance (95%)", "p (max-T)")
        tables.append(Table(f"{slug(name)}_probes", "Probes on the answers' mean scalars", heads, probes))
    return Section(
        name,
        f"Rank-1 scalars of {study.card}",
        "The scalars of each rank-1 adapter on answers, and forced choice with a block's adapter disabled: margins "
        "without it minus with it. Their intervals hold jointly for all blocks (Bonferroni).",
        figures=conditions(
            name, "knockouts", f"A block's adapter disabled: change of margins ({NATS})", knocked
        ),
        tables=tuple(tables),
        notes=tuple(study.notes),
    )


def _differences(study: Retention, metric: str, looks: Looks) -> Figure:
    """Return a figure of every task's difference in a metric; `accuracy` includes all accuracy metrics."""
    accuracy = metric == "accuracy"
    kinds = ACCURACIES if accuracy else {metric}
    what = "margin toward the misaligned answer, nats per byte" if metric == _MARGIN else metric
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    found = [(task, model.name) for model in study.models for task in model.tasks if task.metric in kinds]
    order = list(dict.fromkeys(task.task for task, _ in found))
    for task, model in sorted(found, key=lambda one: order.index(one[0].task)):
        change = Estimate.of(task.difference, task.interval, "points" if accuracy else "signed")
        rows.append(change.mark(row=task.task, series=model))
        unit = "share" if accuracy else "signed"
        scores = [Estimate.of(value, unit=unit) for value in (task.baseline_accuracy, task.accuracy)]
        told.append((task.task, model, task.n, *scores, change, Estimate.of(task.p)))
    baseline, own = slug(study.baseline), "" if accuracy else slug(metric)
    title = f"{what[:1].upper()}{what[1:]}: difference to {study.baseline}"
    names = [model.name for model in study.models]
    columns = ("task", "model", "items", study.baseline, metric, "difference", "p")
    return Figure(
        f"retention-{baseline}-{own or 'differences'}",
        title,
        f"{title}, by task: " + "; ".join(f"{row[0]}, {row[1]} {row[5]}" for row in told) + ".",
        charts.dots(rows, names, f"difference in {what}", percent=accuracy, zero_line=True, looks=looks),
        Table(f"retention_{baseline}{own and '_' + own}", f"{title}, paired by item", columns, told),
        wide=True,
    )


def _cosines(name: str, study: Convergence) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for pair in study.cosines:
        label = f"{pair.one} · {pair.other}"
        own = study.of_controls(pair)
        for layer, (value, floor) in enumerate(zip(pair.by_layer, pair.floor, strict=False)):
            sign, said = "–", "none, for one of the two has no vector here"
            if value is not None:
                chance = abs(value) <= floor
                sign, said = "•" if chance else "", f"{value:+.2f}{' (as random pairs)' if chance else ''}"
            said = f"{label}, layer {layer}: cosine {said}"
            rows.append({"x": layer, "y": label, "value": value, "sign": sign, "said": said})
            cosines = (
                Estimate.of(one.by_layer[layer] if one else None, unit="signed") for one in (pair, own)
            )
            told.append((label, str(layer), *cosines, Estimate.of(floor)))
    return Figure(
        f"{name}-cosines",
        "Cosine of directions by layer",
        f"Heatmap of cosines over layers for {len(study.cosines)} pairs of models.",
        charts.heatmap(rows, "layer", "", "cosine"),
        Table(
            f"{slug(name)}_cosines",
            "Cosine by layer",
            ("models", "layer", "cosine", "their controls'", "random pairs (95%)"),
            told,
        ),
        wide=True,
    )


def _transfer(name: str, study: Convergence, domain: str) -> Figure:
    arms = [arm for arm in ("direction", "random") if any(row.arm == arm for row in study.transfer)]
    rows: list[Row] = []
    told: list[tuple[Any, ...]] = []
    for row in study.transfer:
        found: Measured = getattr(row, domain)
        estimate = estimate_of(found, "signed")
        label = f"{row.source} → {row.target}"
        rows.append(estimate.mark(row=label, series=ARMS[row.arm]))
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
