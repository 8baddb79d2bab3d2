"""`em-evals verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_evals.cli.completion import cards
from em_evals.cli.options import Fields
from em_evals.cli.output import Json, echo, print_json, print_table

if TYPE_CHECKING:
    from em_evals.workflows.verify import Row, Verdict

_WRONG = 1


def verify(
    card: Annotated[
        str, typer.Argument(help="Card, PEFT folder, model folder, `pypi:…` or hub id.", autocompletion=cards)
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the verdict (JSON).")] = None,
    fields: Fields = [],
    as_json: Json = False,
) -> None:
    """Compare a card with plain transformers, PEFT and hooks. Exit code 0: all ok, 1: wrong, 2: could not run."""
    from em_evals.cli.options import card_fields
    from em_evals.content.cards import resolve

    resolved = resolve(card, card_fields(fields))  # report an invalid card before torch is imported
    from em_evals import files
    from em_evals.workflows.verify import verify as run

    with _progress() as tell:
        verdict = run(resolved, tell)
    if output is not None:
        with files.atomic(output) as temporary:
            temporary.write_text(json.dumps(verdict.as_json(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(verdict.as_json())
    else:
        _print(verdict)
    if not verdict.ok:
        raise typer.Exit(_WRONG)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show progress as one updating line on a terminal's stderr, else as one line per stage."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(text)
        return
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        stage = text.partition(", row ")[0]
        if stage != last:
            console.print(stage, highlight=False, markup=False)
        last = stage

    yield tell


def _print(verdict: Verdict) -> None:
    setting = verdict.setting
    versions = ", ".join(f"{name} {text}" for name, text in setting.versions.items() if name != "code")
    print_table(
        f"{verdict.card}: {setting.base}, {setting.dtype} on {setting.device}, {versions}",
        ["check", "largest deviation", "tolerance", "n", "verdict", "remark"],
        [[row.name, *_numbers(row), str(row.n), row.verdict, row.reason] for row in verdict.rows],
    )
    echo(f"tolerance: {verdict.rule}.")
    word = "ok" if verdict.ok else f"wrong: {', '.join(verdict.wrong) or 'nothing was compared'}"
    echo(f"{word} ({verdict.seconds:.0f} s); kept for the provenance of logs and reports.")


def _numbers(row: Row) -> tuple[str, str]:
    if row.largest is None or row.tolerance is None:
        return "–", "–"
    if row.unit in ("tokens", "tensors"):
        return f"{row.largest:.0f} {row.unit}", f"{row.tolerance:.0f}"
    return f"{row.largest:.1e} {'nats' if row.unit == 'nats' else 'of its norm'}", f"{row.tolerance:.1e}"
