"""A progress bar on a terminal. It is on stderr: stdout is the result's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from em_evals import shown

Advance = Callable[[int], None]
"""Counts so many pieces as done."""


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar while the block runs, and yield what advances it.

    Args:
        what: what is counted.
        total: how many there will be; None: nobody knows.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn() if total is None else TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(shown.text(what), total=total)
        yield lambda done: progress.advance(task, done)
