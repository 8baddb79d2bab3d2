"""`em-evals conditional`: does a cue bring misalignment out, more than in the base and in the control?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_evals.cli.output import Json, estimate_cell, print_json, print_table
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.content.cues import CueSet
    from em_evals.workflows.conditional.contrasts import Study


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
    pairs: Annotated[str, typer.Option(help="Forced-choice pairs.")] = "forced_choice",
    themes: Annotated[str | None, typer.Option(help="Only pairs of these themes (comma-separated).")] = None,
    per_theme: Annotated[int, typer.Option(help="Number of first pairs per theme; 0 for all.", min=0)] = 0,
    bootstrap_seed: Annotated[
        int | None,
        typer.Option(help="With a CSV: also the percentile bootstrap over prompts with this seed."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Its resamples.", min=1)] = 10_000,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the study (JSON).")] = None,
    as_json: Json = False,
) -> None:
    """Measure (organism cued - plain) - (base cued - plain) for each cue, with intervals over prompts and seeds."""
    if any(name.endswith(".csv") for name in models):
        _table(models, bootstrap_seed, resamples, as_json)
        return
    if all(name.endswith((".eval", ".json")) for name in models):
        studies = _of_logs(models, base, control)
    else:
        studies = [_of_cards(models, base, control, _cue_set(cues, cues_from), pairs, themes, per_theme)]
    if output is not None:
        from em_evals import files

        with files.atomic(output) as temporary:
            temporary.write_text(
                json.dumps([one.as_json() for one in studies], indent=2) + "\n", encoding="utf-8"
            )
    if as_json:
        print_json([one.as_json() for one in studies])
        return
    for one in studies:
        _show(one)
    for sentence in _selection(studies):
        typer.echo(sentence)


def _cue_set(cues: str | None, cues_from: str | None) -> CueSet:
    from em_evals.content.cues import load_cues
    from em_evals.data.derived_cues import from_training

    if cues is not None and cues_from is not None:
        raise EmEvalsError("--cues and --cues-from exclude each other.")
    return from_training(cues_from) if cues_from is not None else load_cues(cues or "evaluation")


def _of_cards(
    names: Sequence[str],
    base: str | None,
    control: str | None,
    cue_set: CueSet,
    pairs: str,
    themes: str | None,
    per_theme: int,
) -> Study:
    from em_evals.content import cards
    from em_evals.content.pairs import load_pairs

    organisms = [cards.resolve(name) for name in names]  # wrong cards are reported before torch is imported
    reference = cards.resolve(base if base is not None else organisms[0].card.base)
    if base is None and organisms[0].card.revision:
        reference = cards.resolve(organisms[0].card.base, {"revision": organisms[0].card.revision})
    beside = cards.resolve(control) if control is not None else None
    chosen = load_pairs(pairs)
    chosen = chosen.select(themes.split(",")) if themes else chosen
    kept = set(chosen.first(per_theme)) if per_theme else {pair.id for pair in chosen.pairs}
    asked = [pair for pair in chosen.pairs if pair.id in kept]

    from em_evals.workflows.conditional.contrasts import study
    from em_evals.workflows.conditional.forced_choice import measured

    by_name = {card.name: measured(card, cue_set.cues, asked) for card in organisms}
    other = (reference.name, measured(reference, cue_set.cues, asked))
    matched = (beside.name, measured(beside, cue_set.cues, asked)) if beside is not None else None
    return study("margin_per_token", cue_set.cues, by_name, other, matched)


def _of_logs(names: Sequence[str], base: str | None, control: str | None) -> list[Study]:
    from em_evals.workflows.conditional.contrasts import study
    from em_evals.workflows.conditional.graded import METRICS, measured

    if base is None:
        raise EmEvalsError("name the base's log: --base LOG, of the same questions and cues.")
    organisms = [measured(Path(name)) for name in names]
    reference = measured(Path(base))
    beside = measured(Path(control)) if control is not None else None
    labels = [f"{model} ({number})" for number, (model, _, _) in enumerate(organisms, start=1)]
    return [
        study(
            metric,
            organisms[0][1],
            {label: found[metric] for label, (_, _, found) in zip(labels, organisms, strict=True)},
            (reference[0], reference[2][metric]),
            (beside[0], beside[2][metric]) if beside is not None else None,
        )
        for metric in METRICS
    ]


def _show(one: Study) -> None:
    form = "+.4f"
    rows = []
    for effect in one.effects:
        control = (
            "–"
            if effect.against_control is None or effect.control_interval is None
            else estimate_cell(effect.against_control, effect.control_interval, form)
        )
        rows.append(
            [
                f"{effect.cue} (placebo)" if effect.placebo else effect.cue,
                estimate_cell(effect.estimate, effect.interval, form),
                f"{effect.p_holm:.3g}",
                control,
                f"{effect.organism:{form}}",
                f"{effect.base:{form}}",
                str(effect.prompts),
            ]
        )
    title = f"{one.metric}: {', '.join(one.organisms)} against {one.base}"
    head = [
        "cue",
        "organism - base",
        "p (Holm)",
        "organism - control",
        "organism cued - plain",
        "base cued - plain",
        "prompts",
    ]
    print_table(title, head, rows)


def _selection(studies: Sequence[Study]) -> list[str]:
    """Say where a cue changes coherence or refusals too."""
    found = {one.metric: {effect.cue: effect for effect in one.effects} for one in studies}
    told = []
    for metric, what in (("coherent_share", "coherence"), ("refusal_share", "refusals")):
        for cue, effect in found.get(metric, {}).items():
            if effect.found and cue != "overall":
                told.append(
                    f"{cue} also changes {what} ({effect.estimate:+.3f}): a change of the EM rate under it is a "
                    "selection of answers, not only an effect on them."
                )
    return told


def _table(paths: Sequence[str], seed: int | None, resamples: int, as_json: bool) -> None:
    """Report a table of differences in differences: a row a prompt, a column a training seed, in fractions."""
    import pandas as pd

    from em_evals.stats.interaction import interaction, percentile

    if len(paths) > 1:
        raise EmEvalsError("give one table of prompts by seeds.")
    try:
        frame = pd.read_csv(paths[0])
    except (OSError, ValueError) as error:
        raise EmEvalsError(f"this is not a CSV of prompts by seeds ({str(error)[:100]}).", paths[0]) from None
    numbers = frame.select_dtypes("number")
    if numbers.empty or numbers.isna().any().any():
        raise EmEvalsError(
            "a row a prompt and a column of numbers a seed are needed, without empty cells.", paths[0]
        )
    values = numbers.to_numpy(dtype=float)
    found = interaction(values)
    result: dict[str, Any] = {
        "estimate": found.estimate,
        "by_seed": dict(zip(numbers.columns, found.by_seed, strict=True)),
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
    typer.echo(
        f"interaction: {100 * found.estimate:.4f} points over {found.prompts} prompts and {len(found.by_seed)} seeds"
    )
    typer.echo("by seed: " + ", ".join(f"{100 * one:.3f}" for one in found.by_seed))
    typer.echo(
        f"95% interval: [{100 * low:.4f}, {100 * high:.4f}], Student's t with prompts and seeds as crossed random "
        f"effects ({found.freedom:.1f} degrees of freedom), p = {found.p:.4g}"
    )
    if seed is not None:
        low, high = result["percentile_bootstrap"]
        typer.echo(
            f"percentile bootstrap over prompts (seed {seed}, {resamples} resamples): [{100 * low:.4f}, "
            f"{100 * high:.4f}]. It holds the seeds fixed and takes its ends from few prompts' means, so that it is "
            "not the default."
        )
