"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from em_evals.results.records import Interval, Measured

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(value: Any) -> None:
    """Print an indented JSON value."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def measured_cell(value: Measured) -> str:
    """Format a mean and its interval as a cell."""
    return estimate_cell(value.value, value.interval)


def estimate_cell(value: float | None, interval: Interval, form: str = "+.3f") -> str:
    """Format a number and its interval as a cell."""
    if value is None:
        return "–"
    low, high = interval
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table without interpreting markup in cells; use 200 columns if stdout is not a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
