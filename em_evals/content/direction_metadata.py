"""The metadata of a direction file, validated as untrusted input: JSON with known types where readers rely on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from em_evals import files, parsing
from em_evals.errors import EmEvalsError


class _Metadata(BaseModel):
    """What readers rely on; other keys may hold any JSON value."""

    model_config = ConfigDict(extra="allow", strict=True)

    base: str | None = None
    revision: str | None = None
    card: str | None = None
    how: str | None = None
    layer: int | None = None
    questions: list[str] | None = None
    reliability: list[float | None] | None = None
    prompt_cosine: list[float | None] | None = None
    claim: dict[str, Any] | None = None
    held_out_cosine: list[float | None] | None = None
    movement: dict[str, list[float | None]] | None = None


def checked(text: str, path: Path, layers: int) -> dict[str, Any]:
    """Return a direction file's metadata.

    Args:
        text: the JSON in the file.
        path: the file.
        layers: number of decoder blocks; lists by layer have one entry for each.

    Raises:
        EmEvalsError: it is not a JSON object, or a value has another type or length.
    """
    found = files.without_nan(parsing.json_value(text, path))
    if not isinstance(found, dict):
        raise EmEvalsError("the metadata of this direction file are not a JSON object.", path)
    try:
        known = _Metadata.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))[:80]
        raise EmEvalsError(
            f"the metadata of this direction file are wrong at `{name}` ({first['msg'][:120]}).", path
        ) from None
    if known.layer is not None and not 0 <= known.layer < layers:
        raise EmEvalsError(
            f"`layer` of this direction file is {known.layer}; its blocks are 0 to {layers - 1}.", path
        )
    by_layer = {name: getattr(known, name) for name in ("reliability", "prompt_cosine", "held_out_cosine")}
    lists = {**by_layer, **(known.movement or {})}
    for name, values in lists.items():
        if values is not None and len(values) != layers:
            raise EmEvalsError(
                f"`{name[:80]}` of this direction file has {len(values)} entries for {layers} layers.", path
            )
    # An absent list is no list: readers take what is there.
    absent = {*lists, "layer"}
    return {name: value for name, value in found.items() if name not in absent or value is not None}
