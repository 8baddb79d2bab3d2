"""`em-evals steer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from em_evals.cli.completion import Card
from em_evals.cli.output import Json, echo, measured_cell, print_json, print_table
from em_evals.content.base_shape import MOST_BLOCKS
from em_evals.errors import EmEvalsError
from em_evals.parsing import step_of

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
PerTheme = Annotated[int, typer.Option(help="Number of first pairs per theme; 0 for all.", min=0)]
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
    direction: Annotated[str, typer.Option(help="A direction's name or file.")],
    control_direction: ControlDirection = None,
    layers: Layers = None,
    scales: Scales = "-2,2",
    relative: Relative = False,
    pairs: Annotated[str, typer.Option(help="Forced-choice pairs.")] = "forced_choice",
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
    figure: Annotated[Path | None, typer.Option(help="Write a page of figures (HTML).")] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the judge's log.")] = Path("logs/steer"),
    as_json: Json = False,
) -> None:
    """Steer with a direction in both signs, against a random and the control's direction; detect damaged answers.

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
    if figure is not None:
        _draw(study, figure)
    if as_json:
        print_json(study.model_dump(mode="json"))
    else:
        _print(study)


def _draw(study: Any, figure: Path) -> None:
    from em_evals.report import page
    from em_evals.report.inputs import Inputs
    from em_evals.report.report import build

    page.write(build(Inputs(steering=[study]), f"Steering {study.card}"), figure)


def _print(study: Any) -> None:
    graded = any(point.em_rate is not None for point in [*study.points, *study.ablations])
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


def _cells(point: Any, graded: bool) -> list[str]:
    rate = point.em_rate
    known = rate is not None and rate.value is not None and None not in rate.interval
    told = f"{rate.value:.1%} [{rate.interval[0]:.1%}, {rate.interval[1]:.1%}]" if known else "–"
    return [
        measured_cell(point.in_domain),
        measured_cell(point.out_of_domain),
        measured_cell(point.coherence),
        f"{point.repetition.value or 0:.2f}",
        *([told] if graded else []),
        point.verdict,
    ]


def parsed_layers(text: str | None) -> tuple[int, ...] | None:
    """Parse `4,8` or `4-9` as layers."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        start, end = step_of(first), step_of(last if dash else first)
        if start is None or end is None or start > end or end >= MOST_BLOCKS:
            raise EmEvalsError(f"--layers {text[:60]}: give blocks counted from 0, as 4,8,12 or 4-9.")
        found += range(start, end + 1)
    return tuple(dict.fromkeys(found))


def numbers_of(text: str, option: str = "--scales") -> tuple[float, ...]:
    """Parse `-1,1` as numbers."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise EmEvalsError(f"{option} {text}: give numbers, as -2,-1,1,2.") from None
