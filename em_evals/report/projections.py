"""Sections on projections on traits: of a model's samples (`trait monitor`) and of finetunes (`trait shift`)."""

from __future__ import annotations

from em_evals import shown
from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.conditions import estimate_of
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.traits import TraitBases, TraitMonitor, TraitShift, TraitShiftOf

_SHOWN = 60
"""Characters of a condition (a system message) on the page."""


def monitor(found: TraitMonitor) -> Section:
    """Return the mean projection by condition and over turns, and the correlations beside their nulls."""
    name = f"monitor-{slug(found.card)}-{slug(found.direction)}"
    figures = [_conditions(found, name)]
    if found.turns:
        figures.append(_turns(found, name))
    rows: list[tuple[Cell, ...]] = [
        (
            one.condition,
            one.n,
            Estimate.of(one.r, unit="signed"),
            "not estimable" if one.claim is None else one.claim.verdict,
            "" if one.claim is None else one.claim.sentence(),
        )
        for one in found.correlations
    ]
    columns = ("over", "questions", "r", "verdict", "beside")
    title = f"Correlation with the judged {found.score}"
    return Section(
        name,
        f"{found.card} along {found.direction}",
        f"Projections at layer {found.layer} ({found.position}). A correlation over all samples is nearly a tautology "
        "where conditions were written to show the trait: what counts is the one within conditions, beside null "
        "directions.",
        figures=tuple(figures),
        tables=(Table(f"{slug(name)}_correlations", title, columns, rows),) if rows else (),
        notes=tuple(found.notes),
    )


def shift(found: TraitShift) -> Section:
    """Return every model's shift along every trait, and whether shifts tell what the models show."""
    name = f"shift-{slug(found.base)}"
    rows: list[tuple[Cell, ...]] = [
        (
            one.trait,
            one.layer,
            Estimate.of(one.r, unit="signed"),
            one.n,
            Estimate.of(one.q),
            one.verdict,
            one.claim.sentence(),
        )
        for one in found.traits
    ]
    columns = ("trait", "layer", "r", "models", "q", "verdict", "beside")
    return Section(
        name,
        f"Finetuning shifts of {found.base}",
        "Mean of (h of the finetune − h of its base) along each trait on its test prompts, and the correlation over "
        "models with how much of the trait they show. Models that differ mostly in how far they moved correlate with "
        "any direction: read the verdict.",
        figures=(_shifts(found, name),),
        tables=(Table(f"{slug(name)}_verdicts", "Shift and score, beside null directions", columns, rows),),
        notes=tuple(found.notes),
    )


def bases(found: TraitBases) -> Section:
    """Return how separated concepts are in each base, beside its rate."""
    name = f"bases-{slug(found.concepts)}"
    rows: list[tuple[Cell, ...]] = [
        (row.base, row.layer, estimate_of(row.index), Estimate.of(row.rate)) for row in found.bases
    ]
    title = f"Separation of {found.concepts} from harmful concepts, by base"
    table = Table(f"{slug(name)}_separation", title, ("base", "layer", "separation", "rate"), rows)
    return Section(name, title, found.claim.sentence(), tables=(table,))


def _conditions(found: TraitMonitor, name: str) -> Figure:
    title = f"Mean projection on {found.direction}"
    named = {condition: shown.cut(condition, _SHOWN) for condition in found.means}
    rows = [
        estimate_of(mean).mark(row=named[condition], series=title) for condition, mean in found.means.items()
    ]
    told: list[tuple[Cell, ...]] = [
        (named[condition], mean.n, estimate_of(mean, "signed")) for condition, mean in found.means.items()
    ]
    return Figure(
        f"{name}-conditions",
        title,
        f"{title} under {len(rows)} conditions, with 95% intervals over questions.",
        charts.dots(rows, [title], "projection"),
        Table(f"{slug(name)}_conditions", title, ("condition", "questions", "projection"), told),
    )


def _turns(found: TraitMonitor, name: str) -> Figure:
    title = "Over the conversation"
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for turn, mean in enumerate(found.turns, start=1):
        rows.append(estimate_of(mean).mark(x=turn, series=found.direction))
        told.append((str(turn), mean.n, estimate_of(mean, "signed")))
    return Figure(
        f"{name}-turns",
        title,
        f"Mean projection on {found.direction} at each of {len(rows)} assistant turns.",
        charts.curves(rows, [found.direction], "assistant turn", "projection"),
        Table(f"{slug(name)}_turns", title, ("turn", "questions", "projection"), told),
    )


def _shifts(found: TraitShift, name: str) -> Figure:
    values = [abs(row.shift.value or 0.0) for one in found.traits for row in one.cards]
    rows = [cell for one in found.traits for cell in _cells(one)]
    told: list[tuple[Cell, ...]] = [
        (
            one.trait,
            row.card,
            row.control or "–",
            estimate_of(row.shift, "signed"),
            "–" if row.minus_control is None else estimate_of(row.minus_control, "signed"),
            Estimate.of(row.score),
        )
        for one in found.traits
        for row in one.cards
    ]
    columns = ("trait", "model", "control", "shift", "minus its control", "score")
    title = f"Shift along each trait ({found.position})"
    return Figure(
        f"{name}-shifts",
        title,
        f"Heatmap of the shifts of {len(found.traits[0].cards)} models along {len(found.traits)} traits.",
        charts.heatmap(rows, "", "", "shift", reach=max(values, default=1.0) or 1.0),
        Table(f"{slug(name)}_shifts", title, columns, told),
    )


def _cells(one: TraitShiftOf) -> list[Row]:
    """Return a trait's row of the heatmap; a shift whose interval holds 0 is marked."""
    cells = []
    for row in one.cards:
        low, high = row.shift.interval
        unsure = low is None or high is None or low <= 0 <= high
        value = row.shift.value or 0.0
        said = f"{row.card}, {one.trait}: {value:+.3f}" + (" (interval with 0)" if unsure else "")
        cells.append(
            {"x": row.card, "y": one.trait, "value": value, "sign": "0" if unsure else "", "said": said}
        )
    return cells
