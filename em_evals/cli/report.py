"""`em-evals report`: one page from logs, verdicts and studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from em_evals.cli.options import Group
from em_evals.cli.output import Json, echo, print_json


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="Inspect logs, judged CSVs, records of studies, JSON of `gate` and `insight phase`; or folders. "
            "A folder means all files below it.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the page (HTML).")] = Path(
        "report.html"
    ),
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Model (or file) that others are compared with. Default: the others' base by their cards, else the "
            "first file's model."
        ),
    ] = None,
    group: Group = [],
    title: Annotated[str, typer.Option(help="The page's title.")] = "Emergent misalignment report",
    figures: Annotated[
        Path | None, typer.Option(help="Also write figures to this folder (SVG and PNG).")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Also write tables to this folder (CSV).")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained page (HTML) of the results.

    Making and reading it needs no network.
    """
    from em_evals.report import export, inputs, page
    from em_evals.report.report import build
    from em_evals.results import seed_groups

    made = build(inputs.read(paths, baseline, seed_groups.parse(group)), title)
    page.write(made, output)
    if open_page:
        typer.launch(output.absolute().as_uri())
    drawn = export.figures(made, figures) if figures else []
    written = [table.write(tables) for table in export.named_apart(made)] if tables else []
    if as_json:
        print_json(
            {
                "page": str(output),
                "bytes": output.stat().st_size,
                "reference": made.reference.label,
                "headlines": [vars(one) for one in made.first.headlines],
                "sections": [section.name for section in made.sections],
                "flags": list(made.flags),
                "figures": [str(path) for path in drawn],
                "tables": [str(path) for path in written],
            }
        )
        return
    sections = f"{len(made.sections)} section{'' if len(made.sections) == 1 else 's'}"
    echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {sections}")
    if made.reference.sentence:
        echo(made.reference.sentence)
    told = [f"{one.model}: {one.word}. {one.sentence}" for one in made.first.headlines]
    for line in dict.fromkeys([*told, *made.flags]):
        echo(line)
    for what, folder, paths_ in (("figures", figures, drawn), ("tables", tables, written)):
        if folder:
            echo(f"{folder}: {len(paths_)} {what}")
