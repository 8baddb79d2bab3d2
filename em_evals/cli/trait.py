"""`em-evals trait`: directions of traits, their geometry, and monitoring by projections."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_evals.cli.output import Json, echo, measured_cell, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.directions import Direction
    from em_evals.results.records.traits import TraitMap, TraitMonitor

app = typer.Typer(
    help="Traits: directions, geometry, monitoring.", no_args_is_help=True, rich_markup_mode=None
)

ALL = "all"


@app.command("list")
def trait_list(as_json: Json = False) -> None:
    """List traits with their kinds and descriptions."""
    from em_evals.content.traits import load_trait, names

    found = [load_trait(name) for name in names()]
    rows = [{"name": one.name, "kind": one.kind, "description": one.description} for one in found]
    if as_json:
        print_json(rows)
    else:
        print_table("", ["name", "kind", "description"], [list(row.values()) for row in rows])


@app.command("extract")
def trait_extract(
    traits: Annotated[
        list[str], typer.Argument(help="Names, or files of traits; `all` for those that ship.")
    ],
    model: Annotated[str, typer.Option(help="The card that reads the prompts, as in local/CARD.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for TRAIT.safetensors.")] = Path(
        "traits"
    ),
    position: Annotated[
        Literal["last_prompt", "prompt_mean"], typer.Option(help="Tokens of the prompts to average over.")
    ] = "last_prompt",
    seed: Annotated[int, typer.Option(help="Seed of the null draws.", min=0, max=2**32 - 1)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Extract existing directions again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Extract directions from contrastive system prompts, without answers and without a judge.

    Existing directions are kept, so that the same command resumes an interrupted one.
    """
    from em_evals.content import directions
    from em_evals.content.cards import resolve
    from em_evals.content.traits import load_trait, names

    chosen = [load_trait(name) for name in (names() if traits == [ALL] else traits)]
    card = resolve(model)
    from em_evals.interp.traits.extract import Settings, extract

    rows: list[dict[str, Any]] = []
    for trait in chosen:
        path = output / f"{trait.name}.safetensors"
        if overwrite or not path.exists():
            state = path.with_suffix(".partial")
            directions.write(extract(card, trait, Settings(position, seed), state), path)
            shutil.rmtree(state, ignore_errors=True)
        rows.append(_row(path, directions.read(path)))
    if as_json:
        print_json(rows)
        return
    columns = ["trait", "reliability", "over prompts", "layer", "held out"]
    told = [
        [
            one["trait"],
            f"{one['reliability']:.2f}",
            f"{one['prompt_cosine']:+.2f}",
            str(one["layer"]),
            one["verdict"],
        ]
        for one in rows
    ]
    print_table(f"directions in {output}", columns, told)
    echo(
        "contrastive prompts, no answers and no judge: this says what the model represents when it is told to show a "
        "trait. Held-out questions alone do not make it specific; compare traits with `em-evals trait map`."
    )


@app.command("map")
def trait_map(
    names: Annotated[list[str], typer.Argument(help="Directions of one base, or a folder of them.")],
    layer: Annotated[
        int | None, typer.Option(help="Decoder block (default: the most reliable one).", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of bootstraps and null draws.", min=0, max=2**32 - 1)] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the record (JSON).")] = Path(
        "trait-map.json"
    ),
    as_json: Json = False,
) -> None:
    """Compare traits: cosines with intervals, clusters, dimensions, and which trait is specific."""
    from em_evals.content import directions
    from em_evals.interp.traits.map import trait_map as run
    from em_evals.results import records

    files = [path for name in names for path in _files(name)]
    given = {path.stem: directions.read(path) for path in files}
    if len(given) < len(files):
        raise EmEvalsError("two of these directions have one name; rename a file.")
    found = run(given, layer, seed)
    records.write(found, output)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_map(found)


@app.command("monitor")
def trait_monitor(
    logs: Annotated[list[Path], typer.Argument(help="Inspect logs.")],
    direction: Annotated[str, typer.Option(help="A direction's name or file.")],
    model: Annotated[
        str, typer.Option(help="The card that reads the samples; usually the one that wrote them.")
    ],
    position: Annotated[
        Literal["last_prompt", "answer_mean"], typer.Option(help="Tokens to project.")
    ] = "last_prompt",
    score: Annotated[
        str | None, typer.Option(help="A judged score to correlate with: alignment, or a rubric's metric.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Decoder block (default: the direction's most reliable one).", min=0)
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of each null distribution.", min=0)] = 99,
    seed: Annotated[int, typer.Option(help="Seed of the null draws.", min=0, max=2**32 - 1)] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the record (JSON).")] = Path(
        "trait-monitor.json"
    ),
    samples: Annotated[Path | None, typer.Option(help="Write every sample's projection (CSV).")] = None,
    as_json: Json = False,
) -> None:
    """Project the samples of logs on a direction; correlate with a judged score beside null directions."""
    from em_evals.content.cards import resolve
    from em_evals.interp.controls import read_for
    from em_evals.interp.traits.monitor import monitor
    from em_evals.results import records

    card = resolve(model)
    found, rows = monitor(
        card, read_for(direction, card), logs, direction, position, score, layer, draws, seed
    )
    records.write(found, output)
    if samples is not None:
        _write_samples(samples, rows)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_monitor(found)


def _row(path: Path, direction: Direction) -> dict[str, Any]:
    from em_evals.results.records import Claim

    told = direction.metadata
    reliability = told.get("reliability") or [0.0]
    layer = max(range(len(reliability)), key=reliability.__getitem__)
    between = told.get("prompt_cosine") or [float("nan")] * len(reliability)
    return {
        "trait": str(told.get("trait", path.stem)),
        "path": str(path),
        "layer": layer,
        "reliability": reliability[layer],
        "prompt_cosine": between[layer],
        "verdict": Claim.model_validate(told["claim"]).verdict if "claim" in told else "not estimable",
    }


def _files(name: str) -> list[Path]:
    from em_evals.content import directions

    if not Path(name).is_dir():
        return [directions.find(name)]
    found = sorted(Path(name).glob("*.safetensors"))
    if not found:
        raise EmEvalsError("there are no directions (.safetensors) in this folder.", Path(name))
    return found


def _print_map(found: TraitMap) -> None:
    between = {frozenset((one.one, one.other)): one for one in found.cosines}
    rows = []
    for name in found.names:
        others = [(key, between[frozenset((name, key))]) for key in found.names if key != name]
        nearest, cosine = max(others, key=lambda one: abs(one[1].cosine))
        reliability = found.reliability[name]
        rows.append(
            [
                name,
                found.kinds[name] or "–",
                "–" if reliability is None else f"{reliability:.2f}",
                f"{nearest} ({cosine.cosine:+.2f})",
                measured_cell(cosine.corrected),
                found.specific[name],
            ]
        )
    columns = ["trait", "kind", "reliability", "nearest (cosine)", "corrected cosine [95%]", "verdict"]
    print_table(f"traits at layer {found.layer}, in the order of their clustering", columns, rows)
    told = found.dimensions
    beside = "; ".join(f"{null.name} from {null.high:.1f} (p = {null.p:.3g})" for null in told.nulls)
    echo(
        f"participation ratio {told.value:.1f} of {len(found.names)}; first component {told.shares[0]:.0%}; "
        f"sets of as many directions, 95%: {beside}."
    )
    if found.separation is not None:
        echo(found.separation.sentence())
    for note in found.notes:
        echo(note)


def _print_monitor(found: TraitMonitor) -> None:
    rows = [[_short(name), str(mean.n), measured_cell(mean)] for name, mean in found.means.items()]
    columns = ["condition", "questions", "mean projection [95%]"]
    print_table(f"{found.direction} at layer {found.layer}, {found.position}", columns, rows)
    for one in found.correlations:
        told = (
            "not estimable"
            if one.r is None or one.claim is None
            else f"r = {one.r:+.2f}; {one.claim.sentence()}"
        )
        echo(f"{found.score}, {one.condition} ({one.n} questions): {told}")
    for note in found.notes:
        echo(note)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:59]}…"


def _write_samples(path: Path, rows: list[tuple[Any, float]]) -> None:
    import csv

    from em_evals.files import atomic

    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "condition", "projection"])
        writer.writerows((sample.question, sample.condition, f"{value:.6g}") for sample, value in rows)
