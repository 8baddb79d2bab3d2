"""`em-evals direction`: extract, inspect, combine and export directions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_evals.cli.cluster import Cpus, Gpus, Where, Workers, asked
from em_evals.cli.options import DirectionFile, FirstPairs, NullSeed, Split
from em_evals.cli.output import Json, echo, number_cell, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.cards import ResolvedCard
    from em_evals.content.directions import Direction
    from em_evals.interp.extraction.chunks import Elsewhere
    from em_evals.interp.extraction.contrast import Contrast
    from em_evals.interp.extraction.extract import Settings


ContrastKind = Annotated[
    str,
    typer.Option(
        help="pairs: misaligned - aligned forced-choice answers. graded: misaligned - aligned answers of --log, by "
        "grade. answers: CARD's (--log) - its base's (--base-log). files: --positive - --negative. models: CARD - "
        "its base on the same texts (--positive and --negative, or the pairs)."
    ),
]
Log = Annotated[list[Path] | None, typer.Option(help="Freeform log of CARD (repeatable).")]
BaseLog = Annotated[list[Path] | None, typer.Option(help="Freeform log of its base (repeatable).")]
Pairs = Annotated[str | None, typer.Option(help="Set of forced-choice pairs (default: forced_choice).")]
Themes = Annotated[str | None, typer.Option(help="Use only pairs of these themes (comma-separated).")]
Position = Annotated[
    Literal["answer_mean", "last_prompt", "prompt_mean"], typer.Option(help="Tokens to average over.")
]
Control = Annotated[
    str | None,
    typer.Option(
        help="Card of the harmless control, whose movement is reported (default: the trained card with "
        "`control_of: CARD`)."
    ),
]
OrthogonalTo = Annotated[
    str | None, typer.Option(help="Remove this direction (the control's) from the result.")
]


def direction_extract(
    card: Annotated[str, typer.Argument(help="The model under test, as in local/CARD.")],
    output: DirectionFile,
    contrast: ContrastKind = "pairs",
    log: Log = None,
    base_log: BaseLog = None,
    positive: Annotated[Path | None, typer.Option(help="Chats (JSONL or parquet).")] = None,
    negative: Annotated[Path | None, typer.Option(help="Chats (JSONL or parquet).")] = None,
    pairs: Pairs = None,
    themes: Themes = None,
    per_theme: FirstPairs = None,
    position: Position = "answer_mean",
    control: Control = None,
    orthogonal_to: OrthogonalTo = None,
    minimum: Annotated[int, typer.Option(help="Minimum number of answers per side.", min=1)] = 10,
    split: Split = True,
    seed: NullSeed = 0,
    on: Where = "here",
    workers: Workers = None,
    cpus: Cpus = 2,
    gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Extract a direction: a difference of mean activations.

    Every layer has a direction of its own.

    Repeat the same command to resume an interrupted extraction (with --on ray it begins again).
    """
    from em_evals.content.cards import resolve

    model = resolve(card)  # before torch is imported: a wrong card is refused at once
    cluster = asked(on, cpus, gpus)
    from em_evals.interp.controls import read_for
    from em_evals.interp.extraction.contrast import of_models
    from em_evals.interp.extraction.extract import Settings
    from em_evals.interp.extraction.kinds import make

    chosen = None if themes is None else [theme for theme in themes.split(",") if theme]
    options: dict[str, Any] = {"--log": log, "--base-log": base_log, "--pairs": pairs, "--themes": chosen}
    options |= {"--per-theme": per_theme, "--positive": positive, "--negative": negative}
    given = {option: value for option, value in options.items() if value not in (None, [])}
    kind = _texts(contrast, given)
    texts = make(kind, model, given)
    if contrast == "models":
        texts = of_models(model, texts)
    other = read_for(orthogonal_to, model) if orthogonal_to else None
    settings = Settings(position=position, split=split, minimum=minimum, seed=seed)
    elsewhere = None
    if cluster is not None:
        from em_evals.sweep import ray_data

        elsewhere = ray_data.extractor(model, position, *cluster, workers)
    _extract(model, texts, settings, control, other, output, elsewhere)
    _show(output, as_json)


def _extract(
    model: ResolvedCard,
    texts: Contrast,
    settings: Settings,
    control: str | None,
    other: Direction | None,
    output: Path,
    elsewhere: Elsewhere | None,
) -> None:
    """Extract a direction to its file; unfinished sums are kept beside it until it is complete."""
    import shutil

    from em_evals.content import directions
    from em_evals.content.cards import control_for, resolve
    from em_evals.interp.extraction.extract import extract

    harmless = control or control_for(model.name)
    if harmless is None:
        echo("no trained control is known: how much of this direction is style remains unknown.", err=True)
    state = output.with_suffix(".partial")
    beside = resolve(harmless) if harmless else None
    found = extract(model, texts, settings, beside, other, state, elsewhere)
    directions.write(found, output)
    shutil.rmtree(state, ignore_errors=True)


def direction_show(
    direction: Annotated[str, typer.Argument(help="A direction's name or file.")], as_json: Json = False
) -> None:
    """Show how a direction was made, and its reliability."""
    from em_evals.content import directions

    _show(directions.find(direction), as_json)


def direction_compare(
    names: Annotated[list[str], typer.Argument(help="Two or more directions of one base.")],
    as_json: Json = False,
) -> None:
    """Print cosines between directions, layer by layer.

    Each is shown with whether it exceeds its null distribution.
    """
    from itertools import combinations

    from em_evals.content import direction_algebra, directions
    from em_evals.interp.shared_direction import cosine_claim

    if len(names) < 2:
        raise EmEvalsError("a comparison needs two directions or more.")
    read = {name: directions.read(directions.find(name)) for name in names}
    cosines = {(a, b): direction_algebra.cosine(read[a], read[b]) for a, b in combinations(names, 2)}
    floor = direction_algebra.random_cosine(read[names[0]].width)
    claims = {
        (a, b): cosine_claim(read[a], read[b], [read[name] for name in names if name not in (a, b)])
        for a, b in cosines
    }
    if as_json:
        pairs = [
            {"one": a, "other": b, "by_layer": values.tolist(), "claim": claims[a, b].model_dump(mode="json")}
            for (a, b), values in cosines.items()
        ]
        print_json({"cosines": pairs, "random_95": floor})
        return
    layers = range(read[names[0]].layers)
    rows = [[str(layer), *(f"{values[layer]:+.3f}" for values in cosines.values())] for layer in layers]
    print_table("cosine", ["layer", *(f"{a} · {b}" for a, b in cosines)], rows)
    echo(f"95% of pairs of random directions have a cosine between -{floor:.3f} and +{floor:.3f}.")
    for (a, b), claim in claims.items():
        echo(f"{a} · {b}: {claim.sentence()}")


def direction_combine(
    parts: Annotated[list[str], typer.Argument(help="NAME, or WEIGHT*NAME: 1*mine -- -1*other subtracts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file.")],
    orthogonal_to: Annotated[str | None, typer.Option(help="Remove this direction from the result.")] = None,
    as_json: Json = False,
) -> None:
    """Write a weighted sum of directions."""
    from em_evals.content import direction_algebra, directions

    weighted = [_weighted(part) for part in parts]
    found = direction_algebra.combine(
        [(weight, directions.read(directions.find(name))) for weight, name in weighted], how=" + ".join(parts)
    )
    if orthogonal_to:
        found = direction_algebra.orthogonalise(found, directions.read(directions.find(orthogonal_to)))
    directions.write(found, output)
    _written(output, as_json)


def direction_export(
    direction: Annotated[str, typer.Argument(help="A direction's name or file.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=".gguf: llama.cpp's control vector; .safetensors: one layer."),
    ],
    layer: Annotated[int | None, typer.Option(help="The layer of a .safetensors file.")] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="llama.cpp's name of the architecture, for a .gguf file; default llama."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a direction for another program."""
    from em_evals.content import direction_exports, directions

    found = directions.read(directions.find(direction))
    unread = {".gguf": ("--layer", layer), ".safetensors": ("--architecture", architecture)}
    option, value = unread.get(output.suffix, ("", None))
    if value is not None:
        raise EmEvalsError(f"{option} does not apply to a {output.suffix} file; omit it.")
    if output.suffix == ".gguf":
        direction_exports.to_gguf(found, output, architecture or "llama")
    elif output.suffix == ".safetensors" and layer is not None:
        direction_exports.to_safetensors(found, output, layer)
    else:
        raise EmEvalsError("write to a .gguf file, or to a .safetensors file with --layer.")
    _written(output, as_json)


def direction_import(
    file: Annotated[Path, typer.Argument(help=".safetensors, .npz, .npy, .gguf, or .pt of plain tensors.")],
    base: Annotated[str, typer.Option(help="The base that it was made for.")],
    output: DirectionFile,
    revision: Annotated[str | None, typer.Option(help="The base's revision.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer of a single vector.")] = None,
    key: Annotated[str | None, typer.Option(help="Which tensor, where there are several.")] = None,
    numbering: Annotated[
        Literal["blocks", "hidden_states"] | None,
        typer.Option(
            help="How the file counts layers: decoder blocks from 0, or hidden_states, whose 0 are the embeddings. "
            "Default: hidden_states for a stack of one row more than there are blocks, else blocks."
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="A direction of ours for the same base: takes over its mean and norms.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import a direction that another program wrote."""
    from em_evals.content import directions
    from em_evals.interp import foreign_directions

    near = directions.read(directions.find(like)) if like is not None else None
    found = foreign_directions.read(file, base, revision, layer, key, numbering, near)
    directions.write(found, output)
    if not as_json:
        blocks = found.metadata.get("blocks")
        echo(f"{found.metadata.get('how', '')}: blocks {blocks} of {found.layers}")
    _written(output, as_json)


def _texts(contrast: str, given: Collection[str]) -> str:
    """Return the kind of contrast that provides the texts; refuse options that it does not use."""
    from em_evals.interp.extraction.kinds import KINDS, check

    if contrast != "models":
        check(contrast, given)
        return contrast
    files = KINDS["files"].parameters
    if {*files} & {*given}:
        check("files", given, f"models with {' and '.join(files)}")
        return "files"
    check("pairs", given, "models")
    return "pairs"


def _written(output: Path, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(output)})
    else:
        echo(str(output))


def _weighted(part: str) -> tuple[float, str]:
    weight, star, name = part.partition("*")
    try:
        return (float(weight), name) if star else (1.0, part)
    except ValueError:
        raise EmEvalsError(f"'{part}' is not a weighted direction; write it as 0.5*NAME.") from None


def _show(path: Path, as_json: bool) -> None:
    from em_evals.content import directions
    from em_evals.content.direction_summary import by_layer

    found = directions.read(path)
    columns = by_layer(found)
    if as_json:
        print_json({"path": str(path), "length": columns["length"], **found.metadata})
        return
    for key in ("how", "base", "card", "position", "counts"):
        if key in found.metadata:
            echo(f"{key}: {found.metadata[key]}")
    if "claim" in found.metadata:
        from em_evals.results.records.claims import Claim

        echo(f"held out: {Claim.model_validate(found.metadata['claim']).sentence()}")
    rows = [
        [
            str(layer),
            *(number_cell(values[layer], ".3f") for values in columns.values()),
        ]
        for layer in range(found.layers)
    ]
    print_table(path.name, ["layer", *columns], rows)
