r"""Half characters: one of a surrogate pair without the other, as JSON can write it (`\ud800`).

UTF-8 has none and no tokenizer reads one. A text for a model is refused where it is read; a text that is only counted
or digested stays as it is (`files.digest`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from em_evals.errors import EmEvalsError

HALF = re.compile("[\ud800-\udfff]")


def require_whole(value: Any, path: Path | str | None = None, line: int | None = None) -> None:
    """Refuse a value of JSON for a model in which a text or a key holds half a character.

    Args:
        value: a text, or lists and objects of them.
        path: the file, for errors.
        line: the line, for errors.

    Raises:
        EmEvalsError: a text does.

    Example:
        >>> require_whole({"text": "whole: \U0001f600"})
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if (half := HALF.search(one)) is not None:
                raise EmEvalsError(
                    f"a text here holds half a character (U+{ord(half[0]):04X}, one of a surrogate pair), which no "
                    "tokenizer reads: write the whole character, or U+FFFD in its place.",
                    path,
                    line,
                )
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
