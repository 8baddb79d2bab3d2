"""Turn a pydantic validation error into one sentence and the key that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from em_evals.errors import EmEvalsError, nearest

_Model = TypeVar("_Model", bound=BaseModel)

KeyPath = tuple[str | int, ...]
"""The path of a value in a file: keys and list indices."""


def checked(model: type[_Model], fields: dict[str, Any]) -> _Model:
    """Validate values that come from no file.

    Raises:
        EmEvalsError: a value is wrong.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise EmEvalsError(explain(error, model)[1]) from None


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[KeyPath, str]:
    """Return pydantic's first error as (key, sentence)."""
    errors = error.errors(include_url=False)
    first = errors[0]
    # For a union (`all`, or a list) pydantic reports one error per member, with the member's name in the path.
    key = _real_keys(first["loc"], model)
    same = [_words(entry) for entry in errors if _real_keys(entry["loc"], model)[: len(key)] == key]
    name = _name(key)
    if len(same) > 1:
        return key, f"'{name}': {'; or: '.join(dict.fromkeys(same))}."
    if first["type"] == "extra_forbidden":
        return key, f"unknown key '{name}'; {nearest(name, _siblings(model, key))}"
    if first["type"] == "missing":
        return key, f"the key '{name}' is missing."
    message = _words(first).removeprefix("Value error, ").rstrip(".")
    return key, f"'{name}': {message}." if name else f"{message}."


def _words(error: Mapping[str, Any]) -> str:
    """Return an error in plain words where pydantic's are not."""
    if error["type"] == "too_short":
        return "this must not be empty"
    if error["type"] == "string_unicode":
        return "this text holds half a character (one of a surrogate pair), which no tokenizer reads"
    if error["type"] != "string_type":
        return str(error["msg"])
    given = error["input"]
    if given is None or isinstance(given, list | dict):
        return f"this must be one text, not {'empty' if given is None else 'a list or a mapping'}"
    return "this must be text: put it into quotes, as YAML reads yes, no, numbers and dates as other values"


def _name(key: KeyPath) -> str:
    """Return what a sentence calls a key: the last one, of an entry of a list the list's with its index."""
    if len(key) > 1 and isinstance(key[-1], int) and isinstance(key[-2], str):
        return f"{key[-2]}[{key[-1]}]"
    return str(key[-1]) if key else ""


def _real_keys(location: tuple[str | int, ...], model: type[BaseModel]) -> KeyPath:
    """Return the part of pydantic's location that exists in the file, without the names of union members."""
    key: list[str | int] = []
    current: Any = model
    for part in location:
        if isinstance(part, int):
            key.append(part)
        elif isinstance(current, type) and issubclass(current, BaseModel):
            key.append(part)
            current = _inner_model(current, part)
        elif current is dict:
            key.append(part)
    return tuple(key)


def _inner_model(model: type[BaseModel], name: str) -> Any:
    """Return the model (or dict) in a field's annotation, inside any list or union."""
    info = model.model_fields.get(name)
    if info is None:
        return None
    kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
    kinds += [arg for kind in kinds for arg in getattr(kind, "__args__", ())]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if models:
        return models[0]
    return dict if any(getattr(kind, "__origin__", kind) is dict for kind in kinds) else None


def _siblings(model: type[BaseModel], key: KeyPath) -> list[str]:
    """Return the valid keys at the place of an unknown one."""
    for part in key[:-1]:
        inner = _inner_model(model, part) if isinstance(part, str) else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
