"""Export the page's figures and tables as files, for papers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from em_evals import files
from em_evals.report.report import Report
from em_evals.report.tables import Table

_WIDTH = {False: 420, True: 720}
"""Width in pixels of a normal and of a wide figure; PNGs are three times larger."""
_FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
"""Fonts of one width, one of which vl-convert brings."""


def figures(report: Report, folder: Path) -> list[Path]:
    """Write NAME.svg and NAME.png of every figure, on a white background; no browser is needed."""
    import vl_convert

    written = []
    for figure in report.figures:
        spec = for_paper(figure.chart, _WIDTH[figure.wide])
        svg, png = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
        with files.atomic(svg) as temporary:
            temporary.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        with files.atomic(png) as temporary:
            temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=3))
        written += [svg, png]
    return written


def for_paper(chart: Any, width: int) -> dict[str, Any]:
    """Return a chart's specification with a fixed width in pixels, on white.

    Labels are laid out here and drawn by the reader's program, in a font that may be a tenth wider than the one that
    was measured: margin and legend leave room for that.
    """
    spec: dict[str, Any] = copy.deepcopy(chart.to_dict(validate=False))
    config = spec["config"]
    config |= {
        "background": "white",
        "font": _FONT,
        "legend": config.get("legend", {}) | {"columnPadding": 30},
    }
    return spec | {"width": width, "padding": {"left": 24, "right": 12, "top": 5, "bottom": 5}}


def named_apart(report: Report) -> Iterator[Table]:
    """Yield all tables, with unique names."""
    seen: dict[str, int] = {}
    for table in report.tables:
        number = seen[table.name] = seen.get(table.name, 0) + 1
        yield table if number == 1 else replace(table, name=f"{table.name}_{number}")
