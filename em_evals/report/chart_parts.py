"""What charts are made of: the look of page and paper, marks, scales, and a mark in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import altair as alt

from em_evals.report.looks import Looks

Row = dict[str, Any]

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3], [10, 2])

EVENT = "#cc3d52"

CONFIG: dict[str, Any] = {
    "background": "#ffffff00",
    "font": "system-ui, 'Helvetica Neue', 'Liberation Sans', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "tickSize": 3,
        "gridColor": "#d9dce1",
        "tickColor": "#9aa0a8",
        "labelColor": "#3c4148",
        "titleColor": "#3c4148",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 190,
        "titlePadding": 8,
    },
    "axisY": {"grid": False, "ticks": False, "labelPadding": 6},
    "legend": {
        "orient": "top",
        "title": None,
        "labelFontSize": 11,
        "labelColor": "#3c4148",
        "titleColor": "#3c4148",
        "labelLimit": 220,
        "symbolSize": 70,
        "columns": 3,
    },
}


def points(
    rows: Sequence[Row],
    shape: Any,
    across: Any,
    value: Any,
    colour: Any,
    percent: bool,
) -> list[Any]:
    """Return one mark per value with a text description; damaged ones are crossed out."""
    said = [{**row, "said": in_words(row, percent)} for row in rows]
    encoded = {
        "x": across,
        "y": value,
        "description": alt.Description("said:N"),
        "tooltip": alt.Tooltip("said:N"),
    }
    layers = [
        chart(said)
        .mark_point(filled=True, opacity=1, size=70, stroke="white", strokeWidth=1)
        .encode(color=colour, shape=shape, **encoded)
    ]
    if damaged := [row for row in said if row.get("damaged")]:
        cross = chart(damaged).mark_text(text="✕", fontSize=15, fontWeight="bold", color=EVENT, dy=-12)
        layers.append(cross.encode(**encoded))
    return layers


def chart(rows: Sequence[Row]) -> Any:
    """Return a chart of rows."""
    return alt.Chart(alt.Data(values=list(rows)))


def finished(chart: Any, height: int) -> Any:
    """Finish a chart: as wide as its container, `height` in pixels without axes and legend."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart.properties(width="container", height=height, autosize=fit).configure(**CONFIG)


def zero(axis: str = "x") -> Any:
    """Return a dashed line at zero of an axis."""
    rule = chart([{"zero": 0}]).mark_rule(strokeDash=[3, 3], color="#888", aria=False)
    return rule.encode(x=alt.X("zero:Q")) if axis == "x" else rule.encode(y=alt.Y("zero:Q"))


def marks_by_row(lines: Sequence[str], looks: Looks) -> dict[str, Any]:
    """Return encodings of marks that show the row's look; the second series is hollow."""
    return {
        "shape": alt.Shape(
            "row:N", scale=alt.Scale(domain=list(lines), range=looks.shapes(lines)), legend=None
        ),
        "stroke": alt.Stroke("row:N", scale=scale(lines, looks), legend=None),
        "fillOpacity": alt.FillOpacity("fill:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
    }


def scale(series: Sequence[str], looks: Looks) -> Any:
    """Return the scale of the series' colors."""
    return alt.Scale(domain=list(series), range=looks.colors(series))


def shape(series: Sequence[str], looks: Looks, legend: Any) -> Any:
    """Return the encoding of the series' shapes."""
    return alt.Shape(
        "series:N", scale=alt.Scale(domain=list(series), range=looks.shapes(series)), legend=legend
    )


def cycle(values: Sequence[Any], series: Sequence[str]) -> list[Any]:
    """Return one value per series, from the start again where there are more series."""
    return list(itertools.islice(itertools.cycle(values), len(series)))


def in_words(row: Row, percent: bool) -> str:
    """Describe a mark in words, for tooltips and screen readers."""

    def show(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:+.3f}"

    where = row["row"] if "row" in row else f"at {row['x']:g}"
    ends = "" if row.get("low") is None else f" [{show(row['low'])}, {show(row['high'])}]"
    return f"{row['series']}, {where}: {show(row['value'])}{ends}{', incoherent answers' if row.get('damaged') else ''}"
