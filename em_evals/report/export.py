"""Export the page's figures and tables as files, for papers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from em_evals import files
from em_evals.report.report import Report
from em_evals.report.tables import Table

_WIDTH = {False: 420, True: 720}
"""Width in pixels of a normal and of a wide figure; PNGs are three times larger."""


def figures(report: Report, folder: Path) -> list[Path]:
    """Write NAME.svg and NAME.png of every figure, on a white background; no browser is needed."""
    import vl_convert

    written = []
    for figure in report.figures:
        spec = copy.deepcopy(figure.chart.to_dict(validate=False))
        spec["width"] = _WIDTH[figure.wide]
        spec["config"]["background"] = "white"
        svg, png = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
        with files.atomic(svg) as temporary:
            temporary.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        with files.atomic(png) as temporary:
            temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=3))
        written += [svg, png]
    return written


def named_apart(report: Report) -> Iterator[Table]:
    """Yield all tables, with unique names."""
    seen: dict[str, int] = {}
    for table in report.tables:
        number = seen[table.name] = seen.get(table.name, 0) + 1
        yield table if number == 1 else replace(table, name=f"{table.name}_{number}")
