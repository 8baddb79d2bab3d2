"""`em-evals study`: the study of the seed paper on a small base, from training to tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from em_evals.cli.output import Json, echo, measured_cell, number_cell, print_json, print_table


def study(
    folder: Annotated[Path, typer.Option(help="Folder of directions and records.")] = Path("runs/study"),
    per_theme: Annotated[int, typer.Option(help="Forced-choice pairs per theme.", min=1)] = 5,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each organism and control; effects are then over seeds.", min=1)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Study three organisms and their controls in one command.

    It extracts directions, tests convergence, transfer and scalars, and writes a page of figures.

    Repeat the same command to resume it.
    """
    from em_evals.report import inputs, page
    from em_evals.report.report import build
    from em_evals.workflows.study import LIMITS, ONE_SEED, run

    found = run(folder, lambda what: echo(what, err=True), per_theme, seeds)
    figures = folder / "study.html"
    page.write(build(inputs.read([folder]), "Convergent directions: a study in small"), figures)
    if as_json:
        print_json({"convergence": found.convergence.model_dump(), "scalars": found.scalars.model_dump()})
        return
    depth = len(found.convergence.cosines[0].by_layer)
    layers = [depth // 4, depth // 2, 3 * depth // 4, depth - 1]
    rows = [
        [
            f"{pair.one} · {pair.other}",
            *(number_cell(pair.by_layer[layer], "+.2f") for layer in layers),
        ]
        for pair in found.convergence.cosines
    ]
    print_table("cosine of directions", ["", *(f"layer {layer}" for layer in layers)], rows)
    rows = [
        [
            f"{one.source} from {one.target}",
            one.arm,
            measured_cell(one.in_domain),
            measured_cell(one.out_of_domain),
        ]
        for one in found.convergence.transfer
    ]
    columns = ["ablated", "arm", "in-domain [95%]", "out-of-domain [95%]"]
    print_table("forced choice after the ablation minus before, nats per token", columns, rows)
    for knockout in found.scalars.knockouts:
        echo(f"{knockout.model}: {knockout.sentence}")
    for note in dict.fromkeys([*found.convergence.notes, *found.scalars.notes]):
        echo(note)
    for effect in found.convergence.over_seeds:
        echo(effect.sentence())
    echo(LIMITS if seeds > 1 else f"{LIMITS} {ONE_SEED}")
    echo(f"records: {folder}; figures: {figures}")
