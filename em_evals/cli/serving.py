"""`em-evals serve` and `em-evals doctor`: servers, and the capabilities of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from em_evals.cli.output import Json, print_json, print_table


def serve(
    cards: Annotated[
        list[str], typer.Argument(help="Cards on one base; each is a model name on the server.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key; created with a random key if missing."),
    ] = None,
    max_requests: Annotated[
        int,
        typer.Option(help="Requests with one key that may run at once; more are refused with 429.", min=1),
    ] = 2048,
    drain: Annotated[
        float,
        typer.Option(
            help="Seconds for requests that run when the server is told to end (Ctrl-C, SIGTERM); new ones get 503.",
            min=0,
        ),
    ] = 30,
    fields: Annotated[
        list[str],
        typer.Option(
            "-M",
            metavar="KEY=VALUE",
            help="Override a card field, e.g. engine.tensor_parallel_size=2 (repeatable).",
        ),
    ] = [],
    as_json: Json = False,
) -> None:
    """Serve cards with vLLM at one OpenAI-compatible URL.

    Each request is answered with its own card's adapter and interventions.
    """
    from em_evals.cli.options import card_fields
    from em_evals.content.cards import resolve

    overrides = card_fields(fields)
    for name in cards:
        resolve(name, overrides)  # before torch is imported: a wrong card is refused at once
    from em_evals.engines.vllm.serve import serve as run

    run(cards, overrides, host, port, key_file, max_requests=max_requests, drain=drain, as_json=as_json)


def doctor(as_json: Json = False) -> None:
    """Report what is installed and which engine is used, and why.

    Also which cards are verified, and how much memory is available.
    """
    from em_evals.workflows.doctor import examine

    rows = examine()
    if as_json:
        print_json(rows)
    else:
        print_table("", ["what", "state", "remark"], [list(row.values()) for row in rows])
