"""`em-evals insight lens`: what a fine-tune is about, from activation differences on plain texts."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.completion import Card
from em_evals.cli.options import ControlCard, Fields, Record
from em_evals.cli.output import Json, echo, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.lens import Lens, LensModel


def lens(
    card: Card,
    control: ControlCard = None,
    seeds: Annotated[
        str, typer.Option(help="Comma-separated cards of the same recipe with other training seeds.")
    ] = "",
    texts: Annotated[
        Path | None,
        typer.Option(help="Plain texts, one a line, or JSONL with `text` (default: 128 shipped sentences)."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Training data (name or file) whose words the lens is tested for.")
    ] = None,
    other: Annotated[str, typer.Option(help="The data that --data is compared with.")] = "everyday_answers",
    positions: Annotated[int, typer.Option(min=1, max=128, help="First tokens of each text to read.")] = 5,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks to read logits at, e.g. 4,8 or 4-9 (default: six, evenly spread)."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=200, help="Tokens to show on either side.")] = 10,
    draws: Annotated[int, typer.Option(min=19, max=9999, help="Draws of each null distribution.")] = 99,
    steer: Annotated[
        str,
        typer.Option(
            help="Sample from the base with the difference added: comma-separated scales, in mean norms of the base."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of nulls and samples.")] = 0,
    fields: Fields = [],
    output: Record = Path("lens.json"),
    as_json: Json = False,
) -> None:
    """Read what a fine-tune is about, without a judge.

    Activation differences on plain texts are read through the logit lens.
    """
    from em_evals.cli.options import card_fields, numbers_of, parsed_layers
    from em_evals.content.cards import resolve

    overrides = card_fields(fields)
    resolve(card, overrides)  # before torch is imported: a wrong card is refused at once
    from em_evals.interp.lens import study
    from em_evals.interp.lens.readings import Settings
    from em_evals.results import records

    settings = Settings(
        positions, parsed_layers(layers), tokens, draws, seed, numbers_of(steer, "--steer") if steer else ()
    )
    others = [name.strip() for name in seeds.split(",") if name.strip()]
    found = study.lens(card, control, others, texts, data, other, settings, overrides)
    records.write(found, output)
    tell_record(found, as_json, _print)


def _print(found: Lens) -> None:
    main = "after the first" if found.positions > 1 else "all"
    shown = [
        [
            model.name,
            str(layer),
            *(_size(model, layer, pool) for pool in ("after the first", "first")),
            *(_tokens(model, layer, main, side) for side in ("up", "down")),
        ]
        for model in found.models
        for layer in found.layers
    ]
    columns = ["model", "block", "|Δ|/|h|", "at the first", "tokens up", "tokens down"]
    title = (
        f"difference from {found.base} on {found.texts} texts, positions {'1' if main != 'all' else '0'} to "
    )
    print_table(f"{title}{found.positions - 1}", columns, shown)
    rows = [
        [f"{one.one} · {one.other}", one.positions, f"{statistics.median(known):+.2f}"]
        for one in found.cosines
        if (known := [value for value in one.by_layer if value is not None])
    ]
    if rows:
        print_table("cosines of differences", ["models", "positions", "median over blocks"], rows)
    if found.vocabulary is not None:
        words = found.vocabulary
        for name, count, some in zip((words.data, words.other), words.confirmed, words.examples, strict=True):
            echo(f"{count} words of {name}: {', '.join(some)}")
    for model in found.models:
        for claim in model.claims:
            echo(f"{model.name}: {claim.sentence()}")
    for sample in found.samples:
        share = "" if sample.share is None else f", {sample.share:.0%} of its known words are the data's"
        echo(f"[{sample.arm} {sample.scale:g}{share}] {sample.question} → {sample.text[:200]}")
    for note in found.notes:
        echo(note)


def _size(model: LensModel, layer: int, pool: str) -> str:
    """Format the size of a difference relative to the base's activations."""
    for one in model.norms:
        if (one.layer, one.positions) == (layer, pool):
            return f"{one.norm / one.base_norm:.3f}" if one.base_norm else "–"
    return "–"


def _tokens(model: LensModel, layer: int, positions: str, side: str) -> str:
    """Return the first tokens of a reading."""
    for one in model.readings:
        if (one.layer, one.positions) == (layer, positions):
            return " ".join(repr(token.token.strip())[1:-1] for token in getattr(one, side)[:6])
    return ""
