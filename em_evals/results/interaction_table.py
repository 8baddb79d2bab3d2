"""A table of differences in differences: a row a prompt, a column of shares a training seed, and the prompts' names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from em_evals.errors import EmEvalsError
from em_evals.results.tables import csv_rows

_PROMPT = ("prompt", "prompt_id", "question", "question_id", "id")
"""Columns that name the prompt, whatever their cells look like; "" is pandas' column of row numbers."""
_FACTORS = ("seed", "training_seed", "run", "epoch", "model", "cue", "arm", "draw", "draws", "n")
"""Columns of another layout: a row a prompt and seed, or counts."""
_LARGEST = 2.0
"""(share - share) - (share - share) lies within -2 and 2."""


@dataclass(frozen=True)
class InteractionTable:
    """The numbers [prompts, seeds] and the seeds' columns."""

    seeds: tuple[str, ...]
    values: NDArray[np.float64]


def read(path: Path) -> InteractionTable:
    """Read a CSV of prompts by seeds; further columns of words are left out.

    Raises:
        EmEvalsError: the file has another layout, an empty cell or a prompt twice; with its line.
    """
    lines = list(csv_rows(path, ()))
    if len(lines) < 2:
        raise EmEvalsError("at least two rows are needed, each of a prompt.", path)
    names = [name for name in lines[0][1] if name]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise EmEvalsError("the cells are separated by semicolons or tabs: write commas.", path, 1)
    if any(_number(name) is not None for name in names):
        raise EmEvalsError("the first row holds numbers: it names the columns.", path, 1)
    plain = {name: name.strip().lower().replace(" ", "_") for name in names}
    if factor := next((name for name in names if plain[name] in _FACTORS), None):
        raise EmEvalsError(
            f"the column '{factor}' is no training seed's: write a row for each prompt and a column for each seed "
            "(pandas.DataFrame.pivot), and leave other numbers out.",
            path,
            1,
        )
    _check_prompts(lines, [name for name in names if plain[name] in _PROMPT], path)
    first = lines[0][1]
    seeds = [name for name in names if plain[name] not in _PROMPT and _number(first[name]) is not None]
    if not seeds:
        raise EmEvalsError("no column holds numbers: write one for each training seed.", path, 1)
    values = [[_value(row[name], name, path, line) for name in seeds] for line, row in lines]
    return InteractionTable(tuple(seeds), np.array(values))


def _check_prompts(lines: list[tuple[int, dict[str, str]]], names: list[str], path: Path) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for line, row in lines:
        key = tuple(row[name] or "" for name in names)
        if names and key in seen:
            raise EmEvalsError(f"the prompt '{' '.join(key)[:60]}' is also in line {seen[key]}.", path, line)
        seen[key] = line


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _value(text: str | None, name: str, path: Path, line: int) -> float:
    value = _number(text)
    if value is None or not math.isfinite(value):
        raise EmEvalsError(
            f"'{name}' is '{(text or '')[:40]}', not a number: every prompt needs one of each seed.",
            path,
            line,
        )
    if abs(value) > _LARGEST:
        raise EmEvalsError(
            f"'{name}' is {value:g}: a difference of differences of shares lies from -2 to 2 (0.05 is 5 points).",
            path,
            line,
        )
    return value
