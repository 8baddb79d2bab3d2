"""Find, load and digest content: YAML and JSONL files, with the line of every value.

Content is what researchers write: question sets, rubrics, cards, training data. This module knows where content
is stored and how to cite it in an error; its meaning is left to cards.py, questions.py and rubrics.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from em_evals import characters, files, parsing
from em_evals.content import validation_errors
from em_evals.content.validation_errors import KeyPath as KeyPath
from em_evals.errors import EmEvalsError, nearest

Kind = Literal[
    "tasks", "tasks/cues", "tasks/consistency", "tasks/traits", "scorers", "scorers/judges", "adapters"
]
ENDINGS = (".yaml", ".yml", ".json")
SHARED = "EM_EVALS_CONTENT"
"""Environment variable: folders with tasks/, scorers/ and adapters/ that several people or machines share."""
Model = TypeVar("Model", bound=BaseModel)

_PACKAGE = Path(__file__).parents[1]
# A wheel holds the content inside the package; a checkout (editable install) holds it next to the package.
SHIPPED = _PACKAGE / "_content" if (_PACKAGE / "_content").is_dir() else _PACKAGE.parent


@dataclass(frozen=True)
class Document:
    """A parsed YAML file with the line of each value."""

    path: Path
    data: Any
    lines: dict[KeyPath, int] = field(repr=False)

    def line(self, key: KeyPath) -> int:
        """Return the line of a value, or of its nearest enclosing value."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def error(self, what: str, key: KeyPath = ()) -> EmEvalsError:
        """Return an error that cites the line of this document's value `key`."""
        return EmEvalsError(what, self.path, self.line(key))


def folders(kind: Kind) -> list[Path]:
    """Return the folders to search for content of this kind, first match wins.

    ./KIND; KIND in each folder of the variable EM_EVALS_CONTENT (separated as in PATH); the shipped content.
    """
    shared = [Path(one) for one in os.environ.get(SHARED, "").split(os.pathsep) if one]
    places = [home / kind for home in (Path.cwd(), *shared, SHIPPED)]
    return [p for i, p in enumerate(places) if p.is_dir() and p not in places[:i]]


def names(kind: Kind) -> dict[str, Path]:
    """Return every name of this kind and its file."""
    found: dict[str, Path] = {}
    for folder in folders(kind):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find(kind: Kind, name: str) -> Path:
    """Return the file of a content name or an explicit path.

    Raises:
        EmEvalsError: there is no such file; the message suggests the nearest name.
    """
    explicit = Path(name).expanduser()
    if explicit.suffix in ENDINGS:
        if files.is_file(explicit):
            return explicit
        raise EmEvalsError(f"there is no file '{name[:200]}'.")
    known = names(kind)
    if name not in known:
        raise EmEvalsError(f"there is no {name[:100]!r} in {kind}/; {nearest(name[:100], known)}")
    return known[name]


def load(path: Path) -> Document:
    """Parse one YAML file, or a JSON file.

    Raises:
        EmEvalsError: the file is unreadable, neither YAML nor JSON, or repeats a key in one mapping.
    """
    text = files.read_text(path)
    try:
        entries = parsing.yaml_entries(text, path)
    except EmEvalsError:
        if path.suffix != ".json":
            raise
        # YAML does not read every JSON text (indented by tabs, say); its values then have no lines.
        data = parsing.json_value(text, path)
        characters.require_whole(data, path)
        return Document(path, data, {})
    return Document(path, parsing.yaml_data(entries, path), {one.key: one.line for one in entries})


def validate(model: type[Model], document: Document, data: Any = None, at: KeyPath = ()) -> Model:
    """Validate a document (or the part of it at `at`) against a pydantic model.

    Raises:
        EmEvalsError: the first invalid value, with its line.
    """
    data = document.data if data is None else data
    if not isinstance(data, dict):
        raise document.error("expected `key: value` lines here.", at)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        key, sentence = validation_errors.explain(error, model)
        raise document.error(sentence, (*at, *key)) from None
