"""The report as data: its sections and their order. Rendering is left to page.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from altair.utils import schemapi

from em_evals.errors import EmEvalsError
from em_evals.report import (
    choice,
    cues,
    drift,
    headline,
    lens,
    projections,
    rates,
    scaling,
    screening,
    seeds,
    steering,
    studies,
    thoughts,
    traits,
    trajectory,
    verified,
)
from em_evals.report.answers import Measured, without_folders
from em_evals.report.headline import FirstScreen
from em_evals.report.inputs import Inputs
from em_evals.report.reference import Reference
from em_evals.report.section import Figure, Section
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results import em_rates
from em_evals.results.records import kinds
from em_evals.results.records.conditional import Conditional
from em_evals.results.records.diff import Diff
from em_evals.results.records.drift import Drift
from em_evals.results.records.forecast import Forecast
from em_evals.results.records.gate import GateVerdict
from em_evals.results.records.lens import Lens
from em_evals.results.records.phase import Phase
from em_evals.results.records.scaling import Scaling
from em_evals.results.records.screening import Screening
from em_evals.results.records.studies import Convergence, LoraScalars, Retention, SteeringStudy
from em_evals.results.records.traits import TraitBases, TraitMap, TraitMonitor, TraitShift
from em_evals.results.records.verify import Verification


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        title: the page's title.
        verdicts: verdicts of the gate.
        flags: sentences about damage, from all sections.
        reference: the model that others are compared with, and why.
        first: what a reader learns first.
        key: the table of EM rates, if there are graded answers.
        sections: sections with data.
        sampled: models whose answers can be compared side by side.
        provenance: every file, and the origin of its numbers.
    """

    title: str
    verdicts: tuple[GateVerdict, ...]
    flags: tuple[str, ...]
    reference: Reference
    first: FirstScreen
    key: Table | None
    sections: tuple[Section, ...]
    sampled: tuple[Measured, ...]
    provenance: Table

    @property
    def figures(self) -> Iterator[Figure]:
        """All figures."""
        return (figure for section in self.sections for figure in section.figures)

    @property
    def tables(self) -> Iterator[Table]:
        """All tables, each once."""
        if self.key:
            yield self.key
        for verdict in self.verdicts:
            yield gate_table(verdict)
        for section in self.sections:
            yield from (figure.table for figure in section.figures if figure.table)
            yield from section.tables
        yield self.provenance


def _rates(inputs: Inputs) -> Iterable[Section | None]:
    graded, sampled = inputs.graded, inputs.sampled
    # Index of each model's first answer in the list of all answers; the scatter's marks link to it.
    counts = itertools.accumulate((len(entry.answers) for entry in sampled), initial=0)
    first = {entry.label: count for entry, count in zip(sampled, counts, strict=False)}
    looks = inputs.looks
    return [rates.section(graded, looks), rates.scatters(graded, first, looks), rates.others(sampled)]


Study = TypeVar("Study", bound=kinds.Study)


def _each(
    kind: type[Study], section: Callable[[Study], Section | None]
) -> Callable[[Inputs], Iterable[Section | None]]:
    return lambda inputs: map(section, inputs.of(kind))


SECTIONS: list[Callable[[Inputs], Iterable[Section | None]]] = [
    _rates,
    lambda inputs: [thoughts.section(inputs.graded, inputs.looks)],
    lambda inputs: choice.sections(inputs.scored, inputs.looks),
    lambda inputs: seeds.sections(inputs.measured, inputs.groups),
    _each(Conditional, cues.section),
    lambda inputs: (studies.retention(study, inputs.looks) for study in inputs.of(Retention)),
    _each(SteeringStudy, steering.section),
    _each(Convergence, studies.convergence),
    _each(LoraScalars, studies.scalars),
    _each(Phase, trajectory.section),
    _each(TraitMap, traits.section),
    _each(TraitMonitor, projections.monitor),
    _each(TraitShift, projections.shift),
    _each(TraitBases, projections.bases),
    _each(Drift, drift.section),
    _each(Screening, screening.section),
    _each(Scaling, scaling.section),
    _each(Verification, verified.section),
    _each(Lens, lens.section),
    _each(Diff, lens.mined),
    _each(Forecast, lens.forecast),
]
"""Builders of the page's sections, in order; without data they return nothing or None."""


def build(inputs: Inputs, title: str = "Emergent misalignment report") -> Report:
    """Build the report from the sections that have data.

    Raises:
        EmEvalsError: the inputs contain nothing to report.
    """
    graded, sampled = inputs.graded, inputs.sampled
    # Altair checks each part of a chart as it is made, half of the time; the tests check whole charts.
    with schemapi.debug_mode(False):
        found = [section for sections_of in SECTIONS for section in sections_of(inputs)]
    sections = _apart([section for section in found if section is not None])
    if not (sections or sampled or inputs.of(GateVerdict)):
        raise EmEvalsError("these files hold nothing to report.")
    by_label = {entry.label: em_rates.rates(entry.draws) for entry in graded}
    return Report(
        title,
        tuple(inputs.of(GateVerdict)),
        tuple(flag for section in sections for flag in section.flags),
        inputs.reference,
        headline.build(graded, inputs.scored, inputs.reference.label),
        rates.table(by_label, graded) if graded else None,
        tuple(sections),
        tuple(sampled),
        _provenance(inputs),
    )


def gate_table(verdict: GateVerdict) -> Table:
    """Return a verdict's metrics as a table."""
    rows: list[tuple[Cell, ...]] = []
    for row in verdict.metrics:
        share = row.unit == "share"
        level, change = ("share", "points") if share else ("", "signed")
        rows.append(
            (
                f"{row.title} (guard)" if row.guard else row.title,
                Estimate.of(row.baseline, unit=level),
                Estimate.of(row.candidate, unit=level),
                Estimate.of(row.difference, row.interval, change),
                row.verdict,
                without_folders(row.sentence),
            )
        )
    caption = f"{verdict.candidate} against {verdict.baseline}, metric by metric"
    return Table("gate", caption, ("metric", "baseline", "candidate", "difference", "verdict", "why"), rows)


def _apart(sections: list[Section]) -> list[Section]:
    """Make names of sections and figures unique: they become element ids and file names."""
    taken: set[str] = set()

    def own(name: str) -> str:
        choices = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        chosen = next(choice for choice in choices if choice not in taken)
        taken.add(chosen)
        return chosen

    return [
        replace(
            section,
            name=own(section.name),
            figures=tuple(replace(figure, name=own(figure.name)) for figure in section.figures),
        )
        for section in sections
    ]


def _provenance(inputs: Inputs) -> Table:
    """Return a table with one row per file and one column per recorded fact."""
    rows = [{"file": entry.file, **entry.facts} for entry in inputs.measured] + inputs.files
    columns = tuple(dict.fromkeys(name for row in rows for name, text in row.items() if text))
    return Table(
        "provenance",
        "Where the numbers come from",
        columns,
        [tuple(row.get(name, "") for name in columns) for row in rows],
    )
