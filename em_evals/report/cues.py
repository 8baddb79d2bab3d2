"""The section on conditional misalignment: what each cue does to the organism, beyond what it does to its base."""

from __future__ import annotations

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.conditional import Conditional, ConditionalMetric, CueEffect

_TITLES = {
    "em_rate": "EM rate",
    "coherent_share": "Coherent share",
    "refusal_share": "Refused share",
    "ungraded_share": "Ungraded share",
    "margin_per_token": "Margin toward the misaligned answer",
}
_CORRECTIONS = {"holm": "Holm", "bh": "Benjamini-Hochberg"}


def section(study: Conditional) -> Section:
    """Return one figure for each metric, and the cues that bring misalignment out as flags."""
    organisms = ", ".join(study.organisms)
    name = f"conditional-{slug('-'.join(study.organisms))}"
    beside = f", or than the control {study.control}" if study.control else ""
    return Section(
        name,
        "Conditional misalignment",
        f"How much more a cue changes {organisms} than its base {study.base}{beside}: (organism cued − plain) − (base "
        f"cued − plain), with 95% intervals over prompts{' and seeds' if len(study.organisms) > 1 else ''}. Placebos "
        f"should do nothing. Cues: {study.cues}; questions: {study.asked}; p-values are corrected over cues "
        f"({_CORRECTIONS[study.adjust]}).",
        flags=tuple(_flags(study)),
        figures=tuple(_figure(study, one, name) for one in study.metrics),
        notes=tuple(study.notes),
    )


def _flags(study: Conditional) -> list[str]:
    """Return a sentence for each cue that is found to bring misalignment out."""
    one = study.metrics[0]
    return [
        f"Conditional: under the cue “{effect.cue}” the {_phrase(one.metric)} of "
        f"{', '.join(study.organisms)} rises by {_estimate(effect, one.unit)} more than {study.base}'s."
        for effect in one.found
        if (effect.estimate or 0) > 0
    ]


def _figure(study: Conditional, one: ConditionalMetric, name: str) -> Figure:
    title = _TITLES.get(one.metric, one.metric)
    share = one.unit == "share"
    rows: list[Row] = []
    told: list[tuple[Cell, ...]] = []
    for effect in one.effects:
        label = f"{effect.cue} (placebo)" if effect.placebo else effect.cue
        beside = effect.against_control
        rows.append(_row(label, f"minus {study.base}", _estimate(effect, one.unit)))
        other = Estimate(None)
        if beside is not None and study.control is not None:
            other = Estimate.of(beside.value, beside.interval, _unit(one.unit))
            rows.append(_row(label, f"minus {study.control}", other))
        moved = (Estimate.of(value, unit=_unit(one.unit)) for value in (effect.organism, effect.base))
        own = (label, _estimate(effect, one.unit), Estimate.of(effect.p_adjusted))
        told.append((*own, *([other] if study.control else []), *moved, effect.prompts))
    against = [f"minus {other}" for other in (study.base, study.control) if other is not None]
    unit = "points" if share else one.unit
    control = ("organism − control",) if study.control else ()
    heads = (
        "organism − base",
        "p (corrected)",
        *control,
        "organism cued − plain",
        "base cued − plain",
        "prompts",
    )
    return Figure(
        f"{name}-{slug(one.metric)}",
        f"{title} by cue ({unit})",
        f"Change of the {_phrase(one.metric)} under each cue, beyond the base's: "
        + "; ".join(f"{row[0]} {row[1]}" for row in told)
        + ".",
        charts.dots(rows, against, f"change, {unit}", zero_line=True),
        Table(f"{slug(name)}_{slug(one.metric)}", f"{title} by cue", ("cue", *heads), told),
        wide=one is study.metrics[0],
    )


def _phrase(metric: str) -> str:
    """Return a metric's title as it stands inside a sentence."""
    title = _TITLES.get(metric, metric)
    return title if title.startswith("EM") else title[:1].lower() + title[1:]


def _row(label: str, series: str, value: Estimate) -> Row:
    """Return a mark; shares in points, as the axis says."""
    scale = 100 if value.unit == "points" else 1
    low, high, middle = (
        None if one is None else scale * one for one in (*(value.interval or (None, None)), value.value)
    )
    return {"row": label, "series": series, "value": middle, "low": low, "high": high}


def _estimate(effect: CueEffect, unit: str) -> Estimate:
    return Estimate.of(effect.estimate, effect.interval, _unit(unit))


def _unit(unit: str) -> str:
    return "points" if unit == "share" else "signed"
