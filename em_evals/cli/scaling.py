"""`em-evals insight scaling`: EM rate against the size of the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.output import Json, echo, estimate_cell, print_json, print_table

if TYPE_CHECKING:
    from em_evals.results.records import Scaling, ScalingSlope


def scaling(
    table: Annotated[
        Path | None,
        typer.Argument(help="Organisms' rates (CSV: base, dataset, misaligned, draws)."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Use the shipped table of published rates.")
    ] = False,
    bases: Annotated[
        Path | None,
        typer.Option("--models", help="Sizes of bases (CSV: base, family, parameters, tokens)."),
    ] = None,
    comparable: Annotated[
        list[int], typer.Option(help="Values of the column `comparable` to keep (repeatable).")
    ] = [1],  # noqa: B006 (typer copies it)
    recipe: Annotated[str | None, typer.Option(help="Keep one value of the column `recipe`.")] = None,
    source: Annotated[str | None, typer.Option(help="Keep rows whose source contains this text.")] = None,
    coherent: Annotated[
        bool, typer.Option("--coherent", help="Rates among coherent draws instead of all.")
    ] = False,
    active: Annotated[
        bool, typer.Option("--active", help="Count the parameters one token uses (mixture of experts).")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record (JSON).")] = None,
    as_json: Json = False,
) -> None:
    """Relate EM rates to parameters, training tokens and parameters per token."""
    from em_evals.errors import EmEvalsError
    from em_evals.files import digest
    from em_evals.interp import scaling as analysis
    from em_evals.results import records
    from em_evals.results import scaling as tables

    if (table is None) == (not published):
        raise EmEvalsError("name a table of rates, or pass --published for the shipped one.")
    bases = bases or tables.published("bases")
    rates = table or tables.published("em_rates")
    sizes = tables.read_bases(bases)
    rows = tables.read(
        rates,
        sizes,
        comparable=comparable,
        recipe=recipe,
        source=source,
        coherent=coherent,
        active=active,
    )
    digests = {"rates": digest(rates.read_bytes()), "bases": digest(bases.read_bytes())}
    found = analysis.study(rows, sizes, table.name if table else "published rates", digests)
    if output is not None:
        records.write(found, output)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _print(found)


def _print(found: Scaling) -> None:
    """Print bases, slopes and sentences."""
    print_table(
        f"{found.runs} organisms of {len(found.bases)} bases in {found.families} families",
        ["base", "P", "T", "EM rate", "draws"],
        [
            [
                base.name + (" (distilled)" if base.distilled else ""),
                f"{base.parameters / 1e9:.3g}B",
                f"{base.tokens / 1e12:.3g}T" if base.tokens else "–",
                f"{base.misaligned / base.draws:.1%}",
                str(base.draws),
            ]
            for base in found.bases
        ],
    )
    print_table(
        "slope of the logit per tenfold [95% interval]",
        ["predictor", "bases, least squares", "p", "mixed model", "within families"],
        [
            [
                one.name,
                _cell(one.least_squares),
                f"{one.least_squares.p:.3f}",
                _cell(one.mixed),
                _cell(one.within_family),
            ]
            for one in found.predictors
        ],
    )
    for sentence in [*found.left_out, *found.conclusion]:
        echo(sentence)


def _cell(slope: ScalingSlope | None) -> str:
    """Format a slope."""
    return "–" if slope is None else estimate_cell(slope.value, slope.interval, "+.2f")
