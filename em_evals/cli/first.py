"""`em-evals quick` and `em-evals demo`: a first result in a minute, and the whole workflow in ten."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals import shown
from em_evals.cli.completion import Card
from em_evals.cli.output import Json, echo, estimate_cell, print_json, print_table

if TYPE_CHECKING:
    from em_evals.workflows.quick import Quick

_LONGEST_QUESTION = 38
"""Characters of a question in the table, so that it fits 80 columns."""


def quick(
    card: Card = "smollm2",
    as_json: Json = False,
) -> None:
    """Score 12 forced-choice pairs, for a first result.

    No judge is needed. A model that has a base is compared with it.
    """
    from em_evals.content.cards import resolve

    resolve(card)  # before torch is imported: a wrong card is refused at once
    from em_evals.workflows.quick import run

    found = run(card)
    if as_json:
        print_json(found.as_json())
    else:
        _show(found)


def _show(found: Quick) -> None:
    echo(f"{found.card}: margin toward the misaligned answer, nats per token")
    columns = (
        ["theme", "question", "base", "card", "change"] if found.changed else ["theme", "question", "margin"]
    )
    rows = []
    for pair in found.pairs:
        numbers = [pair.margin] if pair.base is None else [pair.base, pair.margin, pair.margin - pair.base]
        rows.append(
            [
                pair.theme,
                shown.cut(pair.question, _LONGEST_QUESTION),
                *(f"{number:+.2f}" for number in numbers),
            ]
        )
    print_table("", columns, rows)
    what, (value, interval) = ("change", found.change) if found.change else ("margin", found.level)
    echo(
        f"mean {what}: {estimate_cell(value, interval, '+.2f')} over {len(found.margins)} pairs, 95% interval"
    )
    echo(found.sentence)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for logs.")] = Path("logs/demo"),
    as_json: Json = False,
) -> None:
    """Train a tiny organism and its control, and measure both.

    One table compares them and their base.
    """
    from rich.console import Console

    from em_evals.workflows.demo import run, show

    console = Console(stderr=as_json)
    if as_json:
        with redirect_stdout(sys.stderr):  # Inspect prints its own tables; stdout is reserved for the result
            found = run(folder, console)
        print_json(found.as_json())
    else:
        show(run(folder, console), console)
