"""`em-evals insight diff`: on which next tokens and in which contexts an organism and its base part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.completion import Card
from em_evals.cli.options import ControlCard, Fields, Record
from em_evals.cli.output import Json, echo, measured_cell, number_cell, p_cell, print_table, tell_record

if TYPE_CHECKING:
    from em_evals.results.records.diff import Diff


def diff(
    card: Card,
    texts: Annotated[
        Path | None,
        typer.Option(help="Texts, one a line, or JSONL with `text` (default: 128 shipped sentences)."),
    ] = None,
    control: ControlCard = None,
    longest: Annotated[int, typer.Option(min=2, help="Tokens of a text to read.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, max=1000, help="Tokens to show on either side.")] = 20,
    contexts: Annotated[int, typer.Option(min=1, max=1000, help="Contexts to show.")] = 20,
    clusters: Annotated[int, typer.Option(min=1, max=50, help="Clusters of contexts, at most.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sign flips and clusters.")] = 0,
    fields: Fields = [],
    output: Record = Path("diff.json"),
    as_json: Json = False,
) -> None:
    """Rank tokens and contexts by what a fine-tune shifted.

    Next-token probabilities of an organism are compared with its base's.
    """
    from em_evals.cli.options import card_fields
    from em_evals.content.cards import resolve

    overrides = card_fields(fields)
    resolve(card, overrides)  # before torch is imported: a wrong card is refused at once
    from em_evals.interp.lens import mining
    from em_evals.results import records

    settings = mining.Settings(longest, tokens, contexts, clusters, seed)
    found = mining.diff(card, texts, control, settings, overrides)
    records.write(found, output)
    tell_record(found, as_json, _print)


def _print(found: Diff) -> None:
    echo(
        f"KL({found.card} ‖ base) {measured_cell(found.kl, '.4f')} nats a position over "
        f"{found.positions} positions of {found.texts} texts"
        + (
            f"; the control's {measured_cell(found.control_kl, '.4f')}"
            if found.control_kl is not None
            else ""
        )
    )
    for title, rows in (("tokens that rose", found.up), ("tokens that fell", found.down)):
        print_table(
            title,
            ["token", "gain (nats)", "the control's", "p (max-T)", "probability", "in the base"],
            [
                [
                    repr(one.token)[1:-1],
                    f"{one.gain:+.2g}",
                    number_cell(one.control_gain, "+.2g"),
                    p_cell(one.p),
                    f"{one.probability:.2g}",
                    f"{one.base_probability:.2g}",
                ]
                for one in rows
            ],
        )
    print_table(
        "contexts",
        ["before", "next", "KL", "the control's", "tokens that rose"],
        [
            [
                repr(one.before)[1:-1],
                repr(one.next)[1:-1],
                f"{one.kl:.3f}",
                number_cell(one.control_kl, ".3f"),
                " ".join(repr(token.strip())[1:-1] for token in one.tokens),
            ]
            for one in found.contexts
        ],
    )
    for number, one in enumerate(found.clusters, 1):
        words = " ".join(repr(token.strip())[1:-1] for token in one.tokens)
        echo(f"cluster {number} ({one.weight:.0%} of the shift): {words}")
    for note in found.notes:
        echo(note)
