"""The results of a study so far, one JSON line each: an interrupted study resumes from them.

A value's key is a digest of everything that it depends on, so results of another study, or of an adapter that was
retrained since, are never used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from em_evals import files, locks, parsing
from em_evals.errors import EmEvalsError


class Finished:
    """Values by key, in a JSONL file that is appended to.

    Two processes on one file measure nothing twice: the second waits for the first.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}

    def measured(
        self, what: str, keys: Sequence[str], measure: Callable[[list[int]], Iterator[Any]]
    ) -> list[Any]:
        """Return the value of every key: known ones from the file, the others measured now, with a progress bar.

        Args:
            what: what is measured, for the bar.
            keys: one per value.
            measure: yields the values of the given indices, in order; JSON values.

        Raises:
            EmEvalsError: the file holds something else, or cannot be written.
        """
        with locks.alone(self.path) if self.path is not None else nullcontext():
            if self.path is not None:
                self._values |= _read(self.path)
            return self._measured(what, keys, measure)

    def _measured(
        self, what: str, keys: Sequence[str], measure: Callable[[list[int]], Iterator[Any]]
    ) -> list[Any]:
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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
        except OSError as error:
            raise files.unwritable(self.path, error) from None


def _read(path: Path) -> dict[str, Any]:
    """Load the lines of earlier runs; no good line is ever lost to a bad one.

    A last line that a kill cut is dropped. Where others are damaged, the file is kept beside a repaired one.

    Raises:
        EmEvalsError: it holds lines, and none of them is a result: it is another program's file.
    """
    if not path.exists():
        return {}
    raw = files.read_bytes(path)
    values, good, bad = {}, list[bytes](), list[int]()
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        try:
            row = parsing.json_value(line)
            values[row["key"]] = row["value"]
        except (EmEvalsError, KeyError, TypeError):
            bad.append(number)
        else:
            good.append(line if line.endswith(b"\n") else line + b"\n")
    if bad and not good and raw.endswith(b"\n"):
        raise EmEvalsError(
            "this file holds no results of earlier runs; move it, or choose another output.", path
        )
    if b"".join(good) != raw:
        # A kill leaves one damaged line, the last one, without an end; anything else deserves a look.
        if bad and (bad != [len(good) + 1] or raw.endswith(b"\n")):
            _set_aside(path, raw, bad, len(good))
        with files.atomic(path) as temporary:
            temporary.write_bytes(b"".join(good))
    return values


def _set_aside(path: Path, raw: bytes, bad: Sequence[int], good: int) -> None:
    kept = path.with_name(f"{path.name}.damaged-{files.digest(raw)}")
    with files.atomic(kept) as temporary:
        temporary.write_bytes(raw)
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
        f"{path}:{bad[0]}: this line is not a result; {good} results are used, {len(bad)} damaged "
        f"line{'s' if len(bad) > 1 else ''} measured again, and the file as it was is kept as {kept.name}."
    )
