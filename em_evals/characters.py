r"""Half characters: one of a surrogate pair without the other, as JSON can write it (`\ud800`).

UTF-8 has none and no tokenizer reads one. A text for a model is refused where it is read; a text that is only counted
or digested stays as it is (`files.digest`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_evals import files
from em_evals.errors import EmEvalsError

if TYPE_CHECKING:
    from pydantic import BaseModel

HALF = re.compile("[\ud800-\udfff]")


def sentence(half: str) -> str:
    """Return why a text with half a character is refused."""
    return (
        f"a text here holds half a character (U+{ord(half):04X}, one of a surrogate pair), which no tokenizer reads: "
        "write the whole character, or U+FFFD in its place."
    )


def escaped(value: Any) -> Any:
    r"""Return a value of JSON with each half character written out (`\ud800`), so that UTF-8 can hold it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {escaped(key): escaped(one) for key, one in value.items()}
    return [escaped(one) for one in value] if isinstance(value, list) else value


def model_json(model: BaseModel, indent: int | None = None) -> str:
    """Return a model as JSON; where a name holds half a character, which pydantic writes nowhere, it is written out."""
    from pydantic_core import PydanticSerializationError

    try:
        return model.model_dump_json(indent=indent)
    except PydanticSerializationError:
        value = escaped(files.without_nan(model.model_dump(mode="json")))
        return json.dumps(value, indent=indent, ensure_ascii=False)


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
                raise EmEvalsError(sentence(half[0]), path, line)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
