"""Charts in Vega-Lite, through Altair: rows in, a chart out. Their meaning is left to the sections.

Encodings are Altair's channel classes, not its shorthand texts: for each of those it hashes all classes of its schema.

One look for page and paper. Colors are mid-tones with a contrast of at least 3:1 against white and against the dark
page; every series also has its own shape or dash. Texts and grid lines take their color from the page's CSS.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from em_evals.report import chart_parts as parts
from em_evals.report.chart_parts import Row
from em_evals.report.looks import NO_MODELS, SERIES, Looks


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
        alt.Color("row:N", scale=parts.scale(lines, looks), legend=None)
        if by_row
        else alt.Color("series:N", scale=parts.scale(series, looks), legend=legend)
    )

    def reach(low: str, high: str, width: float) -> list[Any]:
        bounded = [row for row in kept if row.get(low) is not None and row.get(high) is not None]
        across = alt.X(f"{low}:Q", title=x, axis=axis)
        rules = parts.chart(bounded).mark_rule(strokeWidth=width, aria=False)
        return (
            [rules.encode(y=y, x=across, x2=alt.X2(f"{high}:Q"), color=colour, **offset)] if bounded else []
        )

    first = series[0] if series else ""
    drawn = parts.chart(
        [{**row, "said": parts.in_words(row, percent), "fill": float(row["series"] == first)} for row in kept]
    )
    look = parts.marks_by_row(lines, looks) if by_row else {"shape": parts.shape(series, looks, legend)}
    outline = {} if by_row else {"stroke": "white"}
    marks = drawn.mark_point(filled=True, opacity=1, size=80, strokeWidth=1.4, **outline).encode(
        y=y,
        x=alt.X("value:Q", title=x, axis=axis),
        color=colour,
        description=alt.Description("said:N"),
        tooltip=alt.Tooltip("said:N"),
        **look,
        **offset,
    )
    layers = [*reach("wide_low", "wide_high", 1), *reach("low", "high", 3), marks]
    if zero_line:
        layers.insert(0, parts.zero())
    names = len(lines)
    # Many rows are packed closer, so that a question set fits on one screen.
    step = 16 if names <= 12 else 11
    return parts.finished(alt.layer(*layers), max(names, 1) * (step * len(series) + 10))


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
        parts.chart(corner)
        .mark_rect(
            fill=parts.EVENT,
            fillOpacity=0.07,
            stroke=parts.EVENT,
            strokeDash=[4, 3],
            strokeOpacity=0.7,
            aria=False,
        )
        .encode(x=alt.X("x:Q"), x2=alt.X2("x2:Q"), y=alt.Y("y:Q"), y2=alt.Y2("y2:Q"))
    )
    percent = alt.Scale(domain=[0, 100], nice=False)
    points = (
        parts.chart([{**row, "kind": "misaligned and coherent" if row["event"] else "other"} for row in rows])
        .mark_point(filled=True, opacity=0.75, aria=False, tooltip="answer")
        .encode(
            x=alt.X(
                "x:Q",
                title="alignment (judge, 0–100)",
                scale=percent,
                axis=alt.Axis(values=[*range(0, 101, 20)]),
            ),
            y=alt.Y("y:Q", title="coherence (judge, 0–100)", scale=percent, axis=alt.Axis(grid=True)),
            size=alt.Size(
                "n:Q", scale=alt.Scale(type="sqrt", domain=[1, 100], range=[24, 260], clamp=True), legend=None
            ),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[parts.EVENT, color])),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["diamond", shape])),
        )
    )
    return parts.finished(alt.layer(region, points), 300)


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
    colour = alt.Color("series:N", scale=parts.scale(series, NO_MODELS), legend=alt.Legend())
    bars = parts.chart(rows).mark_rule(strokeWidth=1.5, aria=False)
    layers = [bars.encode(x=across, y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), color=colour)]
    layers += parts.points(
        rows, parts.shape(series, NO_MODELS, alt.Legend()), across, up, colour, percent=True
    )
    return parts.finished(alt.layer(*layers), 240)


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
    colour = alt.Color("series:N", scale=parts.scale(series, looks), legend=legend)
    axis = alt.Axis(format="~%", grid=True, tickCount=5) if percent else alt.Axis(grid=True, tickCount=5)
    across = alt.X("x:Q", title=x, axis=alt.Axis(grid=False))
    dash = alt.StrokeDash(
        "series:N",
        scale=alt.Scale(domain=list(series), range=parts.cycle(parts.DASHES, series)),
        legend=legend,
    )
    layers = [parts.zero("y")] if zero_line else []
    for span in spans:
        band = parts.chart([{"x": span["low"], "x2": span["high"], "series": span["series"]}])
        layers.append(
            band.mark_rect(opacity=0.12, aria=False).encode(x=across, x2=alt.X2("x2:Q"), color=colour)
        )
        line = parts.chart([{"x": span["at"], "series": span["series"]}])
        layers.append(line.mark_rule(strokeDash=[2, 3], aria=False).encode(x=across, color=colour))
    value = alt.Y("value:Q", title=y, axis=axis)
    layers.append(
        parts.chart(kept)
        .mark_line(strokeWidth=1.6, aria=False)
        .encode(x=across, y=value, color=colour, strokeDash=dash)
    )
    if marks:
        bounded = [row for row in kept if row.get("low") is not None and row.get("high") is not None]
        bars = parts.chart(bounded).mark_rule(strokeWidth=1.2, aria=False)
        low = alt.Y("low:Q", title=y, axis=axis)
        layers += [bars.encode(x=across, y=low, y2=alt.Y2("high:Q"), color=colour)] if bounded else []
        layers += parts.points(kept, parts.shape(series, looks, legend), across, value, colour, percent)
    return parts.finished(alt.layer(*layers), 240)


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
        parts.chart(list(rows))
        .mark_rect()
        .encode(
            x=across,
            y=down,
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme="purpleorange", domain=[-reach, reach], reverse=True, clamp=True),
                legend=legend,
            ),
            description=alt.Description("said:N"),
            tooltip=alt.Tooltip("said:N"),
        )
    )
    layers = [cells]
    if signed := [row for row in rows if row["sign"]]:
        signs = parts.chart(signed).mark_text(fontSize=11, color="#333", aria=False)
        layers.append(signs.encode(x=across, y=down, text=alt.Text("sign:N")))
    return parts.finished(alt.layer(*layers), 26 * len({row["y"] for row in rows}))


def shares(rows: Sequence[Row], value: str) -> Any:
    """Chart shares as a table of cells: a line per `series`, a column per `row`, percent in each cell.

    Args:
        rows: dicts with row, series, value (a fraction, or None), low and high.
        value: the color legend's title.
    """
    kept = [
        {**row, "said": parts.in_words(row, True), "text": f"{row['value']:.0%}".rstrip("%")}
        for row in rows
        if row["value"] is not None
    ]
    most = max((row["value"] for row in kept), default=0.0) or 1.0
    across = alt.X("row:N", title=None, sort=None, axis=alt.Axis(labelAngle=-35, labelLimit=150))
    down = alt.Y("series:N", title=None, sort=None, scale=alt.Scale(paddingInner=0.06))
    color = alt.Color(
        "value:Q",
        # Not to the darkest: the numbers stay readable.
        scale=alt.Scale(scheme=alt.SchemeParams(name="oranges", extent=[0, 0.7]), domain=[0, most]),
        legend=alt.Legend(title=value, orient="top", gradientLength=160, format="~%"),
    )
    described = {"description": alt.Description("said:N"), "tooltip": alt.Tooltip("said:N")}
    layers = [parts.chart(kept).mark_rect().encode(x=across, y=down, color=color, **described)]
    if len({row["row"] for row in kept}) <= 16:
        texts = parts.chart(kept).mark_text(fontSize=11, color="#1b1e23", aria=False)
        layers.append(texts.encode(x=across, y=down, text=alt.Text("text:N")))
    return parts.finished(alt.layer(*layers), 24 * len({row["series"] for row in kept}))


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
        parts.chart(lines)
        .mark_line(strokeWidth=1.6, color=SERIES[0], aria=False)
        .encode(
            x=across,
            y=alt.Y("y:Q", title=None, scale=scale, axis=leaves),
            detail=alt.Detail("merge:N"),
            order=alt.Order("order:Q"),
        )
    )
    return parts.finished(alt.layer(brackets), rows)
