"""Contrasts of arms within files of graded draws: `arm=random-none`, clustered by question, role or seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from em_evals import files
from em_evals.errors import EmEvalsError
from em_evals.results.em_rates import RATES, clusters
from em_evals.results.graded_draw import GradedDraw
from em_evals.results.sources import Source, column
from em_evals.stats.cluster_contrast import ClusterContrast


@dataclass(frozen=True)
class Contrast:
    """The difference of every rate between two values of a column.

    Attributes:
        column: what is compared.
        second: the value whose rate is the minuend.
        first: the value whose rate is subtracted.
        cluster: the sampled unit.
        shares: each rate's difference, second - first.
    """

    column: str
    second: str
    first: str
    cluster: str
    shares: dict[str, ClusterContrast]

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.column}={self.second}-{self.first}"

    def as_json(self) -> dict[str, Any]:
        """Return the contrast, with one entry a rate."""
        entries = {
            name: {
                "second": one.rates[1],
                "first": one.rates[0],
                "difference": one.estimate,
                "interval": one.interval,
                "p_value": one.p_value,
                "bootstrap_interval": one.bootstrap,
                "clusters": one.clusters,
            }
            for name, one in self.shares.items()
        }
        nulled: dict[str, Any] = files.without_nan(
            {"contrast": self.name, "cluster": self.cluster, **entries}
        )
        return nulled


def contrast(sources: Sequence[Source], text: str, cluster: str = "question") -> Contrast:
    """Compare two arms over all sources that have the column.

    Args:
        sources: of which at least one has the column.
        text: COLUMN=SECOND-FIRST; values may contain dashes.
        cluster: `question` or a column.

    Raises:
        EmEvalsError: the text, the column or a value is wrong.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and "-" in values):
        raise EmEvalsError(f"'{text}' is no contrast; write COLUMN=SECOND-FIRST, such as arm=random-none.")
    having = [source for source in sources if name in source.columns] or list(sources[:1])
    draws: dict[str, list[GradedDraw]] = {}
    units: dict[str, list[str]] = {}
    for source in having:
        for value, unit, draw in zip(column(source, name), source.units(cluster), source.draws, strict=True):
            draws.setdefault(value, []).append(draw)
            units.setdefault(value, []).append(unit)
    second, first = _values(values, draws.keys(), name)
    return Contrast(
        name,
        second,
        first,
        cluster,
        {
            share: ClusterContrast.of(
                *(clusters(draws[value], share, units=units[value]) for value in (first, second))
            )
            for share in RATES
        },
    )


def _values(text: str, known: Collection[str], name: str) -> tuple[str, str]:
    """Split SECOND-FIRST at the dash that leaves two values of the column."""
    cuts = [(text[:place], text[place + 1 :]) for place, mark in enumerate(text) if mark == "-"]
    found = [(left.strip(), right.strip()) for left, right in cuts]
    for pair in found:
        if set(pair) <= set(known):
            return pair
    raise EmEvalsError(
        f"the column '{name}' has no two values '{text}'; it has: {', '.join(sorted(known)[:20])}."
    )
