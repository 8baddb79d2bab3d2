"""The results of a study so far, one JSON line each: an interrupted study resumes from them.

A value's key is a digest of everything that it depends on, so results of another study, or of an adapter that was
retrained since, are never used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from em_evals.errors import EmEvalsError


class Finished:
    """Values by key, in a JSONL file that is appended to.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path is not None and path.is_file():
            self._values = _read(path)

    def measured(
        self, what: str, keys: Sequence[str], measure: Callable[[list[int]], Iterator[Any]]
    ) -> list[Any]:
        """Return the value of every key: known ones from the file, the others measured now, with a progress bar.

        Args:
            what: what is measured, for the bar.
            keys: one per value.
            measure: yields the values of the given indices, in order; JSON values.
        """
        missing = [i for i, key in enumerate(keys) if key not in self._values]
        bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task("", total=len(keys), completed=len(keys) - len(missing))
            for i, value in zip(missing, measure(missing) if missing else (), strict=True):
                self._keep(keys[i], value)
                bar.advance(task)
        return [self._values[key] for key in keys]

    def _keep(self, key: str, value: Any) -> None:
        self._values[key] = value
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
        except OSError as error:
            raise EmEvalsError(
                f"cannot write here ({error.strerror}); free or choose another place.", self.path
            ) from None


def _read(path: Path) -> dict[str, Any]:
    """Load the lines of earlier runs. A truncated last line is removed from the file, or the next one would join it."""
    whole, values = 0, {}
    raw = path.read_bytes()
    for line in raw.splitlines(keepends=True):
        try:
            row = json.loads(line)
            key, value = row["key"], row["value"]
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        values[key] = value
        whole += len(line)
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)
    return values
