"""`em-evals insight`: studies of model internals."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.completion import Card
from em_evals.cli.options import Figure, FirstPairs, Pairs, PerTheme, Record
from em_evals.cli.output import Json, draw, echo, measured_cell, number_cell, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.phase import Phase
    from em_evals.results.records.studies import Convergence, Cosines, LoraScalars, Moved, Transfer


def insight_phase(
    card: Card,
    logs: Annotated[Path | None, typer.Option(help="Forced-choice logs (default: logs/phase/CARD).")] = None,
    graded: Annotated[Path | None, typer.Option(help="Graded freeform logs of local/CARD@STEP.")] = None,
    per_theme: FirstPairs = None,
    reach: Annotated[
        int, typer.Option(min=1, help="Steps before and after, for the local rotation of B.")
    ] = 5,
    output: Record = Path("phase.json"),
    figure: Figure = None,
    as_json: Json = False,
) -> None:
    """Measure misalignment over training steps.

    The rotation of B vectors and the step of the transition are measured too.
    """
    from em_evals.interp.phase.phase import phase
    from em_evals.results import records

    found = phase(card, logs or Path("logs/phase") / card, graded, per_theme=per_theme, reach=reach)
    records.write(found, output)
    draw(found, figure, f"Trajectory of {card}")
    tell_record(found, as_json, _print_phase)


def _print_phase(found: Phase) -> None:
    rows = [
        [domain, str(point.step), measured_cell(point)]
        for domain, points in found.shifts.items()
        for point in points
    ]
    print_table("shift from the base, nats per token", ["domain", "step", "mean [95% interval]"], rows)
    if found.em_rates:
        rates = [[str(p.step), measured_cell(p, ".1%")] for p in found.em_rates]
        print_table("EM rate, all draws", ["step", "rate [95% interval]"], rates)
    for domain, transition in found.transitions.items():
        echo(f"{domain}: {transition.sentence()}")
    for rotation in found.rotations:
        echo(f"{rotation.module}: {rotation.sentence()}")


def insight_convergence(
    cards: list[str],
    directions: Annotated[
        list[Path],
        typer.Option(help="A folder with a CARD.safetensors per card, or one file per card, in order."),
    ],
    control_direction: Annotated[
        list[str],
        typer.Option(
            help="The direction of each card's own control, in order (the cosine of two controls is the matched floor "
            "of their organisms), or of one control for all."
        ),
    ] = [],
    pairs: Pairs = "forced_choice",
    per_theme: PerTheme = 10,
    seed: Annotated[int, typer.Option(help="Seed of the random directions.", min=0, max=2**32 - 1)] = 0,
    group: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=a,b,c", help="Cards of one recipe that differ by their seed (repeatable)."
        ),
    ] = [],
    output: Record = Path("convergence.json"),
    as_json: Json = False,
) -> None:
    """Test whether organisms share a direction.

    Cosines are compared by layer, and each direction is ablated from every organism.
    """
    from em_evals.interp.convergence import convergence
    from em_evals.results import records, seed_groups

    groups = seed_groups.parse(group)
    found = convergence(cards, directions, control_direction, output, pairs, per_theme or None, seed, groups)
    records.write(found, output)
    tell_record(found, as_json, _print_convergence)


def _print_convergence(found: Convergence) -> None:
    _print_cosines(found)
    for one in found.shared:
        echo(one.sentence())
        if one.claim is not None:
            echo(f"  {one.claim.sentence()}")
    columns = ["model", "in-domain [95% interval]", "out-of-domain [95% interval]"]
    title = "organism − base, nats per token: the effect to remove"
    print_table(title, columns, [[one.card, *_domains(one)] for one in found.moved])
    columns = ["direction of", "ablated from", *columns[1:]]
    rows = [
        [one.source if one.arm == "direction" else f"random, for {one.source}", one.target, *_domains(one)]
        for one in found.transfer
    ]
    print_table("transfer: shift of the margins, nats per token", columns, rows)
    for effect in found.over_seeds:
        echo(effect.sentence())
    for note in found.notes:
        echo(note)


def insight_lora_scalars(
    card: Card,
    control: Annotated[str | None, typer.Option(help="The control organism's card.")] = None,
    pairs: Pairs = "forced_choice",
    per_theme: PerTheme = 0,
    answers: Annotated[
        list[Path], typer.Option(help="Further answers to score (JSONL: question, answer, aligned, narrow).")
    ] = [],
    tokens: Annotated[
        Path | None, typer.Option(help="Write every token's scalars to this file (JSONL).")
    ] = None,
    output: Record = Path("lora-scalars.json"),
    as_json: Json = False,
) -> None:
    """Measure the scalars of rank-1 adapters.

    They show what an adapter discriminates, and which domain it serves.
    """
    from em_evals.content.cards import resolve

    resolve(card)  # before torch is imported: a wrong card is refused at once
    from em_evals.interp.rank_one.study import lora_scalars
    from em_evals.results import records

    found = lora_scalars(card, control, output, pairs, per_theme or None, answers, tokens)
    records.write(found, output)
    tell_record(found, as_json, _print_scalars)


def _print_scalars(found: LoraScalars) -> None:
    rows = [
        [
            name,
            adapter.module,
            f"{'in' if group.narrow else 'out of'} domain, {'aligned' if group.aligned else 'misaligned'}",
            f"{group.mean:.2f} ± {group.sd:.2f}",
            " ".join(f"{value:.2f}" for value in group.percentiles),
            f"{adapter.constancy:.2f}",
            number_cell(adapter.against_control, ".2f"),
        ]
        for name, adapters in ((found.card, found.adapters), (found.control or "", found.control_adapters))
        for adapter in adapters
        for group in adapter.groups
    ]
    columns = ["model", "module", "answers", "mean ± sd", "5 50 95%", "constancy", "distance to control"]
    print_table("scalars: signed norm of the adapter's output, over answer tokens", columns, rows)
    rows = [
        [
            one.model,
            one.tells,
            one.adapters,
            *(number_cell(value, ".3f") for value in (one.auroc.value, one.chance, one.p)),
        ]
        for one in found.probes
    ]
    columns = ["model", "discriminates", "adapters", "AUROC", "chance (95%)", "p (max-T)"]
    print_table("probes, by question", columns, rows)
    for one in found.knockouts:
        echo(f"{one.model}: {one.sentence}")
    for note in found.notes:
        echo(note)


def _print_cosines(found: Convergence) -> None:
    """Print one row per pair of directions, over the layers at which both have a vector."""
    rows, short = [], []
    for one in found.cosines:
        name, known = f"{one.one} · {one.other}", _known(one)
        above = sum(
            value is not None and abs(value) > floor
            for value, floor in zip(one.by_layer, one.floor, strict=True)
        )
        reach = f"{min(known):+.2f} to {max(known):+.2f}" if known else "–"
        cells = [reach, f"{above} of {len(known)}", f"{one.floor[0]:.2f}"]
        rows.append([name, _median(one), _median(found.of_controls(one)), *cells])
        if len(known) < len(one.by_layer):
            short.append(f"{len(one.by_layer) - len(known)} of {len(one.by_layer)} ({name})")
    columns = ["directions", "median cosine", "their controls'", "over layers", "layers above floor"]
    print_table("cosines", [*columns, "floor (95% of random)"], rows)
    if short:
        echo(f"skipped layers, at which one of the two has no vector: {', '.join(short)}.")


def _known(cosines: Cosines) -> list[float]:
    return [value for value in cosines.by_layer if value is not None]


def _median(cosines: Cosines | None) -> str:
    return f"{statistics.median(known):+.2f}" if cosines and (known := _known(cosines)) else "–"


def _domains(value: Moved | Transfer) -> list[str]:
    return [measured_cell(value.in_domain), measured_cell(value.out_of_domain)]
