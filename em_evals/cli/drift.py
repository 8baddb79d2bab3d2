"""`em-evals insight drift`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.options import Figure, NullDraws
from em_evals.cli.output import Json, draw, echo, measured_cell, print_table, tell_record
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.results.records.drift import Drift, DriftAlarm

_EXIT = {"pass": 0, "alarm": 1, "inconclusive": 3}
"""As the gate's."""


def insight_drift(
    cards: Annotated[
        list[str] | None,
        typer.Argument(
            help="Trained cards with `monitor` in their recipe, folders of trainings, or journals."
        ),
    ] = None,
    control: Annotated[
        list[str], typer.Option(help="The matched control: one for all, or one for each card in order.")
    ] = [],
    traits: Annotated[list[str], typer.Option(help="Only these directions (repeatable).")] = [],
    fit: Annotated[
        Path | None,
        typer.Option(
            help="Learn an alarm from this CSV: run, recipe, seed, step, misaligned, draws, control."
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(help="--fit: EM rate above which a model counts as dangerous.", min=0.001, max=0.9),
    ] = 0.05,
    alarm: Annotated[
        Path | None, typer.Option(help="Apply a learned alarm; exit code 0 pass, 1 alarm, 3 inconclusive.")
    ] = None,
    draws: NullDraws = 199,
    seed: Annotated[int, typer.Option(help="Seed of draws and resamples.", min=0, max=2**32 - 1)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the record (JSON; default drift.json, or alarm.json with --fit)."
        ),
    ] = None,
    figure: Figure = None,
    as_json: Json = False,
) -> None:
    """Compare the drift of monitored trainings with a control.

    Nulls stand beside it; an alarm can be learned or applied.
    """
    from em_evals.results import records

    if fit is not None:
        if cards or control or alarm is not None or figure is not None:
            raise EmEvalsError(
                "--fit takes its runs and controls from the file: leave out cards, --control, --alarm."
            )
        learned = _learned(fit, traits, threshold, seed)
        records.write(learned, output or Path("alarm.json"))
        tell_record(learned, as_json, _print_alarm)
        return
    found = _compared(cards or [], control, traits, alarm, draws, seed)
    records.write(found, output or Path("drift.json"))
    draw(found, figure, "Drift during training")
    tell_record(found, as_json, _print)
    if found.alarms:
        raise typer.Exit(
            max((_EXIT[one.verdict] for one in found.alarms), key=lambda code: (code == 1, code))
        )


def _learned(fit: Path, traits: list[str], threshold: float, seed: int) -> DriftAlarm:
    from em_evals.interp.drift import alarm
    from em_evals.interp.drift.drift import directions_of

    labeled = alarm.read(fit, traits)
    notes: list[str] = []
    found = directions_of(next(iter(labeled.pairs.values())).run, labeled.names, notes)
    learned = alarm.learn(labeled, threshold, found, seed)
    return learned.model_copy(update={"notes": [*learned.notes, *notes]})


def _compared(
    cards: list[str], control: list[str], traits: list[str], alarm: Path | None, draws: int, seed: int
) -> Drift:
    from em_evals.interp.drift.drift import drift, matched
    from em_evals.results import alarms

    found = drift(cards, control, traits, draws=draws, seed=seed)
    if alarm is None:
        return found
    learned = alarms.read(alarm)
    verdicts = [
        learned.apply(pair.run, pair.control if learned.against_control else None, pair.name)
        for pair in matched(cards, control)
    ]
    return found.model_copy(update={"alarms": verdicts})


def _print(found: Drift) -> None:
    rows = []
    for one in found.drifts:
        top = one.largest
        cell = measured_cell(top, "+.4f")
        rows.append(
            [one.run, one.trait, str(one.layer), cell, str(top.step) if top else "–", one.claim.verdict]
        )
    columns = ["run", "trait", "layer", "largest drift [95% band]", "step", "verdict"]
    print_table("drift, in units of the untrained activations' mean norm", columns, rows)
    for one in found.drifts:
        echo(one.sentence())
    for verdict in found.alarms:
        echo(f"{verdict.sentence}.")
    for note in found.notes:
        echo(note)


def _print_alarm(found: DriftAlarm) -> None:
    weights = [
        [one.name, str(one.layer), f"{weight:+.3f}"]
        for one, weight in zip(found.watched, found.weights, strict=True)
    ]
    print_table(
        f"alarm at an EM rate of {found.threshold:.1%}, {found.runs} runs",
        ["direction", "layer", "weight per standard deviation"],
        weights,
    )
    rows = []
    for one in found.validation:
        cells = [
            measured_cell(value) for value in (one.auroc, one.auroc_corrected, one.fpr, one.fnr, one.lead)
        ]
        rows.append(
            [one.left_out, f"{one.dangerous} of {one.rows}", *cells, str(one.missed), one.claim.verdict]
        )
    columns = [
        "left out",
        "dangerous rows",
        "AUROC",
        "corrected",
        "FPR",
        "FNR",
        "lead (steps)",
        "missed",
        "verdict",
    ]
    print_table("on runs left out; corrected for the labels' noise", columns, rows)
    for one in found.validation:
        echo(one.claim.sentence())
    for note in found.notes:
        echo(note)
