"""`em-evals schema`: JSON Schemas of cards and other files, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from em_evals.cli.output import Json, print_json


def schema(
    kind: Annotated[
        str, typer.Argument(help="card, recipe, questions, pairs, rubric, trait, gate or sweep.")
    ],
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of a kind of file, for editors.

    An editor then checks and completes such files.
    """
    from em_evals.workflows.schemas import schema as made

    print_json(made(kind))
