"""`em-evals steer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.completion import Card
from em_evals.cli.options import DirectionName, Figure, Pairs, PerTheme, numbers_of, parsed_layers
from em_evals.cli.output import Json, draw, echo, measured_cell, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.studies import SteeredArm, SteeringStudy

ControlDirection = Annotated[
    str | None, typer.Option(help="The control organism's direction, added at the same norm.")
]
Layers = Annotated[
    str | None, typer.Option(help="Blocks to steer at, e.g. 4,8,12 or 4-9 (default: six, evenly spread).")
]
Scales = Annotated[
    str, typer.Option(help="Comma-separated steering coefficients, in units of the direction's norm.")
]
Relative = Annotated[
    bool, typer.Option("--relative", help="Give scales in units of the base's mean activation norm instead.")
]
Limit = Annotated[int, typer.Option(help="Number of first questions; 0 for all.", min=0)]
Judge = Annotated[str | None, typer.Option(help="A model (Inspect's name) that grades the answers.")]
JudgeCache = Annotated[
    bool, typer.Option("--judge-cache/--no-judge-cache", help="Use and keep the judge's earlier replies.")
]
Nulls = Annotated[
    int,
    typer.Option(
        help="Draws of each null distribution (random of equal norm, covariance-matched, permuted labels), scored by "
        "forced choice; 19 or more allow a verdict.",
        min=0,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of the random directions and of the draws.", min=0, max=2**32 - 1)
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Write the study (JSON).")]


def steer(
    card: Card,
    direction: DirectionName,
    control_direction: ControlDirection = None,
    layers: Layers = None,
    scales: Scales = "-2,2",
    relative: Relative = False,
    pairs: Pairs = "forced_choice",
    per_theme: PerTheme = 6,
    questions: Annotated[str, typer.Option(help="Set of open questions.")] = "core",
    limit: Limit = 0,
    draws: Annotated[int, typer.Option(help="Answers per question.", min=1)] = 1,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 60,
    judge: Judge = None,
    judge_cache: JudgeCache = True,
    nulls: Nulls = 0,
    seed: Seed = 0,
    output: Output = Path("steer.json"),
    figure: Figure = None,
    logs: Annotated[Path, typer.Option(help="Folder for the judge's log.")] = Path("logs/steer"),
    as_json: Json = False,
) -> None:
    """Steer with a direction in both signs.

    A random direction and the control's stand beside it; damaged answers are detected.

    Repeat the same command to resume an interrupted study.
    """
    from em_evals.content import cards
    from em_evals.results import records

    cards.resolve(card)  # report an invalid card before torch is imported
    pushed, scaled = parsed_layers(layers), numbers_of(scales)
    from em_evals.interp.steering.steer import steer as run
    from em_evals.interp.steering.study import Settings

    settings = Settings(
        *(pushed, scaled, relative, pairs, per_theme or None, questions, limit or None, draws, max_tokens),
        *(judge, seed, judge_cache, nulls),
    )
    study = run(card, direction, control_direction, settings, output, logs)
    records.write(study, output)
    draw(study, figure, f"Steering {study.card}")
    tell_record(study, as_json, _print)


def _print(study: SteeringStudy) -> None:
    every: list[SteeredArm] = [*study.points, *study.ablations]
    graded = any(point.em_rate is not None for point in every)
    columns = ["arm", "change", "in-domain", "out-of-domain", "coherence", "repeats"]
    columns += ["EM rate", "verdict"] if graded else ["verdict"]
    rows = [
        [point.arm, f"scale {point.scale:+g}", *_cells(point, graded)]
        for point in study.points
        if point.layer == study.chosen_layer
    ]
    rows += [[point.arm, point.how, *_cells(point, graded)] for point in study.ablations]
    title = f"{study.card}: shift from the unsteered model, nats per token [95% interval]"
    print_table(f"{title}; steered at layer {study.chosen_layer}", columns, rows)
    rows = [
        [
            f"direction − {one.against}",
            one.how,
            measured_cell(one.in_domain),
            measured_cell(one.out_of_domain),
        ]
        for one in study.contrasts
    ]
    print_table(
        "the direction against the other arms", ["contrast", "change", "in-domain", "out-of-domain"], rows
    )
    if study.claim is not None:
        echo(study.claim.sentence())
    for note in study.notes:
        echo(note)
    echo(f"coherence: {study.coherence_is}.\n{study.damage_rule}.")
    echo(
        "intervals hold for each row separately; verdicts hold for all layers, scales, arms and both domains jointly "
        "(max-T over sign flips of the pairs, 5%)."
    )


def _cells(point: SteeredArm, graded: bool) -> list[str]:
    return [
        measured_cell(point.in_domain),
        measured_cell(point.out_of_domain),
        measured_cell(point.coherence),
        f"{point.repetition.value or 0:.2f}",
        *([measured_cell(point.em_rate, ".1%")] if graded else []),
        point.verdict,
    ]
