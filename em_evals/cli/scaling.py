"""`em-evals insight scaling`: EM rate against the size of the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.output import Json, echo, measured_cell, p_cell, print_json, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.scaling import Scaling

if TYPE_CHECKING:
    from em_evals.results.scaling import Base, Table


_YAML = (".yaml", ".yml")


def scaling(
    table: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Organisms' rates (CSV: base, dataset, misaligned, draws), or logs and folders of them."
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Use the shipped table of published rates.")
    ] = False,
    bases: Annotated[
        Path | None,
        typer.Option(
            "--models", help="Sizes of bases (CSV: base, family, parameters, tokens; YAML: also organisms)."
        ),
    ] = None,
    comparable: Annotated[
        list[int], typer.Option(help="Values of the column `comparable` to keep (repeatable).")
    ] = [1],
    recipe: Annotated[
        str | None,
        typer.Option(help="Keep one value of the column `recipe`; with --plan, the recipe's card."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Keep rows whose source contains this text.")] = None,
    coherent: Annotated[
        bool, typer.Option("--coherent", help="Rates among coherent draws instead of all.")
    ] = False,
    active: Annotated[
        bool, typer.Option("--active", help="Count the parameters one token uses (mixture of experts).")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="Plan a study of the bases in --models, into this new folder.")
    ] = None,
    data: Annotated[list[str], typer.Option(help="With --plan: training data (repeatable).")] = [],
    seeds: Annotated[int, typer.Option(min=1, help="With --plan: training seeds.")] = 2,
    questions: Annotated[str, typer.Option(help="With --plan: the question set.")] = "core",
    epochs: Annotated[int, typer.Option(min=1, help="With --plan: draws of each wording.")] = 5,
    grader: Annotated[str, typer.Option(help="With --plan: the judge.")] = "openai/gpt-4o",
    rate: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="With --plan: EM rate of the middle base.")
    ] = 0.1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record (JSON).")] = None,
    as_json: Json = False,
) -> None:
    """Relate EM rates to the size of models.

    Size is parameters, training tokens and parameters per token. `--plan` plans such a study.
    """
    from em_evals.errors import EmEvalsError
    from em_evals.interp import scaling as analysis
    from em_evals.results import records

    if plan is not None:
        if bases is None or recipe is None or not data:
            raise EmEvalsError("--plan needs --models models.yaml, --recipe CARD and --data NAME.")
        _plan(plan, bases, (recipe, tuple(data), seeds, questions, epochs, grader, rate), as_json)
        return
    rows, sizes, name, digests = _rows(
        table or [], bases, published, comparable, recipe, source, coherent, active
    )
    found = analysis.study(rows, sizes, name, digests)
    if output is not None:
        records.write(found, output)
    tell_record(found, as_json, _print)


def _rows(
    table: list[Path],
    bases: Path | None,
    published: bool,
    comparable: list[int],
    recipe: str | None,
    source: str | None,
    coherent: bool,
    active: bool,
) -> tuple[Table, dict[str, Base], str, dict[str, str]]:
    """Return the cells, the bases' sizes, the table's name, and digests of the files."""
    from em_evals.errors import EmEvalsError
    from em_evals.files import digest, read_bytes
    from em_evals.results import scaling as tables
    from em_evals.results import scaling_models

    if bool(table) == published:
        raise EmEvalsError("name a table of rates or logs, or pass --published for the shipped table.")
    for path in (*table, *([bases] if bases is not None else [])):
        if not path.exists():
            raise EmEvalsError(f"there is no file or folder '{path}'.")
    if table and [path.suffix.lower() for path in table] != [".csv"]:
        if bases is None or bases.suffix.lower() not in _YAML:
            raise EmEvalsError(
                "logs do not say what an organism was trained on: pass --models models.yaml, which lists organisms."
            )
        models = scaling_models.read(bases)
        rows = scaling_models.read_logs(table, models, coherent=coherent, active=active)
        return rows, models.bases, "logs", {"bases": digest(read_bytes(bases))}
    bases = bases or tables.published("bases")
    rates = table[0] if table else tables.published("em_rates")
    listed = bases.suffix.lower() in _YAML
    sizes = scaling_models.read(bases).bases if listed else tables.read_bases(bases)
    rows = tables.read(
        rates, sizes, comparable=comparable, recipe=recipe, source=source, coherent=coherent, active=active
    )
    digests = {"rates": digest(read_bytes(rates)), "bases": digest(read_bytes(bases))}
    return rows, sizes, rates.name if table else "published rates", digests


def _plan(
    folder: Path,
    bases: Path,
    chosen: tuple[str, tuple[str, ...], int, str, int, str, float],
    as_json: bool,
) -> None:
    """Write a plan and print what it could find."""
    from em_evals.interp import scaling_plan
    from em_evals.results import scaling_models

    found = scaling_plan.write(scaling_models.read(bases), folder, scaling_plan.Settings(*chosen))
    if as_json:
        print_json(found.as_json())
        return
    shown = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
    print_table(
        f"power to find a slope of the logit per tenfold of T: {len(found.cards)} organisms, {found.draws} draws each",
        ["spread between bases of one size", *map(str, shown), "smallest slope at 80%"],
        [
            [
                f"{spread:g}",
                *(f"{dict(zip(one.slopes, one.power, strict=True))[slope]:.0%}" for slope in shown),
                f"{one.smallest:.2f}" if one.smallest == one.smallest else f"above {one.slopes[-1]:g}",
            ]
            for spread, one in found.powers.items()
        ],
    )
    for note in found.notes:
        echo(note)
    echo(
        f"wrote {folder}: models.yaml, {len(found.cards)} cards in adapters/, and run.sh, which runs all of it."
    )


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
                measured_cell(one.least_squares, "+.2f"),
                p_cell(one.least_squares.p),
                measured_cell(one.mixed, "+.2f"),
                measured_cell(one.within_family, "+.2f"),
            ]
            for one in found.predictors
        ],
    )
    for sentence in [*found.left_out, *found.conclusion]:
        echo(sentence)
