"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from em_evals import shown
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from em_evals.results.rate import Rate
    from em_evals.results.records.base import Interval, Measured, Record
    from em_evals.results.records.kinds import Study

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def echo(text: str, err: bool = False) -> None:
    """Print text; names and answers of others in it can neither control the terminal nor command a CI runner."""
    with _printing(sys.stderr if err else sys.stdout):
        typer.echo(shown.text(text), err=err)


@contextmanager
def _printing(stream: TextIO) -> Iterator[None]:
    """Print to a reader that may have gone (`| head`): what is computed and the exit code stand.

    Raises:
        EmEvalsError: the disk behind the stream is full, or broken.
    """
    try:
        yield
        stream.flush()
    except (BrokenPipeError, SystemExit):  # rich exits with 1, which is a verdict of several commands
        _silence(stream)
    except OSError as error:
        _silence(stream)
        raise EmEvalsError(f"cannot write the result ({error.strerror}).") from None


def _silence(stream: TextIO) -> None:
    """Point a stream to nowhere, so that Python's flush at the end does not replace the exit code by 120."""
    with suppress(OSError, ValueError, AttributeError):  # without a file behind it there is nothing to point
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


Found = TypeVar("Found", bound="Record")


def tell_record(found: Found, as_json: bool, show: Callable[[Found], None]) -> None:
    """Print a record as JSON, or with `show`."""
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(found)


def draw(found: Study, figure: Path | None, title: str) -> None:
    """Write a page of figures of a study; without a path write none."""
    if figure is None:
        return
    from em_evals.report import page
    from em_evals.report.inputs import Inputs
    from em_evals.report.report import build

    page.write(build(Inputs(studies=[found]), title), figure)


def print_json(value: Any) -> None:
    """Print an indented JSON value; what is NaN or infinite, which JSON does not have, becomes null."""
    from em_evals import files  # YAML comes with it, which a list of commands does not need

    print_json_text(json.dumps(files.without_nan(value), indent=2, ensure_ascii=False))


def print_json_text(text: str) -> None:
    """Print JSON; the characters that a terminal would obey are escaped."""
    with _printing(sys.stdout):
        typer.echo(shown.json_text(text))


def measured_cell(value: Measured) -> str:
    """Format a mean and its interval as a cell."""
    return estimate_cell(value.value, value.interval)


def rate_cell(rate: Rate) -> str:
    """Format a rate and its interval for the same questions as a cell."""
    return estimate_cell(rate.value, rate.fixed, ".2%")


def estimate_cell(value: float | None, interval: Interval, form: str = "+.3f") -> str:
    """Format a number and its interval as a cell: a dash without a number, no brackets without ends."""
    if value is None or math.isnan(value):
        return "–"
    low, high = (math.nan if end is None else end for end in interval)
    return f"{value:{form}}" + (
        "" if math.isnan(low) or math.isnan(high) else f" [{low:{form}}, {high:{form}}]"
    )


def p_cell(p: float | None) -> str:
    """Format a p-value as a cell: a dash without one, and never 0.

    Example:
        >>> p_cell(0.0416), p_cell(0.0001), p_cell(None)
        ('0.042', '< 0.001', '–')
    """
    if p is None or math.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table without interpreting markup in cells; use 200 columns if stdout is not a terminal.

    Words are never broken where the terminal has room for the longest word of every column; where it has not, each row
    is printed as lines of `column  value`.
    """
    from rich.console import Console
    from rich.text import Text

    title, columns = shown.text(title), [shown.text(column) for column in columns]
    rows = [[shown.text(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    every = list(zip(columns, *rows, strict=True))
    widths = _widths(every, console.width)
    if widths is None:
        with _printing(sys.stdout):
            console.print(_records(title, columns, rows), soft_wrap=True)
        return
    if not title and all(widest <= width for widest, width in zip(_widest(every), widths, strict=True)):
        with _printing(sys.stdout):
            console.print(_lines(every, widths), soft_wrap=True)
        return
    from rich.table import Table

    table = Table(title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(Text(column), width=width, overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    with _printing(sys.stdout):
        if console.is_terminal:
            console.print(table)
        else:  # files and pipes get no blanks at the ends of lines
            laid_out = "".join(segment.text for segment in console.render(table))
            console.print(Text("\n".join(map(str.rstrip, laid_out.splitlines()))), soft_wrap=True)


def _widest(columns: list[tuple[str, ...]]) -> list[float]:
    """Return each column's widest cell; a cell of several lines is as wide as anything."""
    from rich.cells import cell_len

    return [max(math.inf if "\n" in cell else cell_len(cell) for cell in cells) for cells in columns]


def _lines(columns: list[tuple[str, ...]], widths: list[int]) -> Any:
    """Return the table where no cell is wrapped, as rich lays it out, in a tenth of its time."""
    from rich.cells import set_cell_size
    from rich.text import Text

    padded = [
        [set_cell_size(cell, width) for cell in cells] for cells, width in zip(columns, widths, strict=True)
    ]
    head, *rows = [(" " * _GAP).join(row) for row in zip(*padded, strict=True)]
    return Text.assemble((head.rstrip(), "table.header"), "".join(f"\n{row.rstrip()}" for row in rows))


_GAP = 2
"""Columns between two cells of a table."""


def _widths(columns: list[tuple[str, ...]], room: int) -> list[int] | None:
    """Return each column's width, the widest ones wrapped between words first; None where words would be broken."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in columns]
    least = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _records(title: str, columns: list[str], rows: list[list[str]]) -> Any:
    """Return rows as blocks of lines, one value each."""
    from rich.text import Text

    left = max(map(len, columns))
    blocks = [
        "\n".join(f"{column:<{left}}  {cell}" for column, cell in zip(columns, row, strict=True))
        for row in rows
    ]
    return Text("\n\n".join([title, *blocks] if title else blocks))
