"""`em-evals conditional`: does a cue bring misalignment out, more than in the base and in the control?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from em_evals.cli.options import PerTheme
from em_evals.cli.output import (
    Json,
    echo,
    estimate_cell,
    measured_cell,
    number_cell,
    p_cell,
    print_json,
    print_table,
    tell_record,
)
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.cues import CueSet
    from em_evals.results.records.conditional import Conditional, ConditionalMetric


def conditional(
    models: Annotated[
        list[str],
        typer.Argument(
            help="The organism; several are seeds of one recipe. Cards (forced choice, offline), or graded logs of "
            "em_evals/conditional, or one CSV of prompts by seeds."
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="The base: a card or a log. Default: the organism's own.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="The matched control: a card or a log.")] = None,
    cues: Annotated[
        str | None, typer.Option(help="Cue set (tasks/cues/NAME.yaml or a path); default: evaluation.")
    ] = None,
    cues_from: Annotated[str | None, typer.Option(help="Derive cues from this training data.")] = None,
    pairs: Annotated[str | None, typer.Option(help="Forced-choice pairs; default: forced_choice.")] = None,
    themes: Annotated[str | None, typer.Option(help="Only pairs of these themes (comma-separated).")] = None,
    per_theme: PerTheme = 0,
    adjust: Annotated[
        Literal["holm", "bh"],
        typer.Option(help="Correction over cues: Holm (family-wise error) or Benjamini-Hochberg (FDR)."),
    ] = "holm",
    bootstrap_seed: Annotated[
        int | None,
        typer.Option(help="With a CSV: also the percentile bootstrap over prompts with this seed."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Its resamples.", min=1)] = 10_000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the record (JSON) for `gate` and `report`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how cues change a model, beyond its base.

    Of each cue: (organism cued - plain) - (base cued - plain), with intervals over prompts and seeds.
    """
    of_cards: dict[str, object] = {
        "--cues": cues,
        "--cues-from": cues_from,
        "--pairs": pairs,
        "--themes": themes,
    }
    of_cards["--per-theme"] = per_theme or None
    if any(name.endswith(".csv") for name in models):
        _refuse(
            of_cards | {"--base": base, "--control": control, "-o": output}, "a table of prompts by seeds"
        )
        _table(models, bootstrap_seed, resamples, as_json)
        return
    from em_evals.content.cards import resolve

    named = [name for name in (*models, base, control) if name is not None]
    graded = all(name.endswith((".eval", ".json")) for name in models)
    if not graded:
        for name in named:
            resolve(name)  # before numpy and scipy are imported: a wrong card is refused at once
    from em_evals.results import records
    from em_evals.workflows.conditional import run

    if graded:
        _refuse(of_cards, "graded logs, which hold their own cues and questions")
        found = run.of_logs(models, base, control, adjust)
    else:
        chosen = _cue_set(cues, cues_from)
        found = run.of_cards(
            models, base, control, chosen, pairs or "forced_choice", themes, per_theme, adjust
        )
    if output is not None:
        records.write(found, output)
    tell_record(found, as_json, _print)


def _print(found: Conditional) -> None:
    for one in found.metrics:
        _show(found, one)
    named = ", ".join(effect.cue for effect in found.metrics[0].found) or "no cue"
    echo(f"beyond the base at 5%, corrected over cues: {named}.")
    for sentence in found.notes:
        echo(sentence)


def _refuse(options: Mapping[str, object], what: str) -> None:
    """Refuse options that have no meaning here."""
    if given := [name for name, value in options.items() if value is not None]:
        raise EmEvalsError(f"{', '.join(given)} cannot be used with {what}.")


def _cue_set(cues: str | None, cues_from: str | None) -> CueSet:
    from em_evals.content.cues import load_cues
    from em_evals.data.derived_cues import from_training

    if cues is not None and cues_from is not None:
        raise EmEvalsError("--cues and --cues-from exclude each other.")
    return from_training(cues_from) if cues_from is not None else load_cues(cues or "evaluation")


def _show(found: Conditional, one: ConditionalMetric) -> None:
    form = "+.4f"
    rows = []
    for effect in one.effects:
        beside = effect.against_control
        row = {
            "cue": f"{effect.cue} (placebo)" if effect.placebo else effect.cue,
            "organism - base": estimate_cell(effect.estimate, effect.interval, form),
            "p (Holm)" if found.adjust == "holm" else "p (BH)": p_cell(effect.p_adjusted),
            "organism cued - plain": number_cell(effect.organism, form),
            "base cued - plain": number_cell(effect.base, form),
            "prompts": str(effect.prompts),
        }
        if found.control is not None:
            row["organism - control"] = measured_cell(beside, form)
        rows.append(row)
    title = f"{one.metric} ({one.unit}): {', '.join(found.organisms)} against {found.base}"
    print_table(title, list(rows[0]), [list(row.values()) for row in rows])


def _table(paths: Sequence[str], seed: int | None, resamples: int, as_json: bool) -> None:
    """Report a table of differences in differences: a row a prompt, a column a training seed, in fractions."""
    from em_evals.results import interaction_table
    from em_evals.stats.interaction import interaction, percentile

    if len(paths) > 1:
        raise EmEvalsError("give one table of prompts by seeds.")
    table = interaction_table.read(Path(paths[0]))
    values = table.values
    found = interaction(values)
    result: dict[str, Any] = {
        "estimate": found.estimate,
        "by_seed": dict(zip(table.seeds, found.by_seed, strict=True)),
        "prompts": found.prompts,
        "interval": found.interval(),
        "degrees_of_freedom": found.freedom,
        "p": found.p,
    }
    if seed is not None:
        result["percentile_bootstrap"] = percentile(values, seed, resamples)
    if as_json:
        print_json(result)
        return
    low, high = found.interval()
    echo(
        f"interaction: {100 * found.estimate:.4f} points over {found.prompts} prompts and {len(found.by_seed)} seeds"
    )
    echo("by seed: " + ", ".join(f"{100 * one:.3f}" for one in found.by_seed))
    ends = "–" if math.isnan(low) else f"[{100 * low:.4f}, {100 * high:.4f}]"
    echo(
        f"95% interval: {ends}, Student's t with prompts and seeds as crossed random "
        f"effects ({found.freedom:.1f} degrees of freedom), p = {found.p:.4g}"
    )
    if seed is not None:
        low, high = result["percentile_bootstrap"]
        echo(
            f"percentile bootstrap over prompts (seed {seed}, {resamples} resamples): [{100 * low:.4f}, "
            f"{100 * high:.4f}]. It holds the seeds fixed and takes its ends from few prompts' means, so that it is "
            "not the default."
        )
