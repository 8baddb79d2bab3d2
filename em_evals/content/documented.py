"""Models whose JSON Schema describes fields by the docstrings below them.

pydantic's own `use_attribute_docstrings` parses the source of each class while it is imported, for which every command
would wait; here it is parsed when a schema is asked for.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from typing import Any


class Documented:
    """What a model with docstrings below its fields is besides a `BaseModel`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any, /) -> Any:
        """Return pydantic's schema with the fields' docstrings as descriptions."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _docstrings(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return schema


def _docstrings(model: type) -> dict[str, str]:
    """Return the docstrings of a model's fields, inherited ones too."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, Documented) and kind is not Documented:
            found |= _in_module(kind.__module__).get(kind.__qualname__, {})
    return found


@cache
def _in_module(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings below annotated names, by the class that holds them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: dict(_below(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _below(node: ast.ClassDef) -> list[tuple[str, str]]:
    found = []
    for one, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(after, ast.Expr)
        ):
            text = after.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found.append((one.target.id, inspect.cleandoc(text.value)))
    return found
