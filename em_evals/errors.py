"""The one error that users see: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class EmEvalsError(Exception):
    """Bad input or a missing precondition, reported in one sentence.

    Args:
        what: what is wrong and what to do about it, without a trailing newline.
        path: the file to open, if there is one.
        line: its line, counted from 1.
    """

    def __init__(self, what: str, path: Path | str | None = None, line: int | None = None) -> None:
        self.what = what
        self.path = path
        self.line = line
        super().__init__(str(self))

    def __str__(self) -> str:
        if self.path is None:
            return self.what
        where = f"{self.path}:{self.line}" if self.line is not None else f"{self.path}"
        return f"{where}: {self.what}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint to append to an error: the closest known name, else all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}." if names else "there are none."
