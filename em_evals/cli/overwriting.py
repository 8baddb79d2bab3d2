"""What a command writes must be none of what it reads: for every command, before it does anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from em_evals.files import is_file, is_folder

WRITTEN = frozenset({"output", "figure", "samples", "tokens"})
"""Parameters of commands that name a file to write (some commands have a number of that name)."""


def refuse(given: Mapping[str, Any]) -> None:
    """Refuse an output that is an input, a device or a link that leads elsewhere.

    Args:
        given: a command's parameters by name, as the command line has them.

    Raises:
        EmEvalsError: as for `folders.output`.
    """
    places = [Path(given[name]) for name in WRITTEN & given.keys() if isinstance(given[name], str | Path)]
    # What is not there yet replaces nothing, and folders are checked by the commands that fill them.
    if places := [
        place for place in places if (place.exists() or place.is_symlink()) and not is_folder(place)
    ]:
        from em_evals.results import folders

        read = [one for name, value in given.items() if name not in WRITTEN for one in _paths(value)]
        for place in places:
            folders.output(place, read)


def _paths(value: Any) -> Iterator[Path]:
    """Yield the files and folders that a parameter names."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str | Path):
            # Directions have weights (2*a), groups have names (a=b,c).
            for name in {str(one), *re.split(r"[*=,]", str(one))} - {""}:
                if is_file(path := Path(name)) or is_folder(path):
                    yield path
