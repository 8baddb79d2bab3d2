"""`em-evals insight same`: whether two things are one."""

from __future__ import annotations

from typing import Annotated

import typer

from em_evals.cli.output import Json, echo, print_json

_WHAT = "A card, an adapter folder, a hub id, an Inspect log, a judged table, or training data."


def same(
    one: Annotated[str, typer.Argument(help=_WHAT)],
    other: Annotated[str, typer.Argument(help="What it is compared with; of the same kind.")],
    as_json: Json = False,
) -> None:
    """Tell whether two adapters, logs or files are the same.

    The answer is identical, a copy, a reseed, or different.
    """
    from em_evals.interp import provenance

    found = provenance.same(one, other)
    if as_json:
        print_json(found.as_json())
        return
    echo(f"{found.verdict}: {found.sentence}")
    for name, value in found.facts.items():
        echo(f"  {name}: {value}")
