"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO, TypeVar

import typer

from em_evals import shown
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from em_evals.results.rate import Rate
    from em_evals.results.records.base import Interval, Record
    from em_evals.results.records.kinds import Study

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def echo(text: str, err: bool = False) -> None:
    """Print text; names and answers of others in it can neither control the terminal nor command a CI runner."""
    stream = sys.stderr if err else sys.stdout
    with _printing(stream):
        typer.echo(_in_lines(shown.text(text), stream), err=err)


def _in_lines(text: str, stream: TextIO) -> str:
    """Break a sentence between words where a terminal would break it within one; paths and names stay whole."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in text.split("\n")
        for indent in ["  " if line.startswith(("- ", "  ")) else ""]
    )


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


class _Measured(Protocol):
    """A number with its interval."""

    @property
    def value(self) -> float | None:
        """The number."""

    @property
    def interval(self) -> Interval:
        """Its ends."""


def measured_cell(one: _Measured | None, form: str = "+.3f") -> str:
    """Format a number and its interval as a cell, a dash without one."""
    return "–" if one is None else estimate_cell(one.value, one.interval, form)


def number_cell(value: float | None, form: str) -> str:
    """Format a number as a cell, a dash without one."""
    return estimate_cell(value, (None, None), form)


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

    title, columns = shown.text(title), [shown.text(column) for column in columns]
    rows = [[shown.text(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    widths = _widths(list(zip(columns, *rows, strict=True)), console.width)
    with _printing(sys.stdout):
        if widths is None:
            console.print(_records(title, columns, rows), soft_wrap=True)
        else:
            console.print(_lines(console, title, columns, rows, widths), soft_wrap=True)


def _lines(
    console: Console, title: str, columns: list[str], rows: list[list[str]], widths: list[int]
) -> Text:
    """Return the table as rich lays it out, in a tenth of its time and without blanks at the ends of lines."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    def wrapped(cell: str, width: int) -> list[str]:
        if "\n" not in cell and cell_len(cell) <= width:
            return [cell]
        return [line.plain for line in Text(cell).wrap(console, width, overflow="fold")]

    def lines(row: list[str], up: int = 1) -> str:
        """Wrap each cell; with `up` of -1 those of few lines stand at the bottom."""
        every = zip_longest(*(wrapped(*cell)[::up] for cell in zip(row, widths, strict=True)), fillvalue="")
        return "\n".join(
            (" " * _GAP).join(map(set_cell_size, one, widths)).rstrip() for one in list(every)[::up]
        )

    head = "".join(f"{one}\n" for one in wrapped(title, console.width)) if title else ""
    body = "".join(f"\n{lines(row)}" for row in rows)
    return Text.assemble((head, "table.title"), (lines(columns, -1), "table.header"), body)


_GAP = 2
"""Columns between two cells of a table."""


def _widths(columns: list[tuple[str, ...]], room: int) -> list[int] | None:
    """Return each column's width; None where words would be broken.

    Where there is too little room, heads are wrapped between words, then cells too, the widest column first.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in columns]
    least = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    whole = [max(word, *map(cell_len, cells[1:]), 0) for cells, word in zip(columns, least, strict=True)]
    for limits in (whole, least):
        while sum(widths) > room and (wide := [i for i in range(len(widths)) if widths[i] > limits[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _records(title: str, columns: list[str], rows: list[list[str]]) -> Text:
    """Return rows as blocks of lines, one value each."""
    from rich.text import Text

    left = max(map(len, columns))
    blocks = [
        "\n".join(f"{column:<{left}}  {cell}" for column, cell in zip(columns, row, strict=True))
        for row in rows
    ]
    return Text("\n\n".join([title, *blocks] if title else blocks))
