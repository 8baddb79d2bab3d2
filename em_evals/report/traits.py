"""The section on the geometry of traits (`em-evals trait map`): cosines, clusters, and what is specific."""

from __future__ import annotations

from em_evals.report import charts
from em_evals.report.chart_parts import Row
from em_evals.report.conditions import estimate_of
from em_evals.report.section import Figure, Section, slug
from em_evals.report.tables import Cell, Estimate, Table
from em_evals.results.records.claims import Claim
from em_evals.results.records.traits import TraitMap


def section(found: TraitMap) -> Section:
    """Return the heatmap of cosines, the dendrogram in the same order, and a row for each trait."""
    name = f"traits-{slug(found.base)}-{found.layer}"
    nulls = "".join(
        f"; 95% of sets of {null.name} have {null.high:.1f} or more (p = {null.p:.3g})"
        for null in found.dimensions.nulls
        if null.high is not None and null.p is not None
    )
    notes = [
        f"{found.dimensions.value:.1f} dimensions for {len(found.names)} directions{nulls}.",
        *([found.separation.sentence()] if isinstance(found.separation, Claim) else []),
        *(
            f"Separation of {one.one} from {one.other} (1 − mean |corrected cosine|): {estimate_of(one.index)}; "
            f"among {one.other}: {estimate_of(one.within)}."
            for one in found.separations
        ),
        *found.notes,
    ]
    return Section(
        name,
        f"Traits at layer {found.layer}",
        f"Directions of {found.base} from contrastive prompts, in the order of their clusters. All are differences of "
        "instructions and resemble each other for that reason alone: read cosines beside the null sets.",
        figures=(_cosines(found, name), _dendrogram(found, name)),
        tables=(_table(found, name),),
        notes=tuple(notes),
    )


def _cosines(found: TraitMap, name: str) -> Figure:
    between = {frozenset((one.one, one.other)): one for one in found.cosines}
    rows: list[Row] = []
    for one in found.names:
        for other in found.names:
            pair = between.get(frozenset((one, other)))
            value = 1.0 if pair is None else pair.cosine
            rows.append(
                {
                    "x": other,
                    "y": one,
                    "value": value,
                    "sign": "",
                    "said": f"{one}, {other}: cosine {value:+.2f}",
                }
            )
    told: list[tuple[Cell, ...]] = [
        (
            pair.one,
            pair.other,
            Estimate.of(pair.cosine, unit="signed"),
            estimate_of(pair.corrected, "signed"),
        )
        for pair in found.cosines
    ]
    columns = ("trait", "other", "cosine", "corrected for noise")
    return Figure(
        f"{name}-cosines",
        "Cosines of traits",
        f"Heatmap of the cosines of {len(found.names)} traits with each other, similar ones side by side.",
        charts.heatmap(rows, "", "", "cosine", slanted=True),
        Table(f"{slug(name)}_cosines", "Cosines of pairs of traits", columns, told),
    )


def _dendrogram(found: TraitMap, name: str) -> Figure:
    """Return the merges of average linkage as a tree; leaves have the heatmap's order."""
    places: list[tuple[float, float]] = [(number, 0.0) for number in range(len(found.names))]
    members = [[one] for one in found.names]
    lines: list[Row] = []
    for number, (one, other, distance) in enumerate(found.merges):
        (y1, x1), (y2, x2) = places[one], places[other]
        corners = [(x1, y1), (distance, y1), (distance, y2), (x2, y2)]
        lines += [{"merge": number, "order": place, "x": x, "y": y} for place, (x, y) in enumerate(corners)]
        places.append(((y1 + y2) / 2, distance))
        members.append([*members[one], *members[other]])
    merged = members[len(found.names) :]
    told: list[tuple[Cell, ...]] = [
        (", ".join(sorted(own, key=found.names.index)), Estimate.of(merge[2]))
        for own, merge in zip(merged, found.merges, strict=True)
    ]
    return Figure(
        f"{name}-clusters",
        "Clusters of traits",
        "Dendrogram of average linkage on 1 − cosine: "
        + "; ".join(f"merge {number + 1} at {merge[2]:.2f}" for number, merge in enumerate(found.merges))
        + ".",
        charts.dendrogram(lines, found.names, "1 − cosine"),
        Table(f"{slug(name)}_clusters", "Clusters by average linkage", ("cluster", "1 − cosine"), told),
    )


def _table(found: TraitMap, name: str) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            trait,
            found.kinds.get(trait) or "–",
            Estimate.of(found.reliability.get(trait)),
            found.specific.get(trait, "–"),
        )
        for trait in found.names
    ]
    columns = ("trait", "kind", "reliability", "specific")
    return Table(
        f"{slug(name)}_traits", "Reliability, and whether a direction is the trait's own", columns, rows
    )
