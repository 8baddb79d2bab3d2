"""`em-evals report`: one page from logs, verdicts and studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from em_evals.cli.output import Json, print_json


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="Inspect logs, judged CSVs, records of studies, JSON of `gate` and `insight phase`; or folders. "
            "The first model is the reference for comparisons.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the page (HTML).")] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="The page's title.")] = "Emergent misalignment report",
    figures: Annotated[
        Path | None, typer.Option(help="Also write figures to this folder (SVG and PNG).")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Also write tables to this folder (CSV).")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained page (HTML) of the results; it needs no network."""
    from em_evals.report import export, inputs, page
    from em_evals.report.report import build

    made = build(inputs.read(paths), title)
    page.write(made, output)
    drawn = export.figures(made, figures) if figures else []
    written = [table.write(tables) for table in export.named_apart(made)] if tables else []
    if as_json:
        print_json(
            {
                "page": str(output),
                "bytes": output.stat().st_size,
                "sections": [section.name for section in made.sections],
                "flags": list(made.flags),
                "figures": [str(path) for path in drawn],
                "tables": [str(path) for path in written],
            }
        )
        return
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {len(made.sections)} sections")
    for flag in made.flags:
        typer.echo(flag)
    for what, folder, paths_ in (("figures", figures, drawn), ("tables", tables, written)):
        if folder:
            typer.echo(f"{folder}: {len(paths_)} {what}")
