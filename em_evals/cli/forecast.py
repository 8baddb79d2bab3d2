"""`em-evals insight forecast`: on which questions EM is expected first, from the base alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.options import Fields, Record
from em_evals.cli.output import Json, echo, measured_cell, number_cell, p_cell, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.forecast import Forecast


class Position(StrEnum):
    """Which tokens of a prompt are read."""

    LAST_PROMPT = "last_prompt"
    PROMPT_MEAN = "prompt_mean"


class Metric(StrEnum):
    """How distances are computed."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"


def forecast(
    training: Annotated[str, typer.Argument(help="Training data, by name or file.")],
    questions: Annotated[str, typer.Option(help="A question set or forced-choice pairs, by name or path.")],
    base: Annotated[str, typer.Option(help="A card or model of the base.")],
    logs: Annotated[
        list[Path],
        typer.Option(help="Graded or forced-choice logs of the organism; several are seeds (repeatable)."),
    ] = [],
    reference: Annotated[
        list[Path], typer.Option(help="Logs of the base or control, subtracted (repeatable).")
    ] = [],
    layer: Annotated[int | None, typer.Option(help="Block to read, from 0 (default: the middle).")] = None,
    position: Annotated[Position, typer.Option(help="Tokens of a prompt to read.")] = Position.LAST_PROMPT,
    metric: Annotated[Metric, typer.Option(help="Distance to the training prompts' mean.")] = Metric.COSINE,
    rows: Annotated[int, typer.Option(min=2, help="Training prompts to read, at most.")] = 100,
    first: Annotated[
        int | None, typer.Option(min=1, help="Questions to judge first (default: a quarter).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of splits and resamples.")] = 0,
    fields: Fields = [],
    output: Record = Path("forecast.json"),
    as_json: Json = False,
) -> None:
    """Order questions by their distance to training prompts.

    Distances are in the base; the order can be compared with what came.
    """
    from em_evals.cli.options import card_fields
    from em_evals.content.cards import resolve

    overrides = card_fields(fields)
    resolve(base, overrides)  # before torch is imported: a wrong card is refused at once
    from em_evals.interp.lens import forecast as study
    from em_evals.results import records

    settings = study.Settings(layer, position.value, metric.value, rows, first, seed)
    found = study.forecast(training, questions, base, logs, reference, settings, overrides)
    records.write(found, output)
    tell_record(found, as_json, _print)


def _print(found: Forecast) -> None:
    known = found.measure is not None
    print_table(
        f"questions of {found.questions} by {found.metric} distance to {found.rows} prompts of {found.data}, "
        f"block {found.layer}; judge the first {found.first} first",
        ["rank", "question", "distance", "shared words", "tokens", *([str(found.measure)] if known else [])],
        [
            [
                str(one.rank),
                one.id,
                f"{one.distance:.4g}",
                f"{one.topic:.3f}",
                f"{one.tokens:.0f}",
                *([number_cell(one.outcome, "+.3f")] if known else []),
            ]
            for one in found.ranked
        ],
    )
    told = [
        ("halves of the training prompts", found.reliability),
        ("halves of the wordings", found.paraphrases),
    ]
    for what, value in told:
        if value is not None:
            echo(f"reliability of the order over {what}: {value:.3f}")
    if found.scores:
        print_table(
            f"Spearman's correlation with the {found.measure} [95% interval]",
            ["predictor", "questions", "correlation", "p"],
            [
                [
                    one.predictor,
                    str(one.n),
                    measured_cell(one, "+.2f"),
                    p_cell(one.p),
                ]
                for one in [*found.scores, *found.advantages]
            ],
        )
    if found.share_found is not None:
        echo(
            f"the first {found.first} questions have {found.share_found:.0%} of all misaligned draws; "
            f"{found.share_expected:.0%} are expected of as many at random."
        )
    for note in found.notes:
        echo(note)
