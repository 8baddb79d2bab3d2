"""`em-evals trait`: list traits and extract their directions. What is measured with them is in trait_measures.py."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_evals.cli.options import Split, parsed_layers
from em_evals.cli.output import Json, echo, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.traits import Trait

ALL = "all"
_SIDES = ("positive", "negative")
_COUNTS = ("answers", "graded", "refusals", "paper", "code")


def trait_list(as_json: Json = False) -> None:
    """List traits with their kinds and descriptions."""
    from em_evals.content.traits import load_trait, names

    found = [load_trait(name) for name in names()]
    rows = [{"name": one.name, "kind": one.kind, "description": one.description} for one in found]
    if as_json:
        print_json(rows)
    else:
        print_table("", ["name", "kind", "description"], [list(row.values()) for row in rows])


Traits = Annotated[list[str], typer.Argument(help="Names, or files of traits; `all` for those that ship.")]
Judge = Annotated[
    str | None, typer.Option(help="Grades rollouts: PROVIDER/MODEL, or a judge card. Without: prompts alone.")
]
Log = Annotated[
    list[Path] | None, typer.Option(help="Graded log of em_evals/trait, in place of rollouts (repeatable).")
]


Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for TRAIT.safetensors.")]
Position = Annotated[
    Literal["last_prompt", "prompt_mean"] | None,
    typer.Option(help="Tokens of the prompts to average over (default: last_prompt); not with a judge."),
]
Keep = Annotated[
    Literal["paper", "code"],
    typer.Option(
        help="Filter. paper: trait score above 50, below 50 on the negative side. code: pairs of answers, 50 counts as "
        "positive, both coherent from 50 on."
    ),
]
ChooseLayer = Annotated[
    bool, typer.Option("--choose-layer", help="Steer at each layer on the trait's test questions.")
]
Layers = Annotated[
    str | None, typer.Option(help="Blocks to compare, e.g. 4,8,12 or 4-9 (default: six, evenly spread).")
]
Nulls = Annotated[
    int, typer.Option(help="Null directions steered beside it; 19 or more allow a verdict.", min=0)
]


def trait_extract(
    traits: Traits,
    model: Annotated[str, typer.Option(help="The card that answers and reads, as in local/CARD.")],
    output: Output = Path("traits"),
    position: Position = None,
    judge: Judge = None,
    log: Log = None,
    draws: Annotated[int, typer.Option(help="Answers per question and system prompt.", min=1)] = 10,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.", min=1)] = 1000,
    temperature: Annotated[
        float | None, typer.Option(help="Of the answers (default: the card's; the paper's is 1).", min=0)
    ] = None,
    keep: Keep = "paper",
    minimum: Annotated[int, typer.Option(help="Minimum number of kept answers per side.", min=1)] = 10,
    split: Split = True,
    choose_layer: ChooseLayer = False,
    layers: Layers = None,
    coefficient: Annotated[float, typer.Option(help="Of that steering, in direction norms.")] = 2.0,
    nulls: Nulls = 0,
    seed: Annotated[int, typer.Option(help="Seed of answers and nulls.", min=0, max=2**31 - 1)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Extract existing directions again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Extract directions from contrastive system prompts.

    Without a judge they come from the prompts alone.

    Existing directions are kept and rollouts are continued, so that the same command resumes an interrupted one.
    """
    from em_evals.content.cards import resolve

    chosen = chosen_traits(traits)
    card = resolve(model)
    _check(judge, log, position, choose_layer, chosen)
    from em_evals.interp.traits.judged import Settings
    from em_evals.interp.traits.layer import Steering
    from em_evals.workflows import trait_directions
    from em_evals.workflows.trait_rollouts import Sampling

    settings = Settings(keep, minimum, split, seed)
    steering = None
    rows: list[dict[str, Any]] = []
    if choose_layer and judge is not None:
        own = (judge, parsed_layers(layers), coefficient)
        steering = Steering(*own, max_tokens=min(max_tokens, 200), nulls=nulls, seed=seed)
    for number, (named, trait) in enumerate(chosen.items(), start=1):
        if judge is None and not log:
            path = trait_directions.from_prompts(
                card, trait, position or "last_prompt", seed, output, overwrite
            )
        else:
            answers = log or Sampling(str(judge), draws, max_tokens, temperature, seed=seed)
            how = (answers, settings, steering)
            path = trait_directions.from_answers(card, trait, named, *how, output, overwrite)
        rows.append(_row(path))
        echo(f"{path} ({number} of {len(chosen)})", err=True)
    _print(rows, output, as_json)


def chosen_traits(given: list[str]) -> dict[str, Trait]:
    """Return traits by what they were named; `all` are those that ship and those of the working folder."""
    from em_evals.content.traits import load_trait, names

    return {name: load_trait(name) for name in (names() if given == [ALL] else given)}


def _check(
    judge: str | None,
    log: list[Path] | None,
    position: str | None,
    choose_layer: bool,
    chosen: Collection[str],
) -> None:
    """Refuse options that do not go together."""
    if (judge or log) and position:
        raise EmEvalsError(
            "--position is for prompts alone; with judged answers all three are written: answer_mean into the folder, "
            "the others into its folders prompt_mean and last_prompt."
        )
    if choose_layer and not judge:
        raise EmEvalsError("--choose-layer grades steered answers: name a --judge.")
    if log and len(chosen) != 1:
        raise EmEvalsError("--log holds the answers of one trait: name it alone.")


def _print(rows: list[dict[str, Any]], output: Path, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    judged = [row for row in rows if "filter" in row]
    if judged:
        columns = ["trait", "side", "answers", "graded", "refusals", "kept (paper)", "kept (code)"]
        counts = [(row["trait"], side, row["filter"][side]) for row in judged for side in _SIDES]
        print_table(
            f"answers; filter: {judged[0]['filter']['rule']}",
            columns,
            [[trait, side, *(str(own[key]) for key in _COUNTS)] for trait, side, own in counts],
        )
    told = [
        [
            one["trait"],
            f"{one['reliability']:.2f}",
            f"{one['prompt_cosine']:+.2f}" if one["prompt_cosine"] is not None else "–",
            str(one["layer"]),
            one["verdict"],
        ]
        for one in rows
    ]
    print_table(
        f"directions in {output}", ["trait", "reliability", "over prompts", "layer", "held out"], told
    )
    for row in judged:
        for note in row["notes"]:
            echo(f"{row['trait']}: {note}")
    if judged:
        return
    echo(
        "contrastive prompts, no answers and no judge: this says what the model represents when it is told to show a "
        "trait. Held-out questions alone do not make it specific; compare traits with `em-evals trait map`."
    )


def _row(path: Path) -> dict[str, Any]:
    """Return what is told of a direction's file."""
    from em_evals.content import directions
    from em_evals.content.direction_summary import chosen_layer
    from em_evals.results.records.claims import Claim

    direction = directions.read(path)
    told = direction.metadata
    reliability = told.get("reliability") or [0.0]
    layer = chosen_layer(direction) if told.get("reliability") or "layer" in told else 0
    between = told.get("prompt_cosine")
    row = {
        "trait": str(told.get("trait", path.stem)),
        "path": str(path),
        "layer": layer,
        "reliability": reliability[layer] if layer < len(reliability) else 0.0,
        "prompt_cosine": between[layer] if between else None,
        "verdict": Claim.model_validate(told["claim"]).verdict if "claim" in told else "not estimable",
    }
    if "filter" in told:
        row |= {"filter": told["filter"], "notes": list(_notes(told))}
    if "steering" in told:
        row["steering"] = told["steering"]
    return row


def _notes(told: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader has to know of judged answers and of the layer's choice."""
    from em_evals.results.records.claims import Claim
    from em_evals.results.rollouts import THIN

    rule = told["filter"]["rule"]
    for side in _SIDES:
        counts = told["filter"][side]
        if missing := counts["answers"] - counts["graded"] - counts["refusals"]:
            yield f"{missing} of {counts['answers']} {side} answers have no grade; `inspect view` shows why."
        if counts[rule] < THIN * counts["answers"]:
            yield (
                f"only {counts[rule]} of {counts['answers']} {side} answers were kept: the few that pass may be of an "
                "unusual kind."
            )
    if "steering" in told:
        yield told["steering"]["note"]
        claim = Claim.model_validate(told["steering"]["claim"])
        yield f"unsteered {told['steering']['unsteered']:.1f}; {claim.sentence()}"


def trait_draft(
    name: Annotated[str, typer.Argument(help="The new trait's name, as power_seeking.")],
    model: Annotated[str, typer.Option(help="Who writes: PROVIDER/MODEL, any model of Inspect.")],
    description: Annotated[str, typer.Option(help="What is meant by the name.")] = "",
    kind: Annotated[
        Literal["em", "style"], typer.Option(help="em: relevant to misalignment. style: a null.")
    ] = "em",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file (default: tasks/traits/NAME.yaml).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model write a trait file.

    It has 5 pairs of prompts, 20 + 20 questions and a rubric. It is validated, and no file is overwritten.
    """
    from em_evals.workflows.trait_draft import draft

    path, trait = draft(name, model, output, kind, description)
    if as_json:
        print_json(
            {"path": str(path), "name": trait.name, "description": trait.description, "digest": trait.digest}
        )
        return
    echo(f"{path}: {trait.description}")
    echo("a draft by a model: read its prompts and questions before you measure with it.")
