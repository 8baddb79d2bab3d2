"""`em-evals models` and `em-evals compile`: cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from em_evals import shown
from em_evals.cli.output import Json, echo, print_json, print_table
from em_evals.errors import EmEvalsError

_LONGEST_WORD = 40
"""Characters of a word in a description, so that the table fits 80 columns: some name files."""


def models_list(as_json: Json = False) -> None:
    """List all cards, and whether their adapters exist.

    `--json` and `models show` have their bases too.
    """
    from em_evals.content import cards

    rows = []
    for name, entry in cards.list_cards().items():
        if isinstance(entry, EmEvalsError):
            rows.append({"name": name, "base": "", "adapter": "broken", "description": str(entry)})
            continue
        state = "none" if entry.card.adapter is None else ("ready" if entry.adapter_path else "not trained")
        rows.append(
            {"name": name, "base": entry.card.base, "adapter": state, "description": entry.card.description}
        )
    if as_json:
        print_json(rows)
    else:
        cells = [[row["name"], row["adapter"], _about(row)] for row in rows]
        print_table("", ["name", "adapter", "description"], cells)


def _about(row: dict[str, str]) -> str:
    """Return what a row of the table says: the description, else the base, with long words shortened."""
    words = (row["description"] or f"on {row['base']}").split()
    return " ".join(shown.cut(word, _LONGEST_WORD) for word in words)


def models_show(name: Annotated[str, typer.Argument(help="A card's name.")], as_json: Json = False) -> None:
    """Show one card with all defaults."""
    from em_evals.content import adapter_folders, cards

    card, path = cards.read_card(name)
    fields = {"name": name, "file": str(path), "adapter_folder": adapter_folders.find(card.adapter, path)}
    fields |= card.model_dump(mode="json", exclude_none=True)
    if as_json:
        print_json(fields)
    else:
        import yaml

        echo(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip())


def compile_card(
    card: Annotated[str, typer.Argument(help="The card whose interventions become weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder to write to.")],
    to: Annotated[
        Literal["lora", "checkpoint"],
        typer.Option(help="Write a PEFT adapter on the base, or a whole model."),
    ] = "checkpoint",
    as_json: Json = False,
) -> None:
    """Compile a card's interventions into weights.

    What would not be exact is refused by name.
    """
    from em_evals.content.cards import resolve

    resolved = resolve(card)  # before torch is imported: a wrong card is refused at once
    from em_evals.models.compile import compile_card

    folder = compile_card(resolved, to, output)
    if as_json:
        made = json.loads((folder / "em_evals.json").read_text(encoding="utf-8"))
        print_json({"folder": str(folder), "to": to, **made})
    else:
        echo(str(folder))
