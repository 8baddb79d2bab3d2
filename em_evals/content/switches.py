"""True and false where a number is meant: pydantic reads 1 and 0, and an option would be something else in silence."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel


def refuse(model: type[BaseModel], field: str | None, value: Any) -> Any:
    """Return a field's value as it is, for a `before` validator of all fields.

    Args:
        model: the field's.
        field: its name.
        value: what was given for it.

    Raises:
        ValueError: it is true or false, or a list with one of them, and the field takes numbers.
    """
    if isinstance(value, list | tuple):
        switches = [one for one in value if isinstance(one, bool)]
    elif isinstance(value, bool):
        switches = [value]
    else:
        return value  # as nearly every field of a card
    if switches and field is not None:
        kinds = _kinds(model.model_fields[field].annotation)
        if bool not in kinds and kinds & {int, float}:
            lists = any(get_origin(kind) in (list, tuple) for kind in kinds)
            what = "a list of numbers" if lists else "a number"
            raise ValueError(f"this is {what}, not {str(switches[0]).lower()}")
    return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types in an annotation, inside unions and `Annotated` too."""
    return {annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))}
