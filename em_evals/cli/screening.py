"""`em-evals data screen`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals import progress
from em_evals.cli.cluster import Cpus, Gpus, Where, Workers, asked
from em_evals.cli.options import DirectionName, Figure, Layer
from em_evals.cli.output import Json, draw, echo, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.interp.traits.own_answers import Answers
    from em_evals.interp.traits.screen import Elsewhere

Percent = Annotated[
    str | None,
    typer.Option(
        help="Share of rows to drop, e.g. 5%; writes the rest, and the same number of random rows dropped."
    ),
]


def data_screen(
    file: Annotated[Path, typer.Argument(help="Training data: chats (JSONL or parquet).")],
    direction: DirectionName,
    model: Annotated[str, typer.Option(help="The card that reads the rows; usually the base to train.")],
    layer: Layer = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Subtract the model's own answers, drawn greedily and kept.")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(help="The model's own answers to the rows, in order (JSONL); implies --exact."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="--exact: tokens of an own answer at most.", min=1)] = 256,
    reference: Annotated[
        Path | None, typer.Option(help="Harmless data of the same kind (JSONL or parquet), to compare with.")
    ] = None,
    reference_answers: Annotated[
        Path | None, typer.Option(help="The model's own answers to the reference, with --answers.")
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Draws of each null distribution, with --reference.", min=0)
    ] = 99,
    drop_top: Percent = None,
    seed: Annotated[int, typer.Option(help="Seed of null draws and random rows.", min=0, max=2**32 - 1)] = 0,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Rows by rank (.csv or .parquet); a record (.json) beside it."),
    ] = Path("screen.csv"),
    figure: Figure = None,
    on: Where = "here",
    workers: Workers = None,
    cpus: Cpus = 2,
    gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Rank rows of training data by projection on a direction.

    The score is the difference of projections between a row's answer and the base's own.

    Without --exact no answer is generated: the last prompt token stands for the model's own answer.
    """
    from em_evals.content.cards import resolve

    card = resolve(model)  # before torch is imported: what is not there is refused at once
    _check(direction, file, answers, reference, reference_answers)
    from em_evals.content.direction_summary import chosen_layer
    from em_evals.interp.controls import read_for
    from em_evals.interp.traits import screened_files, screened_parts
    from em_evals.interp.traits.screen import compared, null_directions, screen
    from em_evals.results import records

    share = None if drop_top is None else screened_files.share(drop_top)
    screened_files.check_output(output)
    along = read_for(direction, card)
    block = chosen_layer(along) if layer is None else layer
    drawn, kinds = null_directions(along, draws if reference is not None else 0, seed)
    exact = exact or answers is not None
    beside_it = {name: output.with_suffix(f".{name}.jsonl") for name in ("answers", "reference-answers")}
    own = _own(card, exact, answers, beside_it["answers"], max_tokens)
    elsewhere = _elsewhere(card, block, exact, on, workers, cpus, gpus)
    state = output.with_suffix(".partial")
    how = (card, along, block)
    with progress.bar(f"rows of {file.name}") as advance:
        found = screen(*how, file, drawn, own=own, elsewhere=elsewhere, advance=advance, state=state)
    screened_files.write_ranks(found, output)
    told = screened_files.summary(found, file, direction, block)
    other = beside = None
    if reference is not None:
        own = _own(card, exact, reference_answers, beside_it["reference-answers"], max_tokens)
        with progress.bar(f"rows of {reference.name}") as advance:
            other = screen(*how, reference, drawn, own=own, elsewhere=elsewhere, advance=advance, state=state)
        beside = compared(found, other, kinds)
        told |= {
            "mean_minus_reference": beside.difference,
            "interval_minus_reference": list(beside.interval),
            "claim": beside.claim.model_dump(mode="json"),
            **{f"auroc_of_{name}": value for name, value in beside.alone.items()},
        }
    screened_parts.forget(state)
    if share is not None:
        files = screened_files.write_kept(found, file, share, output, seed)
        told |= {
            "dropped": round(share * len(found.lines)),
            "seed": seed,
            "files": [str(path) for path in files],
        }
    facts = {"direction_digest": along.digest, "card_digest": card.digest, "seed": str(seed)}
    made = screened_files.record(found, file, Path(direction).stem, block, other, beside, facts)
    records.write(made, output.with_suffix(".json"))
    draw(made, figure, f"Screening of {file.name}")
    if as_json:
        print_json(told)
        return
    print_table("", ["what", "value"], [[key, _cell(value)] for key, value in told.items() if key != "claim"])
    if beside is not None:
        echo(beside.claim.sentence())


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _check(
    direction: str, file: Path, answers: Path | None, reference: Path | None, reference_answers: Path | None
) -> None:
    """Refuse what is not there, and answers of one side alone."""
    from em_evals.content import directions

    directions.find(direction)
    for path in (file, answers, reference, reference_answers):
        if path is not None and not path.exists():
            raise EmEvalsError(f"there is no file '{path}'.")
    if answers is not None and (reference is None) != (reference_answers is None):
        raise EmEvalsError(
            "--answers with --reference needs --reference-answers, and one without the other nothing."
        )


def _elsewhere(
    card: ResolvedCard, layer: int, exact: bool, on: str, workers: int | None, cpus: float, gpus: float
) -> Elsewhere | None:
    """Return what reads rows on a cluster; None: this process reads them."""
    cluster = asked(on, cpus, gpus)
    if cluster is None:
        return None
    if exact:
        raise EmEvalsError(
            "--on ray reads rows without the model's own answers; leave --exact and --answers out."
        )
    from em_evals.sweep import ray_data

    return ray_data.screener(card, layer, *cluster, workers)


def _own(card: ResolvedCard, exact: bool, given: Path | None, kept: Path, most: int) -> Answers | None:
    from em_evals.interp.traits.own_answers import Drawn, Given

    if given is not None:
        return Given(given)
    return Drawn(card, kept, most) if exact else None
