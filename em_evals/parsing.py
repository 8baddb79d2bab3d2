"""Parse JSON and YAML of others within limits: depth, digits, size, and what aliases expand to.

A value comes back, or an `EmEvalsError` with one sentence; never a traceback, and never hours or gigabytes. What the
values mean is left to their readers.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import SafeConstructor

from em_evals.errors import EmEvalsError

DEPTH = 64
"""Levels of nested lists and mappings: our own formats need 8, and recursive code elsewhere takes several hundred."""
YAML_CHARACTERS = 8 * 2**20
YAML_VALUES = 250_000
"""Values in a YAML file with every alias written out."""
_DIGITS = 200
"""Digits of a whole number: more than any float holds, fewer than make arithmetic slow."""

# libyaml where PyYAML has it: ten times faster, with the same nodes.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Entry(NamedTuple):
    """A value in a YAML document.

    Attributes:
        key: keys and indices that lead to it.
        node: PyYAML's node.
        line: the line of its key, or of itself in a list.
    """

    key: tuple[str | int, ...]
    node: yaml.Node
    line: int


def json_value(text: str | bytes, path: Path | str | None = None, line: int | None = None) -> Any:
    """Parse a JSON text.

    Args:
        text: a document, or one line of a JSONL file.
        path: the file, for errors.
        line: the line of a JSONL file, for errors.

    Raises:
        EmEvalsError: it is not JSON, is nested too deeply, or has a whole number of too many digits; a file's text
            repeats a key in one object (of a model's or client's text the last counts, as everywhere).
    """
    with _as_sentences(path, line, "this line" if line is not None else "this file"):
        value = json.loads(text, parse_int=_whole) if path is None else _DECODER.decode(_decoded(text))
    opened = (
        text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    )
    # Counting brackets costs little; only a text with many of them is looked at level by level.
    if opened > DEPTH:
        _require_shallow(value, path, line)
    return value


def json_value_at(text: str, start: int, path: Path | str, line: int) -> tuple[Any, int]:
    """Parse the JSON value that begins at a place of a text; return it with the place behind it.

    Raises:
        EmEvalsError: as for `json_value`.
    """
    with _as_sentences(path, line, "this row"):
        value, end = _DECODER.raw_decode(text, start)
    _require_shallow(value, path, line)
    return value, end


@contextmanager
def _as_sentences(path: Path | str | None, line: int | None, what: str) -> Iterator[None]:
    """Turn what Python's parser raises into one sentence."""
    try:
        yield
    except json.JSONDecodeError as error:
        where = error.lineno if line is None else line
        raise EmEvalsError(f"{what} is not JSON ({error.msg}); correct or delete it.", path, where) from None
    except UnicodeDecodeError as error:
        raise EmEvalsError(
            f"{what} is not UTF-8 text (byte {error.start}); save it as UTF-8.", path
        ) from None
    except RecursionError:
        raise _too_deep("JSON", path, line) from None
    except ValueError as error:  # raised by _whole and _once
        raise EmEvalsError(f"{what} has {error}; correct it.", path, line) from None


def _require_shallow(value: Any, path: Path | str | None, line: int | None) -> None:
    if depth(value) > DEPTH:
        raise _too_deep("JSON", path, line)


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object each of whose keys stands there once: JSON lets readers choose which of two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key '{max(counts, key=counts.__getitem__)[:60]}' twice in one object")
    return found


def _decoded(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")


_DECODER = json.JSONDecoder(parse_int=_whole, object_pairs_hook=_once)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector where many objects are made and nearly all of them are kept.

    It looks through all of them again and again, and finds no garbage: a third of the time of reading 2,000 cards.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def step_of(text: str) -> int | None:
    """Return the number of a step, layer or row that a name or a field states; None for any other text.

    Example:
        >>> step_of("40"), step_of("x"), step_of("9" * 5000)
        (40, None, None)
    """
    # Python refuses to convert several thousand digits, and no step or layer has as many as eleven.
    return int(text) if text.isdecimal() and len(text) <= 10 else None


def depth(value: Any) -> int:
    """Return the number of levels of nested lists and dicts."""
    level, count = [value], 0
    while level := [one for one in level if isinstance(one, list | dict)]:
        count += 1
        if count > DEPTH:
            break
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return count


def _too_deep(kind: str, path: Path | str | None, line: int | None) -> EmEvalsError:
    return EmEvalsError(
        f"this {kind} is nested too deeply (more than {DEPTH} levels); flatten it.", path, line
    )


def yaml_value(text: str, path: Path | str | None = None) -> Any:
    """Parse one YAML document into plain data.

    Raises:
        EmEvalsError: as for `yaml_entries` and `yaml_data`.
    """
    return yaml_data(yaml_entries(text, path), path)


def yaml_entries(text: str, path: Path | str | None = None) -> list[Entry]:
    """Parse one YAML document into its values in order, aliases written out; the document itself comes first.

    Raises:
        EmEvalsError: it is not YAML, too large or too deep, repeats a key, has a key that is not text or a number, or
            aliases that expand to too much.
    """
    if len(text) > YAML_CHARACTERS:
        raise EmEvalsError(
            f"this YAML has {len(text):,} characters, and at most {YAML_CHARACTERS:,} are read; divide it.",
            path,
        )
    try:
        _check_depth(text, path)
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, path) from None
    if node is None:
        return []
    entries = list(islice(_walk(node, path), YAML_VALUES + 1))
    if len(entries) > YAML_VALUES:
        raise EmEvalsError(
            f"this YAML expands to more than {YAML_VALUES:,} values (aliases count each time); write less.",
            path,
        )
    return entries


def _check_depth(text: str, path: Path | str | None) -> None:
    """Refuse deep nesting by the parser's events: making nodes is recursive, and in C a deep text ends the process."""
    # Each list or mapping takes one of these characters at least: a short text needs no look.
    if sum(text.count(one) for one in "[{-:?") <= DEPTH:
        return
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > DEPTH:
                mark = event.start_mark
                raise _too_deep("YAML", path, mark.line + 1 if mark is not None else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1


def _walk(node: yaml.Node, path: Path | str | None) -> Iterator[Entry]:
    """Yield every value, aliases written out; check the keys of mappings.

    Raises:
        EmEvalsError: a value contains itself; a key is repeated, or not text or a number.
    """
    # A stack of our own, since aliases inside aliases may be nested deeper than the text is.
    stack: list[tuple[Entry, tuple[yaml.Node, ...]]] = [(Entry((), node, node.start_mark.line + 1), ())]
    while stack:
        entry, above = stack.pop()
        yield entry
        here = entry.node
        if isinstance(here, yaml.ScalarNode):
            continue
        line = here.start_mark.line + 1
        if any(here is one for one in above):
            raise EmEvalsError("this value contains itself (a YAML alias); write it out.", path, line)
        if len(above) >= DEPTH:
            raise _too_deep("YAML", path, line)
        if isinstance(here, yaml.MappingNode):
            inner = [Entry((*entry.key, name), value, line) for name, value, line in _named(here, path)]
        else:
            inner = [
                Entry((*entry.key, i), value, value.start_mark.line + 1) for i, value in enumerate(here.value)
            ]
        outer = (*above, here)
        stack += [(one, outer) for one in reversed(inner)]


_KEYS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "merge")}


def _named(node: yaml.MappingNode, path: Path | str | None) -> Iterator[tuple[str, yaml.Node, int]]:
    """Yield (key, value, the key's line) of a mapping."""
    seen: set[str] = set()
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise EmEvalsError("a key must be text; this one is a list or a mapping.", path, line)
        if name.tag not in _KEYS or _is_long(name):
            kind = name.tag.rpartition(":")[2]
            raise EmEvalsError(
                f"YAML reads the key '{name.value[:60]}' as {kind}; put it in quotes.", path, line
            )
        if name.value in seen:
            raise EmEvalsError(f"the key '{name.value[:60]}' is repeated; delete one.", path, line)
        seen.add(name.value)
        yield name.value, value, line


def yaml_data(entries: list[Entry], path: Path | str | None = None) -> Any:
    """Build plain data with the safe loader's tags only, so that a file can never run code; None for no entries.

    Raises:
        EmEvalsError: a value does not fit its tag (`!!bool x`, the date 2024-13-45, a number of too many digits).
    """
    if not entries:
        return None
    for _, node, line in entries:
        if _is_long(node):
            raise EmEvalsError(
                f"this whole number has {len(node.value)} digits; at most {_DIGITS} are read.", path, line
            )
    try:
        return SafeConstructor().construct_document(entries[0].node)
    except Exception as error:  # PyYAML's constructors raise many types on a text that does not fit its tag
        raise _unfit(entries, path, error) from None


def _is_long(node: yaml.Node) -> bool:
    # Of a list or mapping `value` is a list: the tag is looked at last, since most texts are short.
    return (
        len(node.value) > _DIGITS
        and node.tag == "tag:yaml.org,2002:int"
        and isinstance(node, yaml.ScalarNode)
    )


def _unfit(entries: list[Entry], path: Path | str | None, error: Exception) -> EmEvalsError:
    """Return the error of the first value that cannot be built by itself, with its line."""
    line = entries[0].line
    for _, node, line in entries:
        if isinstance(node, yaml.ScalarNode):
            try:
                SafeConstructor().construct_document(node)
            except Exception as own:  # as above
                kind = node.tag.rpartition(":")[2]
                what = getattr(own, "problem", None) or (
                    str(own) if type(own) is ValueError else f"'{node.value[:60]}' is no {kind}"
                )
                return EmEvalsError(f"this is not valid YAML ({what}); correct this line.", path, line)
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or type(error).__name__
    line = mark.line + 1 if mark is not None else entries[0].line
    return EmEvalsError(f"this is not valid YAML ({what}); correct this line.", path, line)


def _not_yaml(error: yaml.YAMLError, text: str, path: Path | str | None) -> EmEvalsError:
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = None
    # PyYAML's errors store the line in one of two ways: a mark, or the position of a character that YAML forbids.
    if (mark := getattr(error, "problem_mark", None)) is not None:
        line = int(mark.line) + 1
    elif isinstance(position := getattr(error, "position", None), int):
        line = text.count("\n", 0, position) + 1
    return EmEvalsError(f"this is not valid YAML ({problem}); correct this line.", path, line)
