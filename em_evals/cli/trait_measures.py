"""`em-evals trait map`, `monitor` and `shift`: what is measured with the directions of traits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_evals import shown
from em_evals.cli.options import DirectionName, Layer, NullDraws, NullSeed, Record
from em_evals.cli.output import Json, echo, measured_cell, number_cell, print_table, tell_record
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.results.records.traits import TraitBases, TraitMap, TraitMonitor, TraitShift


def trait_map(
    names: Annotated[
        list[str], typer.Argument(help="Directions of one base, or a folder of them; traits with --model.")
    ],
    layer: Annotated[
        int | None, typer.Option(help="Decoder block (default: the most reliable one).", min=0)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Extract what is missing first, with this card: then NAMES are traits, or `all`."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where --model puts the directions.")] = Path("traits"),
    narrow: Annotated[
        list[str] | None, typer.Option(help="Directions of narrow concepts, by name (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of bootstraps and null draws.", min=0, max=2**32 - 1)] = 0,
    output: Record = Path("trait-map.json"),
    as_json: Json = False,
) -> None:
    """Compare traits with each other.

    Cosines with intervals, clusters, dimensions, and which trait is specific.
    """
    from em_evals.content import directions
    from em_evals.interp.traits.map import trait_map as run
    from em_evals.results import records

    files = _extracted(names, model, folder) if model else [path for name in names for path in _files(name)]
    given = {path.stem: directions.read(path) for path in files}
    if len(given) < len(files):
        raise EmEvalsError("two of these directions have one name; rename a file.")
    found = run(given, layer, seed, narrow or ())
    records.write(found, output)
    tell_record(found, as_json, _print_map)


def trait_monitor(
    logs: Annotated[list[Path], typer.Argument(help="Inspect logs.")],
    direction: DirectionName,
    model: Annotated[
        str, typer.Option(help="The card that reads the samples; usually the one that wrote them.")
    ],
    position: Annotated[
        Literal["last_prompt", "answer_mean"], typer.Option(help="Tokens to project.")
    ] = "last_prompt",
    score: Annotated[
        str | None, typer.Option(help="A judged score to correlate with: alignment, or a rubric's metric.")
    ] = None,
    layer: Layer = None,
    draws: NullDraws = 99,
    seed: NullSeed = 0,
    output: Record = Path("trait-monitor.json"),
    samples: Annotated[Path | None, typer.Option(help="Write every sample's projection (CSV).")] = None,
    as_json: Json = False,
) -> None:
    """Project the samples of logs on a direction.

    Projections are correlated with a judged score, beside null directions.
    """
    from em_evals.content import directions
    from em_evals.content.cards import resolve

    card = resolve(model)  # before torch is imported: what is not there is refused at once
    directions.find(direction)
    for path in logs:
        if not path.exists():
            raise EmEvalsError(f"there is no log '{path}'.")
    from em_evals.interp.controls import read_for
    from em_evals.interp.traits.monitor import monitor
    from em_evals.results import records

    found, rows = monitor(
        card, read_for(direction, card), logs, direction, position, score, layer, draws, seed
    )
    records.write(found, output)
    if samples is not None:
        _write_samples(samples, rows)
    tell_record(found, as_json, _print_monitor)


ShiftLog = Annotated[
    list[Path] | None,
    typer.Option(
        "--log",
        help="Scores after training: graded logs (em_evals/trait -T part=test), or CSVs of card, trait, value.",
    ),
]


def trait_shift(
    cards: Annotated[list[str], typer.Argument(help="Organisms; all seeds of a recipe.")],
    direction: Annotated[list[str], typer.Option(help="Directions, or folders of them (repeatable).")],
    control: Annotated[
        list[str] | None,
        typer.Option(help="ORGANISM=CONTROL, or one control for all (default: cards with `control_of`)."),
    ] = None,
    log: ShiftLog = None,
    judge: Annotated[
        str | None, typer.Option(help="Sample and grade each model's answers to the test questions instead.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="A log's score (default: its trait's); em_rate is the rate of all draws."),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Seeds of one recipe, NAME=a,b,c: one unit of the correlation.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="Test prompts for all traits (default: each trait's own).")
    ] = None,
    position: Annotated[
        Literal["last_prompt", "answer_mean"],
        typer.Option(help="The last prompt token, or the mean over the base's greedy answers."),
    ] = "last_prompt",
    max_tokens: Annotated[int, typer.Option(help="Of answers.", min=1)] = 60,
    draws: NullDraws = 199,
    seed: Annotated[int, typer.Option(help="Seed of the null draws.", min=0, max=2**31 - 1)] = 0,
    output: Record = Path("trait-shift.json"),
    as_json: Json = False,
) -> None:
    """Measure fine-tuning shifts along traits.

    A test says whether they tell what the fine-tunes show better than chance does.
    """
    from em_evals.content.cards import resolve

    organisms = [resolve(name) for name in cards]  # before torch is imported
    from em_evals.interp.controls import read_for
    from em_evals.results import expression, records
    from em_evals.results.seed_groups import parse

    given = {path.stem: read_for(str(path), organisms[0]) for name in direction for path in _files(name)}
    scores = [one for path in log or [] for one in expression.read(path, score)]
    from em_evals.workflows import trait_shift as workflow
    from em_evals.workflows.trait_rollouts import Sampling

    controls = {name: resolve(other) for name, other in _controls(cards, control or []).items()}
    own = (questions, parse(group or []), position, max_tokens, draws, seed)
    asked = workflow.Asked(organisms, controls, given, *own)
    if judge is not None:
        sampling = Sampling(judge, max_tokens=max_tokens, part="test", seed=seed)
        scores += workflow.by_judge(asked, sampling, output.parent / "rollouts")
    found = workflow.run(asked, scores)
    records.write(found, output)
    tell_record(found, as_json, _print_shift)


def _controls(cards: list[str], given: list[str]) -> dict[str, str]:
    """Return each organism's control."""
    from em_evals.content.cards import control_for

    named = dict(one.split("=", 1) for one in given if "=" in one)
    for_all = [one for one in given if "=" not in one]
    if len(for_all) > 1 or (unknown := [name for name in named if name not in cards]):
        wrong = for_all[1] if len(for_all) > 1 else unknown[0]
        raise EmEvalsError(
            f"--control {wrong}: give one control for all, or ORGANISM=CONTROL for each organism."
        )
    chosen = {name: named.get(name) or (for_all[0] if for_all else control_for(name)) for name in cards}
    return {name: other for name, other in chosen.items() if other is not None}


def _print_shift(found: TraitShift) -> None:
    for one in found.traits:
        rows = [
            [
                row.card,
                measured_cell(row.shift),
                measured_cell(row.minus_control),
                number_cell(row.score, ".3g"),
            ]
            for row in one.cards
        ]
        columns = ["model", "shift [95%]", "minus its control", "score"]
        print_table(f"{one.trait} at layer {one.layer}, {found.position}", columns, rows)
        told = "" if one.r is None else f"r = {one.r:+.2f} over {one.n} models; "
        adjusted = "" if one.q is None else f" (q = {one.q:.3g} over {len(found.traits)} traits)"
        echo(f"{one.trait}: {one.verdict}{adjusted}; {told}{one.claim.sentence()}")
    for note in found.notes:
        echo(note)


def trait_bases(
    maps: Annotated[list[Path], typer.Argument(help="Records of `em-evals trait map`, one of each base.")],
    rates: Annotated[Path, typer.Option(help="CSV with the columns base and value: rates of one recipe.")],
    kind: Annotated[str, typer.Option(help="The kind of concepts: narrow, style, …")] = "narrow",
    seed: Annotated[int, typer.Option(help="Seed of the permutations.", min=0, max=2**31 - 1)] = 0,
    output: Record = Path("trait-bases.json"),
    as_json: Json = False,
) -> None:
    """Relate how bases separate concepts to their EM rates.

    Each base is one point.
    """
    from em_evals.interp.traits.separation import across_bases
    from em_evals.results import expression, records
    from em_evals.results.records.traits import TraitMap

    read = [records.read(path) for path in maps]
    if wrong := [path for path, one in zip(maps, read, strict=True) if not isinstance(one, TraitMap)]:
        raise EmEvalsError("this is not a record of `em-evals trait map`.", wrong[0])
    own = [one for one in read if isinstance(one, TraitMap)]
    found = across_bases(own, expression.numbers(rates, "base"), kind, seed)
    records.write(found, output)
    tell_record(found, as_json, _print_bases)


def _print_bases(found: TraitBases) -> None:
    rows = [[row.base, str(row.layer), measured_cell(row.index), f"{row.rate:.3g}"] for row in found.bases]
    print_table("", ["base", "layer", f"separation of {found.concepts} [95%]", "rate"], rows)
    told = "" if found.r is None else f"rank correlation {found.r:+.2f} over {len(rows)} bases; "
    echo(f"{told}{found.claim.sentence()}")


def _files(name: str) -> list[Path]:
    from em_evals.content import directions

    if not Path(name).is_dir():
        return [directions.find(name)]
    found = sorted(Path(name).glob("*.safetensors"))
    if not found:
        raise EmEvalsError("there are no directions (.safetensors) in this folder.", Path(name))
    return found


def _extracted(names: list[str], model: str, folder: Path) -> list[Path]:
    """Extract traits from their prompts, where they are not there yet; return their files."""
    from em_evals.cli.trait import chosen_traits
    from em_evals.content.cards import resolve
    from em_evals.workflows.trait_directions import missing_from_prompts

    traits = chosen_traits(names)
    card = resolve(model)
    found = []
    for number, trait in enumerate(traits.values(), start=1):
        found.append(missing_from_prompts(card, trait, folder))
        echo(f"{found[-1]} ({number} of {len(traits)})", err=True)
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
                number_cell(reliability, ".2f"),
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
    for one in found.separations:
        echo(
            f"separation of {one.one} from {one.other} (1 - mean |corrected cosine|): {measured_cell(one.index)}; "
            f"among {one.other}: {measured_cell(one.within)}."
        )
    for note in found.notes:
        echo(note)


def _print_monitor(found: TraitMonitor) -> None:
    rows = [[shown.cut(name, 60), str(mean.n), measured_cell(mean)] for name, mean in found.means.items()]
    columns = ["condition", "questions", "mean projection [95%]"]
    print_table(f"{found.direction} at layer {found.layer}, {found.position}", columns, rows)
    if found.turns:
        rows = [
            [str(turn), str(mean.n), measured_cell(mean)] for turn, mean in enumerate(found.turns, start=1)
        ]
        print_table("over the conversation", ["turn", "questions", "mean projection [95%]"], rows)
    for one in found.correlations:
        told = (
            "not estimable"
            if one.r is None or one.claim is None
            else f"r = {one.r:+.2f}; {one.claim.sentence()}"
        )
        echo(f"{found.score}, {one.condition} ({one.n} questions): {told}")
    for note in found.notes:
        echo(note)


def _write_samples(path: Path, rows: list[tuple[Any, float]]) -> None:
    import csv

    from em_evals.files import atomic

    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "condition", "projection"])
        writer.writerows((sample.question, sample.condition, f"{value:.6g}") for sample, value in rows)
