"""A rate in a table and in a chart."""

from __future__ import annotations

from em_evals.report.chart_parts import Row
from em_evals.report.tables import Estimate
from em_evals.results.rate import Rate


def rate_cell(rate: Rate) -> Estimate:
    """Return a rate with its interval for these questions."""
    return Estimate.of(rate.value, rate.fixed, "share")


def rate_mark(row: str, series: str, rate: Rate, wide: bool = True) -> Row:
    """Return a chart's row; with `wide` and more than one question, also the interval for other questions."""
    mark = rate_cell(rate).mark(row=row, series=series)
    others = Estimate.of(rate.value, rate.random)  # one question says nothing of others
    if not (wide and others.interval):
        return mark
    return {**mark, "wide_low": others.interval[0], "wide_high": others.interval[1]}
