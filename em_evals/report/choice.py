"""Forced choice by theme: every model's margins, and the paired differences to the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from em_evals.report import charts
from em_evals.report.answers import Measured
from em_evals.report.chart_parts import Row
from em_evals.report.looks import Looks
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Estimate, Table
from em_evals.stats import intervals, paired

_UNIT = "nats per token"
_IN, _OUT = "all in-domain", "all out-of-domain"


def sections(scored: Sequence[Measured], looks: Looks) -> list[Section]:
    """Return one section per set of pairs; different texts under the same name are a different set."""
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for entry in scored:
        key = entry.task, entry.asked, entry.identity.get("question set", "")
        groups.setdefault(key, []).append(entry)
    named = Counter((task, asked) for task, asked, _ in groups)
    return [
        _section(task, asked, entries, looks, _apart(asked, digest) if named[task, asked] > 1 else ())
        for (task, asked, digest), entries in groups.items()
    ]


def _apart(asked: str, digest: str) -> tuple[str, ...]:
    return (
        f"Pairs with other texts were scored under the name {asked} (here those with digest {digest or 'unknown'}): "
        "they are not compared; score the same pairs with all models.",
    )


def _section(task: str, asked: str, entries: list[Measured], looks: Looks, notes: tuple[str, ...]) -> Section:
    name = f"choice-{slug(asked)}"
    title = "Forced choice" if task == "forced_choice" else f"Held-out prompts of the narrow domain ({asked})"
    groups = _groups(entries)
    figures = [_margins(name, entries, groups, looks)]
    if len(entries) > 1:
        figures.append(_differences(name, entries, groups, looks))
    return Section(
        name,
        title,
        "Which of two fixed answers does a model find likelier? Margins toward the misaligned answer in nats per "
        "token, means over pairs with Student's 95% intervals. A single model's margin mixes values with "
        "everything else that makes an answer likely; interpret the paired differences, and those to a matched "
        "control.",
        figures=tuple(figures),
        notes=notes,
    )


def _groups(entries: Sequence[Measured]) -> dict[str, set[str]]:
    """Return the pair ids by theme, narrow domains first, and of all themes of either kind."""
    pairs = {name: pair for entry in entries for name, pair in entry.pairs.items()}
    themes = sorted({(not pair.narrow, pair.theme) for pair in pairs.values()})
    result = {}
    for is_broad, whole in ((False, _IN), (True, _OUT)):
        own = [theme for broad, theme in themes if broad == is_broad]
        if len(own) > 1:
            result[whole] = {name for name, pair in pairs.items() if pair.narrow != is_broad}
        for theme in own:
            label = theme if is_broad else f"{theme} (in-domain)"
            result[label] = {
                name for name, pair in pairs.items() if pair.theme == theme and pair.narrow != is_broad
            }
    return result


def _margins(name: str, entries: Sequence[Measured], groups: dict[str, set[str]], looks: Looks) -> Figure:
    rows: list[Row] = []
    told: list[tuple[Any, ...]] = []
    for group, members in groups.items():
        for entry in entries:
            values = [pair.margin for key, pair in entry.pairs.items() if key in members]
            if values:
                value, interval = sum(values) / len(values), intervals.mean(values)
                _add(rows, told, group, entry.label, value, interval, len(values))
    return Figure(
        f"{name}-margins",
        f"Margin toward the misaligned answer ({_UNIT})",
        _described("Mean margins", told),
        charts.dots(
            rows, [entry.label for entry in entries], f"margin, {_UNIT}", zero_line=True, looks=looks
        ),
        Table(f"{slug(name)}_margins", f"Margins, {_UNIT}", ("theme", "model", "pairs", "margin"), told),
    )


def _differences(name: str, entries: Sequence[Measured], groups: dict[str, set[str]], looks: Looks) -> Figure:
    first, *others = entries
    rows: list[Row] = []
    told: list[tuple[Any, ...]] = []
    before = {key: pair.margin for key, pair in first.pairs.items()}
    for group, members in groups.items():
        for entry in others:
            after = {key: pair.margin for key, pair in entry.pairs.items() if key in members}
            found = paired.difference(before, after, binary=False)
            if found.n:
                _add(rows, told, group, entry.label, found.value, found.interval, found.n)
    caption = f"Differences to {first.label}, {_UNIT}"
    return Figure(
        f"{name}-differences",
        f"Difference to {first.label}, pair by pair ({_UNIT})",
        _described(f"Mean paired differences to {first.label}", told),
        charts.dots(
            rows, [entry.label for entry in others], f"difference, {_UNIT}", zero_line=True, looks=looks
        ),
        Table(f"{slug(name)}_differences", caption, ("theme", "model", "pairs", "difference"), told),
    )


def _add(
    rows: list[Row],
    told: list[tuple[Any, ...]],
    group: str,
    label: str,
    value: float,
    interval: intervals.Interval,
    count: int,
) -> None:
    estimate = Estimate.of(value, interval, "signed")
    rows.append(estimate.mark(row=group, series=label))
    told.append((group, label, count, estimate))


def _described(what: str, told: Sequence[tuple[Any, ...]]) -> str:
    return f"{what}: " + "; ".join(f"{group}, {label} {value}" for group, label, _, value in told) + "."
