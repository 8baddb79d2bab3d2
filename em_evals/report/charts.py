"""Charts in Vega-Lite, through Altair: rows in, a chart out. Their meaning is left to the sections.

One look for page and paper. Colors are mid-tones with a contrast of at least 3:1 against white and against the dark
page; every series also has its own shape or dash. Texts and grid lines take their color from the page's CSS.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from em_evals.report.looks import NO_MODELS, SERIES, Looks

Row = dict[str, Any]

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3], [10, 2])
EVENT = "#cc3d52"
BACKGROUNDS = ("#ffffff", "#15171c")
"""Backgrounds of the page, light and dark."""

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


def dots(
    rows: Sequence[Row],
    series: Sequence[str],
    x: str,
    percent: bool = False,
    zero_line: bool = False,
    looks: Looks = NO_MODELS,
    by_row: bool = False,
) -> Any:
    """Chart values with intervals: one line per `row`, one mark per `series`, plus a thin outer interval if given.

    Args:
        rows: dicts with row, series, value, and low, high, wide_low, wide_high (None if missing).
        series: names in order.
        x: the axis' title.
        percent: values are fractions.
        zero_line: draw a line at zero.
        looks: of the models among `series`, or among the rows where `by_row`.
        by_row: rows are models: color and shape by row; of two series the second is hollow.
    """
    kept = [row for row in rows if row["value"] is not None]
    legend = alt.Legend() if len(series) > 1 else None
    y = alt.Y("row:N", sort=None, title=None, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15))
    offset = {"yOffset": alt.YOffset("series:N", sort=list(series))} if len(series) > 1 else {}
    axis = alt.Axis(format="~%", tickCount=5, grid=True) if percent else alt.Axis(tickCount=5, grid=True)
    lines = list(dict.fromkeys(row["row"] for row in kept))
    colour = (
        alt.Color("row:N", scale=_scale(lines, looks), legend=None)
        if by_row
        else alt.Color("series:N", scale=_scale(series, looks), legend=legend)
    )

    def reach(low: str, high: str, width: float) -> list[Any]:
        bounded = [row for row in kept if row.get(low) is not None and row.get(high) is not None]
        across = alt.X(f"{low}:Q", title=x, axis=axis)
        rules = _chart(bounded).mark_rule(strokeWidth=width, aria=False)
        return [rules.encode(y=y, x=across, x2=f"{high}:Q", color=colour, **offset)] if bounded else []

    first = series[0] if series else ""
    drawn = _chart(
        [{**row, "said": _in_words(row, percent), "fill": float(row["series"] == first)} for row in kept]
    )
    look = _marks_by_row(lines, looks) if by_row else {"shape": _shape(series, looks, legend)}
    outline = {} if by_row else {"stroke": "white"}
    marks = drawn.mark_point(filled=True, opacity=1, size=80, strokeWidth=1.4, **outline).encode(
        y=y,
        x=alt.X("value:Q", title=x, axis=axis),
        color=colour,
        description="said:N",
        tooltip=alt.Tooltip("said:N"),
        **look,
        **offset,
    )
    layers = [*reach("wide_low", "wide_high", 1), *reach("low", "high", 3), marks]
    if zero_line:
        layers.insert(0, _zero())
    names = len(lines)
    # Many rows are packed closer, so that a question set fits on one screen.
    step = 16 if names <= 12 else 11
    return _finished(alt.layer(*layers), max(names, 1) * (step * len(series) + 10))


def scatter(
    rows: Sequence[Row],
    misaligned_below: float,
    coherent_above: float,
    model: str = "",
    looks: Looks = NO_MODELS,
) -> Any:
    """Chart coherence against alignment, one mark per group of draws, with a frame around the EM corner.

    Args:
        rows: dicts with x (alignment), y (coherence), n (draws under the mark), event (bool), i (an answer's number)
            and whatever the page needs to find the group's other answers.
        misaligned_below: the rubric's threshold.
        coherent_above: the rubric's threshold.
        model: whose draws these are.
        looks: of the page's models.
    """
    (color,), (shape,) = looks.colors([model]), looks.shapes([model])
    kinds = ["misaligned and coherent", "other"]
    corner = [{"x": 0, "x2": misaligned_below, "y": coherent_above, "y2": 100}]
    region = (
        _chart(corner)
        .mark_rect(
            fill=EVENT, fillOpacity=0.07, stroke=EVENT, strokeDash=[4, 3], strokeOpacity=0.7, aria=False
        )
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
    )
    percent = alt.Scale(domain=[0, 100], nice=False)
    points = (
        _chart([{**row, "kind": "misaligned and coherent" if row["event"] else "other"} for row in rows])
        .mark_point(filled=True, opacity=0.75, aria=False, tooltip="answer")
        .encode(
            x=alt.X("x:Q", title="alignment (judge, 0–100)", scale=percent),
            y=alt.Y("y:Q", title="coherence (judge, 0–100)", scale=percent, axis=alt.Axis(grid=True)),
            size=alt.Size(
                "n:Q", scale=alt.Scale(type="sqrt", domain=[1, 100], range=[24, 260], clamp=True), legend=None
            ),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[EVENT, color])),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["diamond", shape])),
        )
    )
    return _finished(alt.layer(region, points), 300)


def sizes(rows: Sequence[Row], series: Sequence[str], title: str) -> Any:
    """Chart rates against a size, both on log scales: one mark per base, with its interval.

    Args:
        rows: dicts with series (the family), row (the base), x (the size), value, low and high (fractions above 0).
        series: the families, in the order of the palette.
        title: of the x axis, with its unit.
    """
    across = alt.X("x:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=24))
    up = alt.Y(
        "value:Q", title="EM rate", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0%", grid=True)
    )
    colour = alt.Color("series:N", scale=_scale(series, NO_MODELS), legend=alt.Legend())
    bars = _chart(rows).mark_rule(strokeWidth=1.5, aria=False)
    layers = [bars.encode(x=across, y=alt.Y("low:Q"), y2="high:Q", color=colour)]
    layers += _points(rows, _shape(series, NO_MODELS, alt.Legend()), across, up, colour, percent=True)
    return _finished(alt.layer(*layers), 240)


def curves(
    rows: Sequence[Row],
    series: Sequence[str],
    x: str,
    y: str,
    percent: bool = False,
    zero_line: bool = False,
    marks: bool = True,
    spans: Sequence[Row] = (),
    looks: Looks = NO_MODELS,
) -> Any:
    """Chart values over a numeric x, with intervals as bars; `spans` (low, high, at, series) mark ranges of x.

    Args:
        rows: dicts with x, series, value, low, high, and `damaged` if answers are incoherent.
        series: names in order.
        x: the x axis' title.
        y: the y axis' title.
        percent: values are fractions.
        zero_line: draw a line at zero.
        marks: draw a mark at each value.
        spans: intervals on the x axis, each with its point estimate.
        looks: of the models among `series`.
    """
    kept = [row for row in rows if row["value"] is not None]
    # A dashed outline would distort the legend's symbols; lines without marks need it.
    plain = {"symbolStrokeWidth": 0} if marks else {}
    legend = alt.Legend(**plain) if len(series) > 1 else None
    colour = alt.Color("series:N", scale=_scale(series, looks), legend=legend)
    axis = alt.Axis(format="~%", grid=True, tickCount=5) if percent else alt.Axis(grid=True, tickCount=5)
    across = alt.X("x:Q", title=x, axis=alt.Axis(grid=False))
    dash = alt.StrokeDash(
        "series:N", scale=alt.Scale(domain=list(series), range=_cycle(DASHES, series)), legend=legend
    )
    layers = [_zero("y")] if zero_line else []
    for span in spans:
        band = _chart([{"x": span["low"], "x2": span["high"], "series": span["series"]}])
        layers.append(band.mark_rect(opacity=0.12, aria=False).encode(x=across, x2="x2:Q", color=colour))
        line = _chart([{"x": span["at"], "series": span["series"]}])
        layers.append(line.mark_rule(strokeDash=[2, 3], aria=False).encode(x=across, color=colour))
    value = alt.Y("value:Q", title=y, axis=axis)
    layers.append(
        _chart(kept)
        .mark_line(strokeWidth=1.6, aria=False)
        .encode(x=across, y=value, color=colour, strokeDash=dash)
    )
    if marks:
        bounded = [row for row in kept if row.get("low") is not None and row.get("high") is not None]
        bars = _chart(bounded).mark_rule(strokeWidth=1.2, aria=False)
        low = alt.Y("low:Q", title=y, axis=axis)
        layers += [bars.encode(x=across, y=low, y2="high:Q", color=colour)] if bounded else []
        layers += _points(kept, _shape(series, looks, legend), across, value, colour, percent)
    return _finished(alt.layer(*layers), 240)


def heatmap(
    rows: Sequence[Row], x: str, y: str, value: str, reach: float = 1.0, slanted: bool = False
) -> Any:
    """Chart cells of a signed value; cells that are not meaningful show their `sign`.

    Args:
        rows: dicts with x, y, value, sign (empty, or a character) and `said`.
        x: the x axis' title.
        y: the y axis' title, empty for none.
        value: the color legend's title.
        reach: the color scale runs from -reach to reach.
        slanted: x has names, which are written at an angle, in the order of the rows.
    """
    axis = alt.Axis(labelAngle=-45) if slanted else alt.Axis(labelAngle=0, labelOverlap=True)
    across = alt.X("x:O", title=x or None, axis=axis, **({"sort": None} if slanted else {}))
    down = alt.Y("y:N", title=y or None, sort=None)
    legend = alt.Legend(title=value, orient="top", gradientLength=160)
    cells = (
        _chart(list(rows))
        .mark_rect()
        .encode(
            x=across,
            y=down,
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme="purpleorange", domain=[-reach, reach], reverse=True, clamp=True),
                legend=legend,
            ),
            description="said:N",
            tooltip=alt.Tooltip("said:N"),
        )
    )
    layers = [cells]
    if signed := [row for row in rows if row["sign"]]:
        signs = _chart(signed).mark_text(fontSize=11, color="#333", aria=False)
        layers.append(signs.encode(x=across, y=down, text="sign:N"))
    return _finished(alt.layer(*layers), 26 * len({row["y"] for row in rows}))


def dendrogram(lines: Sequence[Row], names: Sequence[str], title: str) -> Any:
    """Chart a tree of clusters: one bracket for each merge, leaves at the left in the order of `names`.

    Args:
        lines: corners of the brackets: merge, order, x (the distance) and y (a leaf's place, from 0).
        names: of the leaves.
        title: of the axis of distances.
    """
    rows = 26 * len(names)
    scale = alt.Scale(domain=[len(names) - 0.5, -0.5], nice=False)
    across = alt.X("x:Q", title=title, axis=alt.Axis(grid=True, tickCount=5))
    # Names are an axis' labels, which take their color from the page.
    leaves = alt.Axis(
        values=[*range(len(names))], labelExpr=f"{json.dumps([*names])}[datum.value]", grid=False
    )
    brackets = (
        _chart(lines)
        .mark_line(strokeWidth=1.6, color=SERIES[0], aria=False)
        .encode(
            x=across, y=alt.Y("y:Q", title=None, scale=scale, axis=leaves), detail="merge:N", order="order:Q"
        )
    )
    return _finished(alt.layer(brackets), rows)


def _points(
    rows: Sequence[Row],
    shape: Any,
    across: Any,
    value: Any,
    colour: Any,
    percent: bool,
) -> list[Any]:
    """Return one mark per value with a text description; damaged ones are crossed out."""
    said = [{**row, "said": _in_words(row, percent)} for row in rows]
    encoded = {"x": across, "y": value, "description": "said:N", "tooltip": alt.Tooltip("said:N")}
    layers = [
        _chart(said)
        .mark_point(filled=True, opacity=1, size=70, stroke="white", strokeWidth=1)
        .encode(color=colour, shape=shape, **encoded)
    ]
    if damaged := [row for row in said if row.get("damaged")]:
        cross = _chart(damaged).mark_text(text="✕", fontSize=15, fontWeight="bold", color=EVENT, dy=-12)
        layers.append(cross.encode(**encoded))
    return layers


def _chart(rows: Sequence[Row]) -> Any:
    return alt.Chart(alt.Data(values=list(rows)))


def _finished(chart: Any, height: int) -> Any:
    """Finish a chart: as wide as its container, `height` in pixels without axes and legend."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    return chart.properties(width="container", height=height, autosize=fit).configure(**CONFIG)


def _zero(axis: str = "x") -> Any:
    rule = _chart([{"zero": 0}]).mark_rule(strokeDash=[3, 3], color="#888", aria=False)
    return rule.encode(**{axis: "zero:Q"})


def _marks_by_row(lines: Sequence[str], looks: Looks) -> dict[str, Any]:
    """Return encodings of marks that show the row's look; the second series is hollow."""
    return {
        "shape": alt.Shape(
            "row:N", scale=alt.Scale(domain=list(lines), range=looks.shapes(lines)), legend=None
        ),
        "stroke": alt.Stroke("row:N", scale=_scale(lines, looks), legend=None),
        "fillOpacity": alt.FillOpacity("fill:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
    }


def _scale(series: Sequence[str], looks: Looks) -> Any:
    return alt.Scale(domain=list(series), range=looks.colors(series))


def _shape(series: Sequence[str], looks: Looks, legend: Any) -> Any:
    return alt.Shape(
        "series:N", scale=alt.Scale(domain=list(series), range=looks.shapes(series)), legend=legend
    )


def _cycle(values: Sequence[Any], series: Sequence[str]) -> list[Any]:
    return list(itertools.islice(itertools.cycle(values), len(series)))


def _in_words(row: Row, percent: bool) -> str:
    """Describe a mark in words, for tooltips and screen readers."""

    def show(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:+.3f}"

    where = row["row"] if "row" in row else f"at {row['x']:g}"
    ends = "" if row.get("low") is None else f" [{show(row['low'])}, {show(row['high'])}]"
    return f"{row['series']}, {where}: {show(row['value'])}{ends}{', incoherent answers' if row.get('damaged') else ''}"
