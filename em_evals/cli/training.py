"""`em-evals train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from em_evals.cli.completion import Card
from em_evals.cli.options import card_fields
from em_evals.cli.output import Json, echo, print_json, print_table


def train(
    card: Card,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing adapter.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Override the recipe's seed.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, overriding the recipe's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Adapter folder, overriding the card's.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between resumable states.", min=1)] = 25,
    report_to: Annotated[list[str], typer.Option(help="Experiment trackers of transformers' Trainer.")] = [],
    fields: Annotated[
        list[str],
        typer.Option(
            "-M",
            metavar="KEY=VALUE",
            help="Override a card field, e.g. train.learning_rate=1e-4 (repeatable).",
        ),
    ] = [],
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print the requirements: memory, steps, GPU hours.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a card's model by its recipe, with TRL and PEFT. Repeat the same command to resume."""
    overrides = card_fields(fields)
    if plan:
        _plan(card, seed, max_steps, overrides, as_json)
        return
    _refuse_early(card, overrides, seed, max_steps, output, overwrite)
    from em_evals.training.trainer import train as run

    home = run(
        card,
        overwrite=overwrite,
        seed=seed,
        max_steps=max_steps,
        output=output,
        save_every=save_every,
        report_to=report_to,
        overrides=overrides,
    )
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return  # only the main process prints
    if as_json:
        training = json.loads((home / "training.json").read_text(encoding="utf-8"))
        print_json({"adapter": str(home), "training": training})
    else:
        echo(str(home))


def _refuse_early(
    name: str,
    overrides: dict[str, Any],
    seed: int | None,
    max_steps: int | None,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Refuse what the card and its folder show, before torch and TRL are imported."""
    from em_evals.content import adapter_folders
    from em_evals.content.cards import read_card
    from em_evals.training.recipe import recipe_of
    from em_evals.training.workspace import check_place

    card, path = read_card(name, overrides)
    recipe_of(card, name, path, seed, max_steps)
    check_place((output or adapter_folders.home(card.adapter, path)).expanduser().absolute(), overwrite)


def _plan(
    name: str, seed: int | None, max_steps: int | None, overrides: dict[str, Any], as_json: bool
) -> None:
    from em_evals.content.cards import read_card
    from em_evals.training.recipe import recipe_of

    card, path = read_card(name, overrides)
    recipe = recipe_of(card, name, path, seed, max_steps)
    from em_evals.training import planning  # after the refusals: it imports torch

    found = planning.plan(card, recipe)
    if as_json:
        print_json(planning.as_json(found))
    else:
        print_table(name, ["what", "value"], planning.as_table(found))
